"""The figure of a grid: each measure over each axis, or over the cells by name, with every seed as a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from reports import fonts
from reports.panels import arrange, name_places, new_axes
from reports.plots import BLUE, GREY, INK, ORANGE, PAPER, style
from reports.tables import UNRANKED, Record, Row, Table, column_title

WIDE = 20  # from this span on, numbers stand on a logarithmic axis
CROWD = 6  # with more names than this a panel takes the whole width
MOST_PANELS = 12  # of more measures and axes only the grid's own metric is drawn
HEIGHT = 1.45  # inches of a panel
LONGEST = 30  # letters of a name
FIRST, STEP, FARTHEST = 5.0, 3.5, 26.0  # points that the seeds stand aside of their mean
MARKS = {"baseline": "D", "cell": "o"}


@dataclass(frozen=True)
class Panel:
    """What one panel shows: a measure (by its place in the rows) over one axis of the grid."""

    place: int
    title: str
    axis: str
    rows: tuple[Row, ...]
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether the values are positive numbers that span more than WIDE times, and so need a log axis."""
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(numbers) == len(self.values) > 1 and min(numbers) > 0 and max(numbers) > WIDE * min(numbers)

    @property
    def names(self) -> list[str]:
        """What stands beneath each value: of a cell its label, where there is room in a line for each axis."""
        if self.axis == "cell" and len(self.values) <= CROWD:
            return ["\n".join(fonts.legible(part, LONGEST) for part in _parts(value)) for value in self.values]
        return [fonts.legible(value, LONGEST) for value in self.values]

    @property
    def crowded(self) -> bool:
        """Whether half the width is too little for the names."""
        length = sum(len(max(name.split("\n"), key=len)) for name in self.names)
        return not self.numeric and (len(self.values) > CROWD or (self.axis == "cell" and length > 36))

    @property
    def positions(self) -> list[float]:
        """Where each value stands on the x-axis."""
        return [float(value) for value in self.values] if self.numeric else [float(x) for x in range(len(self.values))]


def _parts(label: str) -> list[str]:
    *heads, last = label.split(", ")
    return [*(f"{head}," for head in heads), last]


def metric_figure(table: Table, record: Record) -> Figure:
    """Draw each measure over each axis: every seed, the mean, its t interval, and the reference rows as lines."""
    panels = panels_of(table, record)
    with style() as venue:
        most = 3 if len(panels) == 3 and all(panel.numeric for panel in panels) else 2  # names need more room
        across = 1 if any(panel.crowded for panel in panels) else min(most, venue.across(len(panels)))
        alone = len(panels) == 1 and not panels[0].crowded
        figure = Figure(figsize=(venue.column if alone else venue.text, 1))
        axes = new_axes(figure, len(panels))
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel)
            references = [row for row in table.rows if row.kind == "reference" and _comparable(row, panel.place)]
            _draw_references(ax, references, panel.place)
        arrange(figure, axes, across, HEIGHT, _key(table))
    return figure


def metric_words(table: Table, record: Record) -> str:
    """Return what the marks of the figure mean."""
    measures = _measures(table)
    parts = ["Every seed as an open mark"]
    parts += ["their mean as a filled one"] if any(one.summary.n > 1 for one in measures) else []
    parts += ["its 95 % t interval as a bar"] if any(one.summary.low is not None for one in measures) else []
    words = _listed(parts)
    words += "; the baseline as a diamond in orange" if any(row.kind == "baseline" for row in table.rows) else ""
    words += "; reference rows as dashed lines" if any(row.kind == "reference" for row in table.rows) else ""
    if any(one.summary.n > 1 and one.missing for one in measures):
        words += "; a mean of fewer seeds than planned is hollow"
    if len({panel.place for panel in panels_of(table, record)}) < len(table.rows[0].measures):
        words += "; the grid's own metric alone, the others are in the table"
    return f"{words}. The numbers are those of the table."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _measures(table: Table) -> list[Any]:
    return [one for row in table.rows if row.kind in MARKS for one in row.measures]


def _key(table: Table) -> list[Line2D]:
    """Return what explains the marks, and only those that the figure has."""
    measures = _measures(table)
    dot: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 4.5, "mec": BLUE}
    marks = [Line2D([], [], **dot | {"ms": 3, "mfc": "none", "mew": 0.7}, label="one seed")]
    if any(one.summary.n > 1 for one in measures):
        marks.append(Line2D([], [], **dot, mfc=BLUE, label="mean"))
    if any(one.summary.n > 1 and one.missing for one in measures):
        marks.append(Line2D([], [], **dot, mfc=PAPER, label="mean, results missing"))
    if any(one.summary.low is not None for one in measures):
        marks.append(Line2D([], [], color=BLUE, lw=1.4, label="95 % t interval of the mean"))
    if any(row.kind == "baseline" for row in table.rows):
        marks.append(Line2D([], [], **dot | {"mec": ORANGE, "marker": "D"}, mfc=ORANGE, label="baseline"))
    return marks


def panels_of(table: Table, record: Record) -> list[Panel]:
    """Return what the figure draws: all measures over all axes, of too many the grid's own metric alone."""
    rows = [row for row in table.rows if row.kind in MARKS]
    axes = list(record["axes"]) if record["mode"] == "one_factor" else []
    along = [(axis, *_along(axis, rows, record)) for axis in axes]
    if any(row.axis is None and row.kind == "cell" for row in rows):  # what lies on no axis stands by its label
        named = [row for row in rows if row.axis is None or row.kind == "baseline"]
        along.append(("cell", named, [full_name(row) for row in named]))
    panels = [
        Panel(place, column_title(one.task, one.metric), axis, tuple(shown), tuple(values))
        for place, one in enumerate(rows[0].measures)
        for axis, shown, values in along
    ]
    return panels if len(panels) <= MOST_PANELS else [panel for panel in panels if panel.place == table.headline]


