"""Runs: from the first step to the last, that can be killed anywhere and started again, alone or several together."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smog import checkpoint
from smog.config import dump
from smog.data.images import open_images
from smog.data.sampler import Batch, Batches, check_batch, check_processes
from smog.data.sources import open_source, with_fingerprint
from smog.data.views import normalize
from smog.distributed import agreed, gathered, held, rank, rank_0_first, sum_over_ranks, world_size
from smog.environment import machine, now, peak_memory, provenance
from smog.errors import RunError, UsageError
from smog.gradients import over_ranks
from smog.identity import cost_kind, group_id, run_id, versions
from smog.loggers import check_loggers
from smog.methods.smog import Smog
from smog.models import chosen_precision
from smog.optim import Clock, build_optimizer, schedule
from smog.packing import pack_key
from smog.processes import joined, own_device, place
from smog.progress import say
from smog.records import Records, open_records
from smog.schema import Config
from smog.signals import StopSignals
from smog.store import DONE, write_atomically, write_json
from smog.turns import Course, Lines, Pack

LEAST_SCALE = 1.0  # of fp16's loss, which starts at 65,536 and halves with every step whose gradients are not finite


def train(config: Config) -> Path:
    """Train a run to its end, or from where it was cut, and return its folder. A finished run is left as it is.

    Started by torchrun or srun it is one of several processes that train the run together. Raises UsageError where the
    configuration does not fit the data, RunError when the loss is no longer finite or another process is lost,
    BusyError while another process trains the run, StoppedError after a signal to stop.
    """
    with StopSignals() as stop, joined(choose_device(config.runtime.device).type):
        with rank_0_first():  # data may have to be fetched
            config = with_fingerprint(config)
        [outcome] = _trained([config], stop)
        if isinstance(outcome, Exception):
            raise outcome
    return outcome


def train_together(configs: Sequence[Config]) -> list[Path | Exception]:
    """Train runs of one ``pack_key`` in this process; each image is read, and its views are made, once for all.

    Returns for each run what ``train`` does: its folder, or what it raises; a run that fails or is busy does not stop
    the others. A signal to stop saves them all and raises one StoppedError. Raises UsageError for runs that can't
    share their images, and in one of several processes.
    """
    if place() or world_size() > 1:
        raise UsageError("runs are trained together in one process; several train one run at a time")
    with StopSignals() as stop, contextlib.redirect_stderr(Lines(sys.stderr)):
        configs = [with_fingerprint(config) for config in configs]
        if len({pack_key(config) for config in configs}) > 1:
            raise UsageError("runs that differ in seed, data, views, batch, device or threads can't share their images")
        return _trained(configs, stop)


def _trained(configs: Sequence[Config], stop: StopSignals) -> list[Path | Exception]:
    pack = Pack(stop)
    folders = [Path(config.runtime.store) / run_id(config) for config in configs]
    errors = pack.train([_course(*one, pack) for one in zip(configs, folders, strict=True)])
    return [error or folder for error, folder in zip(errors, folders, strict=True)]


def _course(config: Config, folder: Path, pack: Pack) -> Course:
    """Train a run unless it is finished, waiting for the others of its pack at every yield."""
    if any(agreed((folder / DONE).exists())):
        return
    check(config)
    with held(folder, "train"):
        if not any(agreed((folder / DONE).exists())):  # or another process was faster
            yield from Run(config, folder, pack.batches).course(pack)


def check(config: Config) -> None:
    """Raise UsageError for what can't be trained, before anything is written or built."""
    check_processes(config, world_size())
    check_loggers(config.runtime.loggers)
    check_batch(config, len(open_source(config.data, "train").labels))


def _own_batches(config: Config) -> Batches:
    with rank_0_first():  # the decoded images are kept in a file
        return Batches(config, open_images(config, "train"))


