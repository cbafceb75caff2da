"""The one model of a table: its columns, rows and cells, and how a number becomes the text of a cell.

Computed once by reports/tables.py (grids) and reports/paper.py (tasks); reports/writers.py only draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from reports.stats import Measure, Paired, Summary, indistinct
from smog.identity import digest

MISSING = "--"
MINUS = "\u2212"
BOLD, SECOND = "best", "second"  # the marks that change how a number looks
Kind = Literal["reference", "baseline", "cell", "delta", "reported"]


@dataclass(frozen=True)
class Column:
    """A column: its key, its title, and the decimals that its error and its test set allow."""

    key: str
    title: str
    decimals: int = 0
    text: bool = False


@dataclass(frozen=True)
class Cell:
    """What is drawn at one place: text, its number in full, marks, notes, run ids.

    Marks: ``best`` (the highest mean, and with ``tie`` what can't be told from it), ``second``, ``incomplete``,
    ``missing``, ``reported`` (a number of others: never best).
    """

    text: str
    value: float | None = None
    marks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is, its drawn cells, its measures, its comparison to the baseline.

    ``point`` is its value on every axis of a grid; ``axis`` and ``value`` are the one axis along which it differs from
    the baseline, where there is such a one.
    """

    label: str
    kind: Kind
    axis: str | None
    value: Any
    point: dict[str, Any]
    cells: tuple[Cell, ...]
    measures: tuple[Measure, ...]
    comparison: Paired | None = None
    adjusted: float | None = None

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits over all that the row shows, and the values of every run behind it."""
        shown = [[cell.text, cell.value, cell.marks, cell.notes, cell.runs] for cell in self.cells]
        behind = [
            [m.task, m.protocol, m.metric, sorted(m.runs.items()), sorted(m.values.items())] for m in self.measures
        ]
        return digest([self.label, self.kind, shown, behind])


@dataclass(frozen=True)
class Table:
    """A table; ``missing`` counts planned results that the store lacks.

    ``name`` is that of its files. ``headline`` is the place of the measure that is compared and drawn.
    """

    grid: str
    id: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    headline: int
    planned: int
    missing: int

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Every note once, in the order of the cells that refer to them by number."""
        return tuple(dict.fromkeys(note for row in self.rows for cell in row.cells for note in cell.notes))

    def numbers(self, cell: Cell) -> tuple[int, ...]:
        """Return the numbers of a cell's notes, from 1."""
        return tuple(self.notes.index(note) + 1 for note in cell.notes)

    @property
    def draft(self) -> bool:
        """Whether something that was planned is missing."""
        return self.missing > 0

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits over the caption, the columns and all rows; every output carries them."""
        columns = [[column.key, column.title, column.decimals] for column in self.columns]
        return digest([self.title, self.caption, columns, [row.digest for row in self.rows]])


def measure_cell(one: Measure, digits: int, marks: tuple[str, ...], dropped: Sequence[str] = ()) -> Cell:
    """Return mean ± standard deviation; of what is incomplete n/N stands beside it, and it is never the best."""
    count = f" ({one.summary.n}/{len(one.runs)})" if one.missing else ""
    runs = tuple(one.runs[seed] for seed in one.values)
    notes = (*((f"{one.summary.n} of {len(one.runs)} results",) if one.missing else ()), *dropped)
    if not (one.runs or dropped):
        return Cell("")  # not missing: nobody planned it
    if one.summary.mean is None:
        return Cell(MISSING + count, None, ("missing",), notes)
    return Cell(
        _with_error(one.summary, digits) + count,
        one.summary.mean,
        ("incomplete",) if one.missing else marks,
        notes,
        runs,
    )


def marked(measures: Sequence[Measure], ranked: Sequence[bool]) -> list[tuple[str, ...]]:
    """Return the marks of one column: who is the best, tied with it, or second among those that are ranked.

    Bold is every entry whose paired interval to the highest mean contains 0. One seed decides nothing.
    """
    places = [place for place, one in enumerate(measures) if ranked[place] and one.values and not one.missing]
    marks: list[tuple[str, ...]] = [()] * len(measures)
    if len(places) < 2:  # nothing to be better than
        return marks
    in_order = sorted(places, key=lambda place: -(measures[place].summary.mean or 0.0))
    top = measures[in_order[0]]
    if top.summary.n < 2:
        return marks
    for place in in_order:
        if place == in_order[0] or indistinct(measures[place].values, top.values):
            marks[place] = (BOLD,) if place == in_order[0] else (BOLD, "tie")
    rest = next((place for place in in_order if not marks[place]), None)
    if rest is not None and measures[rest].summary.n > 1:
        marks[rest] = (SECOND,)
    return marks


def count_cell(one: Measure) -> Cell:
    """Return n, or n/N where results are missing."""
    return Cell(f"{one.summary.n}/{len(one.runs)}" if one.missing else str(one.summary.n), one.summary.n)


def difference_cell(pair: Paired, digits: int, planned: int) -> Cell:
    """Return a paired difference with its 95 % interval."""
    if pair.difference is None:
        return Cell(MISSING, marks=("missing",))
    interval = (
        "" if pair.low is None or pair.high is None else f" [{signed(pair.low, digits)}, {signed(pair.high, digits)}]"
    )
    fewer = pair.n < planned
    notes = [f"{pair.n} of {planned} seeds in common with the baseline"] if fewer else []
    if pair.n > 1 and pair.low is None:
        notes.append("the differences are all equal, so there is no t interval")
    text = signed(pair.difference, digits) + interval + (f" (n = {pair.n})" if fewer else "")
    return Cell(text, pair.difference, notes=tuple(notes))


def comparison_cells(row: Row, one: Measure, digits: int) -> list[Cell]:
    """Return n, the difference to the baseline and Holm's p."""
    pair = row.comparison
    if pair is None:
        return [count_cell(one), Cell(""), Cell("")]
    difference = difference_cell(pair, digits, len(one.runs))
    if pair.difference is None:
        return [count_cell(one), difference, difference]
    return [count_cell(one), difference, Cell(_p_text(row.adjusted), row.adjusted)]


def number(value: float, digits: int) -> str:
    """Return a number with a true minus and never a minus before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign."""
    return ("+" if round(value, digits) > 0 else "") + number(value, digits)


def _with_error(summary: Summary, digits: int) -> str:
    text = number(summary.mean or 0.0, digits)
    if summary.sd is None:
        return text
    # A spread that rounds to 0 would read as none at all, so it keeps its first digit.
    own = digits if not summary.sd or round(summary.sd, digits) else math.ceil(-math.log10(summary.sd))
    return f"{text} ± {number(summary.sd, own)}"


def _p_text(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def listed(seeds: Mapping[int, Any] | Sequence[int]) -> str:
    """Return seeds as text, ``0, 1, 2``."""
    return ", ".join(map(str, seeds))
