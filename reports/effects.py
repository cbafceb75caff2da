"""Grids that cross three or more axes: a panel an axis, every cell's mean, and the mean over all other axes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports import fonts
from reports.metric import HEIGHT, MOST_PANELS
from reports.panels import arrange, name_places, new_axes
from reports.plots import BLUE, GREY, ORANGE, style
from reports.tables import Record, Row, Table, column_title

LONGEST = 18  # letters of a name
FEW = 6  # so few cells are better told by their names
HEAVY = 600  # points of a panel; of more the SVG holds a picture


def suits(record: Record) -> bool:
    """Say whether a grid crosses three or more axes and has more cells than can be named."""
    return record["mode"] == "factorial" and len(record["axes"]) > 2 and len(record["cells"]) > FEW


def effects_figure(table: Table, record: Record) -> Figure:
    """Draw each measure over each axis; of too many panels those of the grid's own metric."""
    panels = _panels(table, record)
    rows = crossed(table, record)
    with style() as venue:
        across = venue.across(len(record["axes"]))
        figure = Figure(figsize=(venue.text, 1))
        axes = new_axes(figure, len(panels))
        for ax, (place, axis) in zip(axes, panels, strict=True):
            _draw(ax, record, rows, place, axis)
        arrange(figure, axes, across, HEIGHT, _key(rows))
    return figure


def _panels(table: Table, record: Record) -> list[tuple[int, str]]:
    """Return (place of a measure, axis) of each panel; as many axes as there is room for."""
    places = range(len(table.rows[0].measures))
    if len(places) * len(record["axes"]) > MOST_PANELS:
        places = range(table.headline, table.headline + 1)
    return [(place, axis) for place in places for axis in list(record["axes"])[:MOST_PANELS]]


def crossed(table: Table, record: Record) -> list[Row]:
    """Return the rows that lie on all axes."""
    rows = [row for row in table.rows if row.kind in ("baseline", "cell") and row.point.keys() == record["axes"].keys()]
    return [row for row in rows if row.kind == "baseline" or row.point != record["baseline"]]


def means_along(record: Record, rows: Sequence[Row], place: int, axis: str) -> list[list[float]]:
    """Return for each value of an axis the means of the cells that have it."""
    found: dict[str, list[float]] = {str(value): [] for value in record["axes"][axis]}
    for row in rows:
        mean = row.measures[place].summary.mean
        if mean is not None and str(row.point[axis]) in found:
            found[str(row.point[axis])].append(mean)
    return list(found.values())


def _draw(ax: Axes, record: Record, rows: Sequence[Row], place: int, axis: str) -> None:
    names = [fonts.legible(value, LONGEST) for value in record["axes"][axis]]
    means = means_along(record, rows, place, axis)
    ax.set_xlim(-0.5, len(names) - 0.25)
    dots = [(x, mean) for x, own in enumerate(means) for mean in own]
    if dots:
        ax.plot([x + 0.16 for x, _ in dots], [mean for _, mean in dots], "o", ms=2.2, mec=BLUE, mfc="none", mew=0.5,
                alpha=0.7, rasterized=len(dots) > HEAVY)  # fmt: skip
    over = [(x, statistics.fmean(own)) for x, own in enumerate(means) if own]
    ax.plot([x for x, _ in over], [mean for _, mean in over], "o-", color=BLUE, ms=4.5, lw=0.9, zorder=3)
    for row in rows:
        mean, value = row.measures[place].summary.mean, str(row.point[axis])
        values = [str(one) for one in record["axes"][axis]]
        if row.kind == "baseline" and mean is not None and value in values:
            ax.plot(values.index(value) + 0.16, mean, "D", ms=3, color=ORANGE, zorder=4)
    for x, own in enumerate(means):
        if not own:
            ax.text(x, 0.02, "missing", transform=ax.get_xaxis_transform(), ha="center", color=GREY, fontsize=6)
    name_places(ax.xaxis, range(len(names)), names)
    ax.set_xlabel(fonts.legible(axis))
    ax.set_ylabel(column_title(rows[0].measures[place].task, rows[0].measures[place].metric))


def _key(rows: Sequence[Row]) -> list[Line2D]:
    marks = [
        Line2D([], [], marker="o", ls="-", ms=4.5, lw=0.9, color=BLUE, label="mean over the other axes"),
        Line2D([], [], marker="o", ls="none", ms=2.2, mec=BLUE, mfc="none", mew=0.5, label="mean of one cell"),
    ]
    if any(row.kind == "baseline" for row in rows):
        marks.append(Line2D([], [], marker="D", ls="none", ms=3, color=ORANGE, label="baseline"))
    return marks


def effects_words(table: Table, record: Record) -> str:
    """Return what the marks of the figure mean."""
    rows, panels = crossed(table, record), _panels(table, record)
    words = "A panel an axis: the mean of each cell as an open circle, their mean over all other axes as a dot"
    words += "; the baseline as a diamond in orange" if any(row.kind == "baseline" for row in rows) else ""
    words += "; the grid's own metric alone" if len({place for place, _ in panels}) < len(rows[0].measures) else ""
    left = len(record["axes"]) - len({axis for _, axis in panels})
    words += f"; the last {left} axes are in the table alone" if left else ""
    if any(not row.measures[place].values for row in rows for place, _ in panels):
        words += "; cells without a result yet are left out of the means"
    return f"{words}. Every seed and interval is in the table."
