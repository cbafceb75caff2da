"""Signals that ask a run to stop: a scheduler's time limit or preemption, a person's kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

ASKED = (signal.SIGTERM, signal.SIGUSR2)  # USR2 is what Slurm is told to send before the time is up, as submitit does


class StopSignals:
    """While it is open, a signal to stop is only noted: ``number`` is 0, or that of the signal.

    Outside of the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in ASKED}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.number and kind is None:
            signal.raise_signal(self.number)  # it came when there was nothing left to stop: it is the caller's
