"""What runs logged, read from each run's metrics.jsonl: first how much it is, the numbers when a figure is drawn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from reports.metric import MARKS, full_name
from reports.tables import Row, Table
from smog.errors import UsageError

MANY = 12  # cells; of more only the baseline, the best and the worst are told apart
POINTS, FEWEST = 300, 24  # of a line: at most; as few as this where there are many lines
BUDGET = 7000  # points of a figure: its SVG stays below 200 kB
Point = dict[str, float]


@dataclass(frozen=True)
class Log:
    """What one run logged, as long as it was when the report began: lines, the digest of their bytes, their keys."""

    run: str
    path: Path
    size: int
    lines: int
    digest: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Course:
    """The logs of one cell of a grid, a log a seed; ``mean`` is the cell's in the grid's metric."""

    label: str
    kind: str
    mean: float | None
    logs: tuple[Log, ...]


def read_logs(store: Path, table: Table) -> list[Course]:
    """Return for each cell what its runs logged; cells whose runs logged nothing (0 epochs) are left out."""
    several = len({row.axis for row in table.rows if row.axis}) > 1
    courses = []
    for row in table.rows:
        runs = row.measures[table.headline].runs if row.kind in (*MARKS, "reference") else {}
        logs = [log for run in runs.values() if (log := _read_log(store / run / "metrics.jsonl"))]
        if logs:
            label = full_name(row) if several else row.label
            courses.append(Course(label, row.kind, _mean(row, table.headline), tuple(logs)))
    return courses


def _mean(row: Row, place: int) -> float | None:
    return row.measures[place].summary.mean


def _read_log(path: Path) -> Log | None:
    """Return what is known of a log without reading its numbers; a last line that is not whole yet does not count."""
    content = path.read_bytes() if path.is_file() else b""
    content = content[: content.rfind(b"\n") + 1]
    if not content.strip():
        return None
    first, _, rest = content.partition(b"\n")
    ends = [_parsed(line, path) for line in {first, rest.rpartition(b"\n")[0].rpartition(b"\n")[2] or first}]
    keys = dict.fromkeys(name for line in ends for name, value in line.items() if _number(value))
    lines, digest = content.count(b"\n"), hashlib.sha256(content).hexdigest()[:12]
    return Log(path.parent.name, path, len(content), lines, digest, tuple(sorted(keys)))


def _parsed(line: bytes, path: Path) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path} has a line that is no JSON ({error}); run the command again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} has a line that is no JSON object; run the command again")
    return found


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points_of(log: Log, stride: int = 1) -> list[Point]:
    """Return every ``stride``-th line of a log, and the last one; of each its numbers."""
    with log.path.open("rb") as file:
        lines = file.read(log.size).splitlines()
    chosen = [*lines[:-1:stride], lines[-1]]
    found = [{name: value for name, value in _parsed(line, log.path).items() if _number(value)} for line in chosen]
    return [point for point in found if "epoch" in point]


def stride_of(courses: Sequence[Course], panels: int) -> int:
    """Return which part of the lines is drawn, so that all curves together stay readable, and their files small."""
    most = max(log.lines for course in courses for log in course.logs)
    curves = sum(1 + len(course.logs) for course in courses) if len(courses) <= MANY else len(courses)
    points = min(POINTS, max(FEWEST, BUDGET // (curves * panels)))
    return max(1, math.ceil(most / points))


class Reader:
    """Reads the points of logs for several figures once; what the last figure has read is forgotten."""

    def __init__(self, courses: Sequence[Course], *panels: Sized) -> None:
        self.stride = stride_of(courses, max(map(len, panels)))
        self._figures, self._kept = len(panels), dict[Log, list[Point]]()

    def __call__(self, log: Log) -> list[Point]:
        """Return the points of a log."""
        if log in self._kept:
            return self._kept.pop(log)
        points = points_of(log, self.stride)
        if self._figures > 1:
            self._kept[log] = points
        return points
