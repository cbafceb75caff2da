"""Where the rows of a run go: metrics.jsonl, the loggers, a person's terminal."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smog.distributed import rank
from smog.health import Watch
from smog.identity import run_id
from smog.loggers import Logger, open_loggers
from smog.progress import Progress
from smog.schema import Config
from smog.store import write_atomically


class MetricsLog:
    """metrics.jsonl. Opened at a step, it forgets what was written after that step, so a resumed run leaves the same
    lines as an uninterrupted one."""

    def __init__(self, path: Path, step: int) -> None:
        lines = [line for line in read_lines(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(path, lambda file: file.write(text.encode()))
        self.file = open(path, "a")  # noqa: SIM115 (closed by close)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; a reader sees it at once."""
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Put the lines on the disk: they must not be lost when the checkpoint after them is not."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Records:
    """All that the rows of a run go to."""

    def __init__(self, metrics: MetricsLog | None = None, others: Sequence[Logger | Progress | Watch] = ()) -> None:
        self.metrics, self.others = metrics, others

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row everywhere, to metrics.jsonl first."""
        for output in (self.metrics, *self.others):
            if output:
                output.write(row)

    def sync(self) -> None:
        """Put metrics.jsonl on the disk."""
        if self.metrics:
            self.metrics.sync()


@contextlib.contextmanager
def open_records(folder: Path, config: Config, step: int, steps: int) -> Iterator[Records]:
    """Open what the rows of a run go to, after ``step`` of ``steps`` steps. Only rank 0 writes any."""
    if rank():
        yield Records()
        return
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(contextlib.closing(MetricsLog(folder / "metrics.jsonl", step)))
        loggers = [
            stack.enter_context(contextlib.closing(logger))
            for logger in open_loggers(config.runtime.loggers, folder, config, step)
        ]
        progress = stack.enter_context(Progress(steps, step, run_id(config)))
        yield Records(metrics, [*loggers, progress, Watch(config.method, run_id(config))])


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics.jsonl; the last one may have been cut by a kill and is left out then."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
