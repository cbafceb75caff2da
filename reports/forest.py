"""A figure for grids of many axes, or many named cells: the paired difference of each to the baseline, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports import fonts
from reports.metric import CROWD
from reports.panels import arrange, name_places, new_axes, plain_numbers
from reports.plots import BLUE, GREY, INK, ORANGE, style
from reports.stats import paired
from reports.tables import Record, Row, Table, column_title

SEED: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 2.4, "mfc": "none", "mec": INK, "mew": 0.5, "zorder": 4}
MEAN: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 4, "zorder": 3}
MANY = 4  # with more axes than this a panel an axis would fill pages, and names of cells several lines
MOST = 60  # lines that can be read on a page; of more cells the highest and the lowest are drawn
MOST_REFERENCES = 10
ROW = 0.135  # inches
NAMES, PANEL = 0.45, 1.25  # the part of the width that names may take; inches that a panel needs


def suits(record: Record) -> bool:
    """Say whether a grid has so many axes, or named cells, that this figure shows it better than panels."""
    named = sum(1 for cell in record["cells"] if cell["axis"] is None and not cell["reference"])
    long = any(len(values) > MOST for values in record["axes"].values())
    return (len(record["axes"]) > MANY or named > CROWD or long) and any(cell["baseline"] for cell in record["cells"])


def lines_of(table: Table) -> tuple[list[Row], int]:
    """Return the rows that are drawn, and how many cells are not: those between the highest and the lowest."""
    baseline, place = _baseline(table), table.headline
    cells = [row for row in table.rows if row.kind == "cell"]
    references = [row for row in table.rows if row.kind == "reference"][:MOST_REFERENCES]
    if len(cells) <= MOST:
        return [*cells, *references], 0
    base = baseline.measures[place].values
    found = [(pair.difference, row) for row in cells
             if (pair := paired(row.measures[place].values, base)).difference is not None]  # fmt: skip
    found.sort(key=lambda one: -one[0])
    half = MOST // 2
    shown = found if len(found) <= MOST else [*found[:half], *found[-half:]]
    return [*(row for _, row in shown), *references], len(cells) - len(shown)


def _baseline(table: Table) -> Row:
    [baseline] = [row for row in table.rows if row.kind == "baseline"]
    return baseline


def forest_figure(table: Table) -> Figure:
    """Draw, for each measure, every cell's difference to the baseline at the same seed: the seeds, their mean, and its
    paired 95 % t interval; the reference rows, in grey, beneath the cells."""
    rows, left = lines_of(table)
    with style() as venue:
        size = mpl.rcParams["ytick.labelsize"]
        names = [fonts.fitted(_name(row), NAMES * venue.text, size) for row in rows]
        places = _places(table, venue.text - max((fonts.width(name, size) for name in names), default=0))
        figure = Figure(figsize=(venue.text, 1))
        axes = new_axes(figure, len(places))
        for ax, place in zip(axes, places, strict=True):
            _draw(ax, rows, _baseline(table), place)
            name_places(ax.yaxis, range(len(rows)), names if place == places[0] else [""] * len(rows))
            ax.set_ylim(len(rows) - 0.4, -0.6)
            if left and len(rows) > MOST // 2:
                ax.axhline(MOST // 2 - 0.5, color=GREY, lw=0.8, ls=(0, (1, 2)))
        arrange(figure, axes, len(places), ROW * max(len(rows), 3), _key(table, rows, places), grid="x")
    return figure


def _places(table: Table, room: float) -> list[int]:
    """Return the measures that have room beside each other, the grid's own metric among them."""
    places = list(range(len(table.rows[0].measures)))
    most = max(1, int(room / PANEL))
    by_rank = [table.headline, *(place for place in places if place != table.headline)]
    return sorted(by_rank[:most])


def forest_words(table: Table) -> str:
    """Return what the marks of the figure mean."""
    rows, left = lines_of(table)
    several = any(len(one.values) > 1 for row in rows for one in row.measures)
    words = "Difference of each cell to the baseline (the orange line) at the same seed: every seed as an open circle"
    words += ", their mean as a dot, its paired 95 % t interval as a bar" if several else ""
    words += "; references in grey, without an interval" if any(row.kind == "reference" for row in rows) else ""
    if left:
        drawn = sum(row.kind == "cell" for row in rows)
        words += (
            f". Drawn are {drawn} of {drawn + left} cells, by the grid's metric the highest {MOST // 2} and the lowest"
        )
        words += f" {MOST // 2}, a dotted line between" if drawn == MOST else ", those that have a result"
    return f"{words}. The table has all numbers."


def _name(row: Row) -> str:
    """Return ``key: value`` without the group that the key belongs to."""
    return f"{row.axis.rpartition('.')[2].replace('_', ' ')}: {row.label}" if row.axis else row.label


def _draw(ax: Axes, rows: Sequence[Row], baseline: Row, place: int) -> None:
    base = baseline.measures[place].values
    pairs = [paired(row.measures[place].values, base) for row in rows]
    ax.axvline(0, color=ORANGE, lw=0.9, zorder=1)
    for colour, references in ((BLUE, False), (GREY, True)):
        own = [(y, row.measures[place].values, pair) for y, (row, pair) in enumerate(zip(rows, pairs, strict=True))
               if (row.kind == "reference") == references]  # fmt: skip
        bars = [
            (y, one.low, one.high)
            for y, _, one in own
            if one.low is not None and one.high is not None and not references
        ]
        ax.add_collection(LineCollection([[(low, y), (high, y)] for y, low, high in bars], colors=colour, lw=1.4))
        seeds = [(one[seed] - base[seed], y) for y, one, _ in own for seed in sorted(one.keys() & base.keys())]
        means = [(pair.difference, y) for y, _, pair in own if pair.difference is not None]
        for dots, look in ((seeds, SEED), (means, MEAN | {"color": colour})):
            ax.plot([x for x, _ in dots], [y for _, y in dots], **look)
    for y, pair in enumerate(pairs):
        if pair.difference is None:
            ax.text(0.99, y, "missing", transform=ax.get_yaxis_transform(), ha="right", va="center", color=GREY,
                    fontsize=5)  # fmt: skip
    measure = baseline.measures[place]
    plain_numbers(ax.xaxis)
    ax.set_xlabel(f"Δ {column_title(measure.task, measure.metric)}")


def _key(table: Table, rows: Sequence[Row], places: Sequence[int]) -> list[Line2D]:
    base = _baseline(table).measures
    pairs = [paired(row.measures[at].values, base[at].values) for row in rows if row.kind == "cell" for at in places]
    marks = [Line2D([], [], **SEED, label="one seed"), Line2D([], [], **MEAN, color=BLUE, label="mean")]
    if any(pair.low is not None for pair in pairs):
        marks.append(Line2D([], [], color=BLUE, lw=1.4, label="paired 95 % t interval"))
    if any(row.kind == "reference" for row in rows):
        marks.append(Line2D([], [], **MEAN, color=GREY, label="reference"))
    return [*marks, Line2D([], [], color=ORANGE, lw=0.9, label="baseline")]
