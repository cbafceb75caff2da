"""Signals that ask a run to stop: a scheduler's time limit or preemption, a person's kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from smog.errors import AGAIN, StoppedError

ASKED = (signal.SIGTERM, signal.SIGUSR2)  # USR2 is what Slurm is told to send before the time is up, as submitit does
GRACE = 60  # seconds that a helper process works on for a run that was told to stop


class StopSignals:
    """Takes the signals to stop while it is open; outside of the main thread, where Python allows no handlers, none.

    At first one ends the body with StoppedError. Once the body is ``patient`` it looks at ``number`` itself, which is
    0 or that of the signal, at moments when it can save.
    """

    def __init__(self) -> None:
        self.patient, self.number = False, 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._take) for number in ASKED}
        return self

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.patient:
            raise StoppedError(number, f"stopped; {AGAIN}")
        self.number = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.number and kind is None:
            signal.raise_signal(self.number)  # it came when there was nothing left to stop: it is the caller's


def outlive_signals(_: int = 0) -> None:
    """Let a helper process, such as one that makes views, live on when a signal goes to all processes of a run: the run
    needs it up to the step at which it stops. It ends with the run, or after a minute where the run ended it."""
    for number in ASKED:
        signal.signal(number, lambda *_: signal.alarm(GRACE))
