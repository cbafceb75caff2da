"""One run: a linear loop from the first step to the last, that can be killed anywhere and started again."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smog import checkpoint
from smog.config import dump
from smog.data.images import open_images
from smog.data.sampler import Batch, Batches, check_batch, loader
from smog.data.sources import open_source, with_fingerprint
from smog.data.views import normalize
from smog.distributed import world_size
from smog.environment import machine, now, peak_memory, provenance
from smog.errors import RunError, UsageError
from smog.identity import group_id, run_id
from smog.methods.smog import Smog
from smog.models import fast_bf16
from smog.optim import Clock, build_optimizer, schedule
from smog.progress import Progress
from smog.schema import Config
from smog.store import write_atomically, write_json

DONE = "done"


def train(config: Config) -> Path:
    """Train a run to its end, or from where it was cut, and return its folder. A finished run is left as it is.

    Raises UsageError where the configuration does not fit the data, RunError when the loss is no longer finite.
    """
    config = with_fingerprint(config)
    folder = Path(config.runtime.store) / run_id(config)
    if not (folder / DONE).exists():
        Run(config, folder).finish()
    return folder


class Run:
    """The parts of a run that is being trained."""

    def __init__(self, config: Config, folder: Path) -> None:
        if world_size() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("training over several processes is not there yet: start one process a run")
        self.config, self.folder = config, folder
        self.device = choose_device(config.runtime.device)
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        make_deterministic(self.device)
        torch.manual_seed(config.seed)
        self.method = Smog(config)
        check_batch(config, len(open_source(config.data, "train").labels))  # before anything is written
        self.batches = Batches(config, open_images(config, "train"))
        self.steps = round(config.optim.epochs * self.batches.per_epoch)
        self.method.to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(self.method, config.optim)
        self.step, self.seconds, self.precision = 0, 0.0, precision(config, self.device)
        self.half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if config.runtime.compile:
            self.method.compile()
        self.known_bad: set[str] = set()

    def finish(self) -> None:
        """Go on from the last checkpoint, or from the start, to the end."""
        resumed = (self.folder / checkpoint.FILE).exists()
        if resumed:
            self._resume()
        else:
            write_atomically(self.folder / "config.yaml", lambda file: file.write(dump(self.config).encode()))
            write_json(self.folder / "env.json", self._environment())
        with contextlib.closing(MetricsLog(self.folder / "metrics.jsonl", self.step)) as log:
            self._loop(log)
        cost = {"seconds": round(self.seconds, 3), "device": device_name(self.device), "peak_memory": peak_memory()}
        write_json(self.folder / DONE, {"steps": self.steps, **cost, "finished": now()})

    def _loop(self, log: MetricsLog) -> None:
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        last_finite = torch.full((), self.step - 1, device=self.device)
        every = self.config.runtime.log_every
        batches = loader(self.batches, self.step, self.steps, self.config.runtime.workers)
        with Progress(self.steps, self.step, run_id(self.config)) as progress:
            for step in range(self.step, self.steps):
                self.step = step
                loss, details = self._one_step(next(batches))
                last_finite = torch.where(torch.isfinite(loss), self.step, last_finite)
                self.seconds = time.monotonic() - started
                last = self.step + 1 == self.steps
                save = last or time.monotonic() - saved > self.config.runtime.checkpoint_every
                if save or self.step % every == 0:
                    self._check(loss, int(last_finite))
                if last or self.step % every == 0:
                    row = self._row(loss, details)
                    log.write(row)
                    progress.show(self.step + 1, row)
                if save:
                    log.sync()
                    self._save(self.step + 1)
                    saved = time.monotonic()
        if not self.steps:
            self._save(0)

    def _one_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self._report_bad(batch.bad)
        clock, parts = Clock(self.step, self.steps, self.batches.per_epoch), self.config.optim.accumulate
        schedule(self.optimizer, clock, self.config.optim)
        losses, details = [], dict[str, Tensor]()
        for part in zip(*(crops.chunk(parts, dim=1) for crops in batch.views), strict=True):
            views = [normalize(crops.flatten(0, 1), self.device).unflatten(0, crops.shape[:2]) for crops in part]
            with torch.autocast(self.device.type, self.half, enabled=self.precision != "fp32"):
                loss, details = self.method(views, clock)
            self.scaler.scale(loss / parts).backward()
            losses.append(loss.detach())
        self._update()
        self.method.after_step(clock)
        return torch.stack(losses).mean(), details

    def _update(self) -> None:
        if self.config.optim.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _row(self, loss: Tensor, details: dict[str, Tensor]) -> dict[str, Any]:
        """One line of metrics.jsonl: equal from run to run but for ``time``."""
        return {
            "step": self.step + 1,
            "epoch": round((self.step + 1) / self.batches.per_epoch, 4),
            "loss": float(loss),
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: float(value) for name, value in details.items()},
            **self.method.diagnose(),
            "bad_images": len(self.known_bad),
            "time": {"seconds": round(self.seconds, 3)},
        }

    def _check(self, loss: Tensor, last_finite: int) -> None:
        if not torch.isfinite(loss):
            raise RunError(
                f"run {run_id(self.config)}: the loss is {float(loss)}; the last finite one was at step "
                f"{last_finite + 1} of {self.steps}; an earlier checkpoint is kept in {self.folder}; "
                "try a smaller optim.lr or optim.precision=fp32"
            )

    def _save(self, step: int) -> None:
        progress = {
            "seconds": self.seconds,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "bad_images": sorted(self.known_bad),
        }
        checkpoint.save(self.folder, self.config, step, self.method, self.optimizer, progress)

    def _resume(self) -> None:
        self.step, progress = checkpoint.restore(self.folder, self.config, self.method, self.optimizer)
        self.seconds, self.precision = progress["seconds"], progress["precision"]
        self.known_bad = set(progress["bad_images"])
        if progress["threads"] != torch.get_num_threads():
            say(
                f"run {run_id(self.config)}: resumed with {torch.get_num_threads()} threads after "
                f"{progress['threads']}: the same run, but not to the last bit (runtime.threads={progress['threads']})"
            )

    def _report_bad(self, bad: dict[str, str]) -> None:
        for name, why in bad.items():
            if name not in self.known_bad:
                self.known_bad.add(name)
                say(f"{name}: image can't be read ({why}); the next one stands in for it")

    def _environment(self) -> dict[str, Any]:
        return {
            "run_id": run_id(self.config),
            "group_id": group_id(self.config),
            "started": now(),
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "machine": machine(),
            **provenance(),
        }


class MetricsLog:
    """metrics.jsonl. Opened at a step, it forgets what was written after that step, so a resumed run leaves the same
    lines as an uninterrupted one."""

    def __init__(self, path: Path, step: int) -> None:
        lines = [line for line in read_lines(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(path, lambda file: file.write(text.encode()))
        self.file = open(path, "a")  # noqa: SIM115 (closed by close)

    def write(self, row: dict[str, Any]) -> None:
        """Append one line; a reader sees it at once."""
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Put the lines on the disk: they must not be lost when the checkpoint after them is not."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics.jsonl; the last one may have been cut by a kill and is left out then."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu, cuda or cuda:N."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"runtime.device={name!r} is not known: auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"runtime.device={name}: this machine has no CUDA device that torch can use")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device for the record of costs."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["processor"]


def make_deterministic(device: torch.device) -> None:
    """Ask for the same bits at every run; on the CPU they come by themselves."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def precision(config: Config, device: torch.device) -> str:
    """Return bf16 or fp32 for a configuration on a device."""
    if config.optim.precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return config.optim.precision


def say(line: str) -> None:
    """Print one line for the person at the terminal, apart from results."""
    print(line, file=sys.stderr, flush=True)
