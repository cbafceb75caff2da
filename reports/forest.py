"""A figure for grids of many axes, or many named cells: the paired difference of each to the baseline, line by line."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.plots import BLUE, CROWD, GREY, INK, ORANGE, style
from reports.stats import paired
from reports.tables import Record, Row, Table, column_title

MANY = 4  # with more axes than this a panel an axis would fill pages, and names of cells several lines
HIGHEST = 300  # inches: matplotlib draws no more than 65,536 pixels


def suits(record: Record) -> bool:
    """Say whether a grid has so many axes, or named cells, that this figure shows it better than panels."""
    named = sum(1 for cell in record["cells"] if cell["axis"] is None and not cell["reference"])
    return (len(record["axes"]) > MANY or named > CROWD) and any(cell["baseline"] for cell in record["cells"])


def forest_figure(table: Table) -> Figure:
    """Draw, for each measure, every cell's difference to the baseline at the same seed: the seeds, their mean, and its
    paired 95 % t interval; the reference rows, in grey, beneath the cells."""
    [baseline] = [row for row in table.rows if row.kind == "baseline"]
    cells = [row for row in table.rows if row.kind == "cell"]
    rows = [*cells, *(row for row in table.rows if row.kind == "reference")]
    names = [_name(row) for row in rows]
    width = max(1.9, 0.3 + 0.06 * max(map(len, names), default=0)) + 2.3 * len(baseline.measures)
    height = min(0.8 + 0.17 * len(rows), HIGHEST)
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(baseline.measures), sharey=True, squeeze=False)[0]
        for place, ax in enumerate(axes):
            _draw(ax, rows, baseline, place)
        axes[0].set_yticks(range(len(rows)), names)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.legend(handles=_key(), loc="outside lower center", ncols=4, frameon=False, handlelength=1.5)
    return figure


def _name(row: Row) -> str:
    """Return ``key: value`` without the group that the key belongs to."""
    return f"{row.axis.rpartition('.')[2].replace('_', ' ')}: {row.label}" if row.axis else row.label


def _draw(ax: Axes, rows: Sequence[Row], baseline: Row, place: int) -> None:
    base = baseline.measures[place].values
    ax.axvline(0, color=ORANGE, lw=0.9, zorder=1)
    for y, row in enumerate(rows):
        own = row.measures[place].values
        pair = paired(own, base)
        if pair.difference is None:
            continue
        colour = GREY if row.kind == "reference" else BLUE
        if pair.low is not None and pair.high is not None and row.kind == "cell":
            ax.plot([pair.low, pair.high], [y, y], color=colour, lw=1.4, zorder=2, solid_capstyle="butt")
        seeds = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
        ax.plot(seeds, [y] * len(seeds), "o", ms=2.6, mfc="none", mec=INK, mew=0.6, zorder=4)
        ax.plot(pair.difference, y, "o", ms=4.5, color=colour, zorder=3)
    measure = baseline.measures[place]
    ax.set_xlabel(f"{column_title(measure.task, measure.metric)}, difference to the baseline")
    ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.5)
    ax.tick_params(axis="y", length=0)


def _key() -> list[Line2D]:
    return [
        Line2D([], [], marker="o", ls="none", ms=2.6, mfc="none", mec=INK, mew=0.6, label="one seed"),
        Line2D([], [], marker="o", ls="none", ms=4.5, color=BLUE, label="mean"),
        Line2D([], [], color=BLUE, lw=1.4, label="paired 95 % t interval"),
        Line2D([], [], marker="o", ls="none", ms=4.5, color=GREY, label="reference"),
    ]
