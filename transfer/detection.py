"""Fine-tuning of a detector: one loop for every engine, that can be killed anywhere and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smog import checkpoint
from smog.data.sampler import loader
from smog.distributed import agreed, rank, sum_over_ranks, world_size
from smog.errors import AGAIN, RunError, StoppedError
from smog.gradients import over_ranks
from smog.models import fast_bf16
from smog.pretrained import Pretrained, open_pretrained
from smog.processes import own_device
from smog.progress import Progress, say
from smog.records import MetricsLog, read_lines
from smog.schema import Config
from smog.signals import StopSignals
from smog.tasks import protocol
from smog.tasks.result import Found
from smog.training import choose_device, make_deterministic
from transfer.coco_data import Dataset, check_pair
from transfer.data import open_data, score
from transfer.detector import Detector, build_detector
from transfer.evaluation import Scores
from transfer.inference import detect_all
from transfer.loader import Batches, Sample
from transfer.optim import build_optimizer
from transfer.parity import as_text
from transfer.protocols import Detection, work_folder

METRICS = "metrics.jsonl"


def of_run(folder: Path, config: Config, chosen: Detection) -> Found:
    """Fine-tune from a finished run; what remains of it beside the result lies in ``<run>/transfer/``."""
    return fine_tune(open_pretrained(folder), chosen, work_folder(folder, chosen))


def fine_tune(source: Pretrained, chosen: Detection, work: Path) -> Found:
    """Train a detector from a checkpoint, or go on where it was cut, and evaluate it.

    Raises UsageError where the checkpoint or the data do not fit, before anything is written; RunError where the
    converted network does not give the feature maps of its source, or the loss is not finite; StoppedError after a
    signal to stop.
    """
    data = {split: open_data(chosen, split) for split in ("train", "val")}
    check_pair(data["train"], data["val"])
    training = Training(source, chosen, data["train"], data["val"], work)
    if not rank():
        say(as_text(training.detector.parity))
    scores = training.run()
    return _found(training, scores)


def _found(training: Training, scores: Scores) -> Found:
    chosen, train, val = training.chosen, training.train, training.val
    inputs = {
        "data": chosen.fingerprint,
        "train": len(train.images),
        "val": len(val.images),
        "classes": train.classes,
        "notes": [*train.notes, *val.notes],
    }
    more = {
        "checkpoint": training.origin,
        "engine": {**training.detector.engine, "processes": world_size(), "precision": training.precision},
        "parity": training.detector.parity,
        "per_class": scores.per_class,
    }
    return Found(scores.metrics, inputs, more)


class Training:
    """A detector that is being trained, and all that its next step depends on."""

    def __init__(self, source: Pretrained, chosen: Detection, train: Dataset, val: Dataset, work: Path) -> None:
        self.chosen, self.train, self.val, self.work = chosen, train, val, work
        self.origin = source.origin
        self.device = own_device(choose_device(chosen.device))
        make_deterministic(self.device)
        self.batches = Batches(train, chosen)
        torch.manual_seed(chosen.seed)  # of the new parts, so that they are the same whatever the checkpoint
        self.detector: Detector = build_detector(source, chosen, len(train.classes))
        self.detector.to(self.device)
        self.optimizer = build_optimizer(self.detector, chosen)
        self.network = over_ranks(self.detector)
        self.precision = _precision(chosen, self.device)
        self.step, self.seconds = 0, 0.0

    def run(self) -> Scores:
        """Go on from the last checkpoint, or from the start, to the end; return the scores of the last step."""
        if any(agreed(checkpoint.exists(self.work))):
            self._resume()
        elif not rank():
            self.work.mkdir(parents=True, exist_ok=True)
            self.detector.describe(self.work)
        name = f"coco {self.origin['id'][:6]} {self.chosen.head} seed {self.chosen.seed}"
        with ExitStack() as opened:
            log = opened.enter_context(closing(MetricsLog(self.work / METRICS, self.step))) if not rank() else None
            stop = opened.enter_context(StopSignals())
            progress = opened.enter_context(Progress(self.chosen.steps, self.step, name)) if not rank() else None
            stop.patient = True
            self._loop(log, progress, stop)
            stop.patient = False  # all is saved: a signal may end the evaluation, which starts anew
            scores = self._evaluate(log)
        if not rank():
            self._close()
        return scores

    def _loop(self, log: MetricsLog | None, progress: Progress | None, stop: StopSignals) -> None:
        saved, chosen = time.monotonic(), self.chosen
        samples = loader(self.batches, self.step, chosen.steps, chosen.workers)
        while self.step < chosen.steps:
            began = time.monotonic()
            losses = self._one_step(next(samples))
            self.step += 1
            self.seconds += time.monotonic() - began
            last = self.step == chosen.steps
            due = last or time.monotonic() - saved > chosen.checkpoint_every
            number, save = agreed(stop.number, due or stop.number)
            show = last or self.step % chosen.log_every == 0
            if save or show:
                row = self._row(losses)  # or an error: what is not finite is not saved
            if show and log and progress:
                log.write(row)
                progress.write(row)
            if not last and self.step in self._looks():
                self._evaluate(log)
            if save:
                self._save(log)
                saved = time.monotonic()
            if number and not last:
                raise StoppedError(number, f"{self.work.name}: saved at step {self.step} of {chosen.steps}; {AGAIN}")

    def _looks(self) -> set[int]:
        """Return the steps after which the detector is evaluated for the curve."""
        count = self.chosen.evaluations
        return {round(self.chosen.steps * part / count) for part in range(1, count)}

    def _one_step(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Take one optimiser step; return the losses, means over the micro-batches."""
        checkpoint.own_stream(self.chosen.seed, self.step)  # for the sampling of regions: nothing to keep for a resume
        for group in self.optimizer.param_groups:
            group["lr"] = self.chosen.rate(self.step)
        parts = self._parts(samples)
        sums: dict[str, Tensor] = {}
        self.detector.train()
        for number, part in enumerate(parts, 1):
            with self._summed(last=number == len(parts)):
                with self._autocast():
                    losses = self.network(part)
                    total = torch.stack(list(losses.values())).sum()
                (total / len(parts)).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / len(parts)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    def _parts(self, samples: list[Sample]) -> list[list[Sample]]:
        """Return the micro-batches of this process."""
        size = self.batches.part // world_size()
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _summed(self, last: bool) -> AbstractContextManager[Any]:
        """Let gradients be averaged over the ranks with the last micro-batch alone."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _row(self, losses: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a line of metrics.jsonl, means over the ranks. Raises RunError where the loss is not finite."""
        means = (sum_over_ranks(torch.stack([loss.float() for loss in losses.values()])) / world_size()).tolist()
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.batches.per_epoch, 4),
            "loss": sum(means),
            "lr": self.chosen.rate(self.step - 1),
            **dict(zip(losses, means, strict=True)),
            "time": {"seconds": round(self.seconds, 3)},
        }
        if not abs(row["loss"]) < float("inf"):
            raise RunError(
                f"{self.work.name}: the loss is {row['loss']} at step {self.step} of {self.chosen.steps}; the "
                f"checkpoint before is kept in {self.work}; try a smaller lr or a longer warmup",
                kind="nan",
            )
        return row

    def _evaluate(self, log: MetricsLog | None) -> Scores:
        """Score the detector as it stands; the moving statistics that training goes on with are put back."""
        with self.detector.precise_statistics(self._precise_batches()):
            self.detector.eval()
            found = detect_all(self.detector, self.val, self.chosen)
        scores = score(self.val, found, self.chosen)
        if log and not self._is_logged():
            log.write({"step": self.step, **scores.metrics})
            ap = ", ".join(f"{name} {value:.2f}" for name, value in scores.metrics.items() if name.endswith("_ap"))
            say(f"step {self.step}/{self.chosen.steps}: {ap}")
        self.last = found
        return scores

    def _is_logged(self) -> bool:
        """Say whether the scores of this step stand in the log: those of the last step do after a kill behind them."""
        return any(row["step"] == self.step and "loss" not in row for row in read_lines(self.work / METRICS))

    def _precise_batches(self) -> Iterator[list[Sample]]:
        """Yield the first micro-batches of the epoch that would come next, with the random numbers of its steps."""
        count = -(-self.chosen.precise_bn // self.chosen.batch)
        start = -(-self.step // self.batches.per_epoch) * self.batches.per_epoch
        for step, samples in enumerate(loader(self.batches, start, start + count, self.chosen.workers), start):
            checkpoint.own_stream(self.chosen.seed, step)
            yield from self._parts(samples)

    def _save(self, log: MetricsLog | None) -> None:
        if not log:
            return
        log.sync()
        content = {
            "protocol": protocol("coco", self.chosen),
            "step": self.step,
            "seconds": self.seconds,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.write(self.work, content)

    def _resume(self) -> None:
        content = checkpoint.latest(self.work)
        try:
            self.detector.load_state_dict(content["detector"])
            if content["step"] < self.chosen.steps:
                self.optimizer.load_state_dict(content["optimizer"])
            self.step, self.seconds = content["step"], content["seconds"]
        except (KeyError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise RunError(f"{self.work} is of another version of the program ({why}); move it away") from None

    def _close(self) -> None:
        """Write the pictures and the curves, and drop what only further steps need."""
        from transfer.sheet import write_curves, write_sheet

        write_sheet(self.work / "predictions.png", self.val, self.last)
        write_curves(self.work / "curves.png", list(read_lines(self.work / METRICS)))
        content = checkpoint.read(self.work / checkpoint.FILE)
        checkpoint.write(self.work, {name: value for name, value in content.items() if name != "optimizer"})
        checkpoint.forget_previous(self.work)


def _precision(chosen: Detection, device: torch.device) -> str:
    if chosen.precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return chosen.precision
