"""What a person sees of a run: a bar with loss, rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

LINE_EVERY = 10.0  # seconds between two plain lines


class Progress:
    """Progress of a run of ``steps`` steps that starts after step ``start``."""

    def __init__(self, steps: int, start: int, name: str) -> None:
        self.steps, self.start, self.name = steps, start, name
        self.began = self.printed = time.monotonic()
        self.bar = _bar() if sys.stderr.isatty() and steps else None

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.steps, completed=self.start, loss=0.0, rate=0.0)
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Show where the run stands; ``row`` is the line of metrics.jsonl."""
        step = row["step"]
        if self.bar:
            self.bar.update(self.task, completed=step, loss=row["loss"], rate=row["lr"])
        elif time.monotonic() - self.printed > LINE_EVERY or step == self.steps:
            self.printed = time.monotonic()
            left = (time.monotonic() - self.began) / (step - self.start) * (self.steps - step)
            print(
                f"{self.name} step {step}/{self.steps} epoch {row['epoch']:.2f} loss {row['loss']:.3f} "
                f"lr {row['lr']:.4f} left {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()


def _bar():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  lr {task.fields[rate]:.4f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def say(line: str) -> None:
    """Print one line for the person at the terminal, apart from results."""
    print(line, file=sys.stderr, flush=True)
