"""Runs that take turns in one process, so that each batch is made once for all that stand at its step."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from smog.data.sampler import Batch, Batches, loader
from smog.errors import AGAIN, StoppedError
from smog.identity import run_id
from smog.signals import StopSignals

if TYPE_CHECKING:
    from smog.training import Run

Course: TypeAlias = "Generator[Run, None, None]"


class Lines:
    """Standard error as if it were no terminal: the bars of several runs would write over each other."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def isatty(self) -> bool:
        """Say no: what asks prints lines then."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@dataclass(eq=False)
class Seat:
    """A run's place in a pack: how far its course has gone, and the state of the random numbers that it draws from."""

    number: int
    course: Course
    streams: tuple[Tensor, Tensor | None] | None = None
    run: Run = field(init=False)  # there as long as its course goes on


class Pack:
    """Runs side by side, each with the bits that it has alone. A run that is trained alone is a pack of one.

    A run is led along its course, a generator that yields the run wherever it waits for the others: when it is built,
    when it stands where it goes on from, before each batch, and after each step before that is saved.
    """

    batch: Batch  # of the runs whose turn it is

    def __init__(self, stop: StopSignals) -> None:
        self.stop, self.signal = stop, 0
        self.size = 0  # runs that were trained together, once all are built
        self.open, self.errors = list[Seat](), list[Exception | None]()

    @property
    def batches(self) -> Batches | None:
        """The batches that all runs share, once one of them has opened the images."""
        return next((seat.run.batches for seat in self.open if hasattr(seat, "run")), None)

    def train(self, courses: Sequence[Course]) -> list[Exception | None]:
        """Lead all runs to their ends; return why those that failed did. Raises StoppedError after a signal to stop."""
        self.open = [Seat(number, course) for number, course in enumerate(courses)]
        self.errors = [None] * len(courses)
        try:
            self._start()
            while self.open:
                self._go_on()
        except BaseException as error:
            for seat in self.open:
                with contextlib.suppress(BaseException):
                    seat.course.throw(error)
            raise
        return self.errors

    def _start(self) -> None:
        for seat in list(self.open):
            self._advance(seat)
        self.size = len(self.open)
        for seat in list(self.open):
            self._advance(seat)
        self.stop.patient = True
        for seat in list(self.open):
            self._advance(seat)
        self.lap = time.monotonic()

    def _go_on(self) -> None:
        """Go through the steps from the least on, up to one at which no run stands: those left are further on."""
        step, batches = self._batches()
        while takers := [seat for seat in self.open if seat.run.step == step]:
            self._step(takers, batches)
            step += 1

    def _batches(self) -> tuple[int, Iterator[Batch]]:
        runs = [seat.run for seat in self.open]  # not kept: those that leave must go
        step, stop = min(run.step for run in runs), max(run.steps for run in runs)
        return step, loader(runs[0].batches, step, stop, runs[0].config.runtime.workers)

    def _step(self, takers: list[Seat], batches: Iterator[Batch]) -> None:
        try:
            self.batch = next(batches)
        except Exception as error:
            for seat in takers:
                self._advance(seat, error)
            return
        share = self._seconds() / len(takers)
        for seat in takers:
            seat.run.seconds += share
        self._turns(takers)
        self.signal = self.stop.number  # looked at once, so that all are saved at the same step
        self._turns([seat for seat in takers if seat in self.open])
        if self.signal and self.open:
            runs = [seat.run for seat in self.open]
            where = [f"run {run_id(run.config)}: stopped at step {run.step} of {run.steps}" for run in runs]
            raise StoppedError(self.signal, f"{', '.join(where)}; {AGAIN}")

    def _turns(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            self._advance(seat)
            spent = self._seconds()
            if seat in self.open:
                seat.run.seconds += spent

    def _seconds(self) -> float:
        """Return the time since the last call: each moment is somebody's."""
        before, self.lap = self.lap, time.monotonic()
        return self.lap - before

    def _advance(self, seat: Seat, error: Exception | None = None) -> None:
        """Let a run go on to where it waits next, or fail with an error where it waits. One that ends or fails leaves,
        and the others go on."""
        _draw_from(seat.streams)
        try:
            seat.run = seat.course.throw(error) if error else next(seat.course)
            seat.streams = _streams()
        except StopIteration:
            self._leave(seat)
        except Exception as failure:
            self._leave(seat)
            self.errors[seat.number] = failure
            if len(self.errors) > 1:  # or the memory of what failed would be missing to the others
                traceback.clear_frames(failure.__traceback__)

    def _leave(self, seat: Seat) -> None:
        self.open.remove(seat)
        vars(seat).pop("run", None)


def _streams() -> tuple[Tensor, Tensor | None]:
    """Return the state of torch's generators, of which dropout and drop path draw."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _draw_from(streams: tuple[Tensor, Tensor | None] | None) -> None:
    """Put torch's generators back where a run left them; one that has not begun makes its own."""
    if streams:
        cpu, cuda = streams
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