class Run:
    """The parts of a run that is being trained; ``batches`` are those of its pack where another run has opened them."""

    def __init__(self, config: Config, folder: Path, batches: Batches | None = None) -> None:
        self.config, self.folder, self.packed = config, folder, 1
        self.device = own_device(choose_device(config.runtime.device))
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # the random numbers that are kept are those of the current device
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        make_deterministic(self.device)
        torch.manual_seed(config.seed)
        self.method = Smog(config)
        self.batches = _own_batches(config) if batches is None else batches
        self.steps = round(config.optim.epochs * self.batches.per_epoch)
        self.method.to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(self.method, config.optim)
        self.step, self.seconds, self.precision = 0, 0.0, precision(config, self.device)
        self.half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if config.runtime.compile:
            self.method.compile()
        self.network = over_ranks(self.method)
        if rank():
            checkpoint.own_stream(config.seed, 0)  # for dropout; the weights were drawn alike
        self.known_bad: set[str] = set()

    def course(self, pack: Pack) -> Course:
        """Go on from the last checkpoint, or from the start, to the end; wait for the others of the pack at a yield."""
        yield self
        self.packed = pack.size
        if any(agreed(checkpoint.exists(self.folder))):
            self._resume()
        elif not rank():
            write_atomically(self.folder / "config.yaml", lambda file: file.write(dump(self.config).encode()))
            write_json(self.folder / "env.json", self._environment())
        yield self
        with open_records(self.folder, self.config, self.step, self.steps) as records:
            yield from self._loop(records, pack)
        if not rank():
            self._close()

    def _close(self) -> None:
        cost = {"seconds": round(self.seconds, 3), "device": device_name(self.device), "peak_memory": peak_memory()}
        kind = {"packed": self.packed, "kind": cost_kind(self.config)}
        write_json(self.folder / DONE, {"steps": self.steps, **cost, **kind, "finished": now()})
        checkpoint.forget_previous(self.folder)

    def _loop(self, records: Records, pack: Pack) -> Course:
        saved = time.monotonic()
        last_finite = torch.full((), self.step - 1, device=self.device)
        while self.step < self.steps:
            yield self
            loss, details = self._one_step(pack.batch)
            last_finite = torch.where(torch.isfinite(loss), self.step, last_finite)
            if self.packed > 1 and self.device.type == "cuda":
                torch.cuda.synchronize()  # or its work would be done in, and count as, the time of the next run
            yield self
            last = self.step + 1 == self.steps
            due = last or time.monotonic() - saved > self.config.runtime.checkpoint_every
            pack.signal, save = agreed(pack.signal, due or pack.signal)
            show = last or self.step % self.config.runtime.log_every == 0
            if save or show:
                row = self._row(loss, details)
                self._check(row["loss"], last_finite)
            if show:
                records.write(row)
            if save:
                records.sync()
                self._save(self.step + 1)
                saved = time.monotonic()
            self.step += 1
        if not self.steps:
            self._save(0)

    def _one_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self._report_bad(batch.bad)
        clock, parts = Clock(self.step, self.steps, self.batches.per_epoch), self.config.optim.accumulate
        schedule(self.optimizer, clock, self.config.optim)
        losses, details = list[Tensor](), dict[str, Tensor]()
        for part in zip(*(crops.chunk(parts, dim=1) for crops in batch.views), strict=True):
            views = [normalize(crops.flatten(0, 1), self.device).unflatten(0, crops.shape[:2]) for crops in part]
            with self._summed(last=len(losses) + 1 == parts):
                with torch.autocast(self.device.type, self.half, enabled=self.precision != "fp32"):
                    loss, details = self.network(views, clock)
                self.scaler.scale(loss / parts).backward()
            losses.append(loss.detach())
        self._update()
        self.method.after_step(clock)
        return torch.stack(losses).mean(), details

    def _summed(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let gradients be averaged over the ranks with the last micro-batch alone."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _update(self) -> None:
        if self.config.optim.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _row(self, loss: Tensor, details: dict[str, Tensor]) -> dict[str, Any]:
        """One line of metrics.jsonl, equal from run to run but for ``time``; means over ranks where they differ."""
        values = {"loss": loss, **details}
        means = (sum_over_ranks(torch.stack(list(values.values()))) / world_size()).tolist()
        shared = dict(zip(values, means, strict=True))
        return {
            "step": self.step + 1,
            "epoch": round((self.step + 1) / self.batches.per_epoch, 4),
            "loss": shared.pop("loss"),
            "lr": self.optimizer.param_groups[0]["lr"],
            **shared,
            **self.method.diagnose(),
            "bad_images": len(self._all_bad()),
            "time": {"seconds": round(self.seconds, 3)},
        }

    def _check(self, loss: float, last_finite: Tensor) -> None:
        if not math.isfinite(loss):
            step = -agreed(-int(last_finite))[0]  # the first rank to lose it
            raise RunError(
                f"run {run_id(self.config)}: the loss is {loss}; the last finite one was at step "
                f"{step + 1} of {self.steps}; an earlier checkpoint is kept in {self.folder}; "
                "try a smaller optim.lr or optim.precision=fp32",
                kind="nan",
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise RunError(
                f"run {run_id(self.config)}: at step {self.step + 1} of {self.steps} the gradients overflow fp16 even "
                f"at a loss scale of {self.scaler.get_scale():.3g}, so no step is taken; an earlier checkpoint is kept "
                f"in {self.folder}; try optim.precision=bf16 or fp32, or a smaller optim.lr",
                kind="nan",
            )

    def _save(self, step: int) -> None:
        progress = {
            "seconds": self.seconds,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "bad_images": sorted(self._all_bad()),
        }
        checkpoint.save(self.folder, self.config, step, self.method, self.optimizer, progress, self.scaler)

    def _resume(self) -> None:
        self.step, progress = checkpoint.restore(self.folder, self.config, self.method, self.optimizer, self.scaler)
        self.seconds, self.precision = progress["seconds"], progress["precision"]
        self.known_bad = set(progress["bad_images"])
        if progress["threads"] != torch.get_num_threads() and not rank():
            say(
                f"run {run_id(self.config)}: resumed with {torch.get_num_threads()} threads after "
                f"{progress['threads']}: the same run, but not to the last bit (runtime.threads={progress['threads']})"
            )

    def _report_bad(self, bad: dict[str, str]) -> None:
        for name, why in bad.items():
            if name not in self.known_bad | self.batches.said:
                say(f"{name}: image can't be read ({why}); the next one stands in for it")
        self.known_bad |= bad.keys()
        self.batches.said |= bad.keys()

    def _all_bad(self) -> set[str]:
        return set().union(*gathered(self.known_bad))

    def _environment(self) -> dict[str, Any]:
        return {
            "run_id": run_id(self.config),
            "group_id": group_id(self.config),
            "identity": versions(self.config),
            "started": now(),
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "packed": self.packed,
            "machine": machine(),
            **provenance(),
        }


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
    return chosen_precision(config.optim.precision, device)