def full_name(row: Row) -> str:
    """Return a row's label with the last part of its axis."""
    return row.label if row.axis is None else f"{row.axis.rpartition('.')[2]} {row.label}"


def _along(axis: str, rows: Sequence[Row], record: Record) -> tuple[list[Row], list[Any]]:
    """Return the rows of one axis with their values, in the axis' order; a shared baseline stands at its own value."""
    order = list(record["axes"][axis])
    own = [(row.value if row.axis == axis else record["baseline"].get(axis), row) for row in rows
           if row.axis == axis or (row.axis is None and row.kind == "baseline")]  # fmt: skip
    own.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
    return [row for _, row in own], [value for value, _ in own]


def _draw_panel(ax: Axes, panel: Panel) -> None:
    if panel.numeric:
        ax.set_xscale("log")
        edge = (max(panel.positions) / min(panel.positions)) ** 0.09
        ax.set_xlim(min(panel.positions) / edge, max(panel.positions) * edge**2.5)
    else:
        ax.set_xlim(-0.5, len(panel.values) - 0.25)
    draw_cells(ax, panel.positions, panel.rows, panel.place)
    if panel.numeric:
        means = [row.measures[panel.place].summary.mean for row in panel.rows]
        line = [(x, mean) for x, mean in zip(panel.positions, means, strict=True) if mean is not None]
        ax.plot([x for x, _ in line], [mean for _, mean in line], color=BLUE, lw=0.8, alpha=0.5, zorder=2)
    name_places(ax.xaxis, panel.positions, panel.names)
    ax.set_xlabel(fonts.legible(panel.axis))
    ax.set_ylabel(panel.title)
    ax.autoscale_view(scalex=False)


def draw_cells(ax: Axes, positions: Sequence[float], rows: Sequence[Row], place: int) -> None:
    """Draw the seeds, means and intervals of cells at their places: one line of marks for each kind of mark."""
    pairs = list(zip(positions, (row.measures[place] for row in rows), strict=True))
    for x, one in pairs:
        if one.summary.mean is None:
            ax.text(x, 0.02, "missing", transform=ax.get_xaxis_transform(), ha="center", color=GREY, fontsize=6)
    for kind, mark in MARKS.items():
        own = [(x, one) for (x, one), row in zip(pairs, rows, strict=True) if row.kind == kind and one.values]
        if own:
            _draw_kind(ax, own, ORANGE if kind == "baseline" else BLUE, mark)


def _draw_kind(ax: Axes, cells: Sequence[tuple[float, Any]], colour: str, mark: str) -> None:
    bars = [(x, one.summary) for x, one in cells if one.summary.low is not None]
    ax.vlines([x for x, _ in bars], [one.low for _, one in bars], [one.high for _, one in bars], colour, lw=1.4)
    ax.update_datalim([(x, value) for x, one in cells for value in one.values.values()])  # what stands aside counts not
    most = max(len(one.values) for _, one in cells)
    for number in range(most):
        seeds = [(x, one.values[sorted(one.values)[number]]) for x, one in cells if len(one.values) > number]
        away = FIRST + min(STEP, (FARTHEST - FIRST) / most) * number if most > 1 else 0
        aside = ScaledTranslation(away / 72, 0, ax.figure.dpi_scale_trans)
        ax.plot([x for x, _ in seeds], [value for _, value in seeds], mark, ms=3 if mark == "o" else 2.6,
                mfc="none", mec=colour, mew=0.7, transform=ax.transData + aside, zorder=3)  # fmt: skip
    for hollow in (False, True):
        means = [(x, one.summary.mean) for x, one in cells if one.summary.n > 1 and (one.missing > 0) == hollow]
        if means:
            ax.plot([x for x, _ in means], [mean for _, mean in means], mark, ms=4.5 if mark == "o" else 4,
                    mec=colour, mfc=PAPER if hollow else colour, zorder=4)  # fmt: skip


def _comparable(row: Row, place: int) -> bool:
    """Say whether a reference is worth a line: the RankMe of raw pixels would leave the cells no room."""
    return row.measures[place].task not in UNRANKED


def _draw_references(ax: Axes, rows: Sequence[Row], place: int) -> None:
    means = ((row.measures[place].summary.mean, row.label) for row in rows)
    found = sorted((mean, label) for mean, label in means if mean is not None)
    for mean, _ in found:
        ax.axhline(mean, color=GREY, lw=0.8, ls=(0, (4, 2)), zorder=1)
    low, high = ax.get_ylim()
    for number, (mean, label) in enumerate(found):
        below = number + 1 < len(found) and found[number + 1][0] - mean < 0.12 * (high - low)
        ax.annotate(
            fonts.legible(label), (0.995, mean), xycoords=ax.get_yaxis_transform(), xytext=(0, -1.5 if below else 1),
            textcoords="offset points", ha="right", va="top" if below else "bottom", color=INK, fontsize=5.5,
        )  # fmt: skip
    ax.set_ylim(low - 0.06 * (high - low), high)
