"""Fine-tuning of a detector: one loop for every engine, that can be killed anywhere and started again."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from smog import checkpoint
from smog.data.sampler import loader
from smog.distributed import agreed, rank, sum_over_ranks, world_size
from smog.errors import RunError
from smog.gradients import over_ranks
from smog.models import chosen_precision
from smog.pretrained import Pretrained, open_pretrained
from smog.processes import own_device
from smog.progress import say
from smog.records import read_lines
from smog.schema import Config
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
from transfer.watch import METRICS, Watch, close, inputs, not_finite


def of_run(folder: Path, config: Config, chosen: Detection) -> Found:
    """Fine-tune from a finished run; what remains of it beside the result lies in ``<run>/transfer/``."""
    return fine_tune(open_pretrained(folder), chosen, work_folder(folder, "coco", chosen))


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
    more = {
        "checkpoint": training.origin,
        "engine": {**training.detector.engine, "processes": world_size(), "precision": training.precision},
        "parity": training.detector.parity,
        "per_class": scores.per_class,
    }
    return Found(scores.metrics, inputs(chosen.fingerprint, train, val), more)


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
        self.precision = chosen_precision(chosen.precision, self.device)
        self.step, self.seconds = 0, 0.0

    def run(self) -> Scores:
        """Go on from the last checkpoint, or from the start, to the end; return the scores of the last step."""
        if any(agreed(checkpoint.exists(self.work))):
            self._resume()
        elif not rank():
            self.work.mkdir(parents=True, exist_ok=True)
            self.detector.describe(self.work)
        title = f"coco {self.origin['id'][:6]} {self.chosen.head} seed {self.chosen.seed}"
        with Watch(self.chosen, self.work, title, self.step) as watch:
            self._loop(watch)
            watch.trained()
            scores = self._evaluate(watch)
        if not rank():
            self._close()
        return scores

    def _loop(self, watch: Watch) -> None:
        samples = loader(self.batches, self.step, self.chosen.steps, self.chosen.workers)
        while self.step < self.chosen.steps:
            began = time.monotonic()
            losses = self._one_step(next(samples))
            self.step += 1
            self.seconds += time.monotonic() - began
            row, evaluate = functools.partial(self._row, losses), functools.partial(self._evaluate, watch)
            watch.after(self.step, row, evaluate, self._content)

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
            raise not_finite(self.work, self.step, self.chosen.steps, row["loss"])
        return row

    def _evaluate(self, watch: Watch) -> Scores:
        """Score the detector as it stands; the moving statistics that training goes on with are put back."""
        with self.detector.precise_statistics(self._precise_batches()):
            self.detector.eval()
            found = detect_all(self.detector, self.val, self.chosen)
        scores = score(self.val, found, self.chosen)
        ap = ", ".join(f"{name} {value:.2f}" for name, value in scores.metrics.items() if name.endswith("_ap"))
        watch.scored(scores.metrics, ap)
        self.last = found
        return scores

    def _precise_batches(self) -> Iterator[list[Sample]]:
        """Yield the first micro-batches of the epoch that would come next, with the random numbers of its steps."""
        count = -(-self.chosen.precise_bn // self.chosen.batch)
        start = -(-self.step // self.batches.per_epoch) * self.batches.per_epoch
        for step, samples in enumerate(loader(self.batches, start, start + count, self.chosen.workers), start):
            checkpoint.own_stream(self.chosen.seed, step)
            yield from self._parts(samples)

    def _content(self) -> dict[str, Any]:
        return {
            "protocol": protocol("coco", self.chosen),
            "step": self.step,
            "seconds": self.seconds,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

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
        from transfer.curves import write_curves
        from transfer.sheet import write_sheet

        write_sheet(self.work / "predictions.png", self.val, self.last)
        rows, names = list(read_lines(self.work / METRICS)), ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
        write_curves(self.work / "curves.png", rows, names, "AP (%)")
        close(self.work, ("optimizer",))
