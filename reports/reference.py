"""Published numbers, which stand beside ours and are never averaged with them nor marked best (design 10)."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from smog.errors import UsageError, nearest

FOLDER = Path(__file__).parent / "reference"
KINDS = {
    "reported": "by the authors of the method",
    "reproduced": "by a library, with its own code",
    "second-hand": "printed by others than its authors",
}
COLUMNS = (
    "task", "protocol", "method", "backbone", "pretrain_epochs", "pretrain_batch", "crops", "metric", "value", "source",
    "kind", "note",
)  # fmt: skip
TOLERANCE = 0.5  # points by which a number may miss a published one, beside its own interval: our choice


@dataclass(frozen=True)
class Published:
    """One number of others: percent or AP, where it was printed, and of what kind it is (``KINDS``)."""

    task: str
    protocol: str
    method: str
    backbone: str
    pretrain_epochs: str
    pretrain_batch: str
    crops: str
    metric: str
    value: float
    source: str
    kind: str
    note: str


@cache
def published(folder: Path = FOLDER) -> tuple[Published, ...]:
    """Return all rows of all files. Raises UsageError that names the file and line of one that lacks what it needs."""
    return tuple(row for path in sorted(folder.glob("*.csv")) for row in _read(path))


def _read(path: Path) -> list[Published]:
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{path} has the columns {reader.fieldnames}; expected: {', '.join(COLUMNS)}")
        return [_checked(row, f"{path}, line {reader.line_num}") for row in reader]


def _checked(row: dict[str, str], where: str) -> Published:
    if lacks := [name for name in ("task", "protocol", "method", "metric", "value", "source") if not row[name]]:
        raise UsageError(f"{where} lacks {', '.join(lacks)}: no number without its origin")
    if row["kind"] not in KINDS:
        raise UsageError(f"{where} has the kind {row['kind']!r}{nearest(row['kind'], KINDS)}")
    try:
        value = float(row["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where} has the value {row['value']!r}, no finite number")
    return Published(value=value, **{name: row[name] for name in COLUMNS if name != "value"})
