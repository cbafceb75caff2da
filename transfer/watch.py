"""What follows every step of a fine-tuning, in whichever loop: rows, evaluations, checkpoints, and the stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from smog import checkpoint
from smog.distributed import agreed, rank
from smog.errors import AGAIN, RunError, StoppedError
from smog.progress import Progress, say
from smog.records import MetricsLog, read_lines
from smog.signals import StopSignals

METRICS = "metrics.jsonl"
Row = dict[str, Any]


class Followed(Protocol):
    """The settings that it goes by."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    checkpoint_every: float
    log_every: int
    evaluations: int


class Watch:
    """Open over a training; ``after`` is called behind every step, by all ranks. Rank 0 writes."""

    def __init__(self, chosen: Any, work: Path, title: str, step: int) -> None:
        self.chosen: Followed = chosen
        self.work, self.title, self.step = work, title, step
        self.log: MetricsLog | None = None
        self.progress: Progress | None = None
        self.stop = StopSignals()
        self.saved = time.monotonic()
        self.opened = ExitStack()

    def __enter__(self) -> Watch:
        if not rank():
            self.log = self.opened.enter_context(closing(MetricsLog(self.work / METRICS, self.step)))
        self.opened.enter_context(self.stop)
        if not rank():
            self.progress = self.opened.enter_context(Progress(self.chosen.steps, self.step, self.title))
        self.stop.patient = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.opened.__exit__(kind, error, trace)

    def after(self, step: int, row: Callable[[], Row], evaluate: Callable[[], Any], content: Callable[[], Row]) -> None:
        """Do what is due: ``row`` gives the line of the log, or an error; ``content`` that of a checkpoint.

        Raises StoppedError after a signal to stop, once all is saved.
        """
        self.step, steps = step, self.chosen.steps
        last = step == steps
        due = last or time.monotonic() - self.saved > self.chosen.checkpoint_every
        number, save = agreed(self.stop.number, due or self.stop.number)
        show = last or step % self.chosen.log_every == 0
        if save or show:
            values = row()  # first: what is not finite is not saved
            if show and self.log and self.progress:
                self.log.write(values)
                self.progress.write(values)
        if not last and step in self._looks():
            evaluate()
        if save:
            if self.log:
                self.log.sync()
                checkpoint.write(self.work, content())
            self.saved = time.monotonic()
        if number and not last:
            raise StoppedError(number, f"{self.work.name}: saved at step {step} of {steps}; {AGAIN}")

    def trained(self) -> None:
        """Say that all is saved: a signal may end the evaluation, which starts anew."""
        self.stop.patient = False

    def scored(self, metrics: Mapping[str, float], headline: str) -> None:
        """Write the figures of an evaluation, once: those of the last step stand there after a kill behind them."""
        rows = read_lines(self.work / METRICS) if self.log else ()
        if self.log and not any(row["step"] == self.step and "loss" not in row for row in rows):
            self.log.write({"step": self.step, **metrics})
            say(f"step {self.step}/{self.chosen.steps}: {headline}")

    def _looks(self) -> set[int]:
        """Return the steps after which there is an evaluation for the curve."""
        count = self.chosen.evaluations
        return {round(self.chosen.steps * part / count) for part in range(1, count)}


def inputs(fingerprint: str, train: Any, val: Any, more: Sequence[str] = ()) -> Row:
    """Return what a result says of its data; both have ``images``, ``classes`` and ``notes``, ``more`` are of both."""
    return {
        "data": fingerprint,
        "train": len(train.images),
        "val": len(val.images),
        "classes": train.classes,
        "notes": [*train.notes, *val.notes, *more],
    }


def not_finite(work: Path, step: int, steps: int, loss: float) -> RunError:
    """Return the error of a training that has diverged."""
    return RunError(
        f"{work.name}: the loss is {loss} at step {step} of {steps}; the checkpoint before is kept in {work}; try a "
        "smaller lr or a longer warmup",
        kind="nan",
    )


def close(work: Path, unneeded: tuple[str, ...]) -> None:
    """Drop what only further steps need from a finished training's checkpoint."""
    content = checkpoint.read(work / checkpoint.FILE)
    checkpoint.write(work, {name: value for name, value in content.items() if name not in unneeded})
    checkpoint.forget_previous(work)
