"""Grids that cross two axes, as a heat map: the mean of each cell written where its two values meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reports import fonts
from reports.panels import arrange, name_places, new_axes
from reports.plots import BLUE, GREY, ORANGE, current, style
from reports.stats import Measure
from reports.tables import MISSING, Record, Row, Table, column_title

COLOURS = "cividis"  # even to the eye, to a colour-blind one and in grey
DARK, LIGHT = "#101010", "#fafafa"  # not ink and paper, which the page turns round in the dark
SMALLEST = 0.27  # inches that a number needs
MOST = 40  # values of an axis that still get a place each
ROW = 0.28  # inches
TALLEST, FEW = 16, 6  # rows that keep their height; columns that fit into a column of the venue
LONGEST = 18  # letters of a value
Cells = dict[tuple[int, int], Row]


def suits(record: Record) -> bool:
    """Say whether a grid crosses two axes of at least two values, and at most so many that each has its place."""
    sizes = [len(values) for values in record["axes"].values()]
    return record["mode"] == "factorial" and len(sizes) == 2 and min(sizes) > 1 and max(sizes) <= MOST


def cells_of(table: Table, record: Record) -> Cells:
    """Return the rows that lie on the two axes by their places; what a grid has beside its axes is left out."""
    axes = {axis: [str(value) for value in values] for axis, values in record["axes"].items()}
    cells: Cells = {}
    for row in table.rows:
        beside = row.kind == "cell" and row.point == record["baseline"]  # shares the baseline's place
        if row.kind not in ("baseline", "cell") or row.point.keys() != axes.keys() or beside:
            continue
        first, second = (values.index(str(row.point[axis])) if str(row.point[axis]) in values else None
                         for axis, values in axes.items())  # fmt: skip
        if first is not None and second is not None:
            cells[first, second] = row
    return cells


@dataclass(frozen=True)
class Size:
    """How large the panels are: width of the figure, panels side by side, width of a panel in inches."""

    width: float
    across: int
    room: float


def _size(table: Table, record: Record) -> Size:
    down, right = ([fonts.legible(value, LONGEST) for value in values] for values in record["axes"].values())
    names, count = 0.5 + max(fonts.width(name, 6) for name in down), len(table.rows[0].measures)
    across = max(1, min(int(current().text / (names + SMALLEST * len(right))), count, 3))
    width = current().text if across > 1 or len(right) > FEW else current().column
    return Size(width, across, width / across - names)


def _written(record: Record, size: Size) -> bool:
    """Whether a cell has room for its number."""
    return size.room / len(list(record["axes"].values())[1]) >= SMALLEST


def heat_figure(table: Table, record: Record) -> Figure:
    """Draw a panel a metric: the first axis downwards, the second to the right."""
    cells, measures, size = cells_of(table, record), table.rows[0].measures, _size(table, record)
    with style():
        down, right = ([fonts.legible(value, LONGEST) for value in values] for values in record["axes"].values())
        height = ROW * max(4, min(len(down), TALLEST))
        figure = Figure(figsize=(size.width, 1))
        axes = new_axes(figure, len(measures))
        for place, ax in enumerate(axes):
            _draw(ax, table, cells, place, (len(down), len(right)), _written(record, size))
            _name(ax, record, down, right, height)
        arrange(figure, axes, size.across, height, grid="", framed=False)
    return figure


def _name(ax: Axes, record: Record, down: Sequence[str], right: Sequence[str], height: float) -> None:
    first, second = (axis.rpartition(".")[2] for axis in record["axes"])
    every = max(1, round(len(down) / TALLEST))
    name_places(ax.yaxis, range(0, len(down), every), down[::every])
    name_places(ax.xaxis, range(len(right)), right)
    ax.set_xlabel(fonts.legible(second))
    ax.set_ylabel(fonts.fitted(first, height, mpl.rcParams["axes.labelsize"]))


def _draw(ax: Axes, table: Table, cells: Cells, place: int, shape: tuple[int, int], written: bool) -> None:
    found = {at: row.measures[place] for at, row in cells.items() if row.measures[place].values}
    means = {at: one.summary.mean or 0.0 for at, one in found.items()}
    colours = _colours(list(means.values()))
    ax.set_xlim(-0.5, shape[1] - 0.5)
    ax.set_ylim(shape[0] - 0.5, -0.5)
    if means:
        ax.add_collection(PolyCollection([_square(*at) for at in means], lw=0,
                                         facecolors=colours.to_rgba(np.array(list(means.values())))))  # fmt: skip
    empty = [(y, x) for y in range(shape[0]) for x in range(shape[1]) if (y, x) not in found]
    if empty:
        ax.add_collection(PolyCollection([_square(*at) for at in empty], facecolors="none", edgecolors=GREY,
                                         lw=0.3, hatch="////"))  # fmt: skip
    for at, row in cells.items():
        if row.kind == "baseline":
            ax.add_patch(Rectangle((at[1] - 0.46, at[0] - 0.44), 0.92, 0.88, fill=False, ec=ORANGE, lw=1.6))
    title = column_title(table.rows[0].measures[place].task, table.rows[0].measures[place].metric)
    ends = f", {min(means.values()):.4g} (dark) to {max(means.values()):.4g} (bright)" if means and not written else ""
    ax.set_title(fonts.legible(title + ends), loc="left", y=1.0, pad=3)
    if written:
        _write(ax, {at: found.get(at) for at in [*found, *empty]}, colours, _digits(table, place))


def _square(y: int, x: int) -> list[tuple[float, float]]:
    return [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]


def _colours(values: Sequence[float]) -> ScalarMappable:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return ScalarMappable(Normalize(low, high if high > low else low + 1.0), COLOURS)


def _digits(table: Table, place: int) -> int:
    one = table.rows[0].measures[place]
    return next((column.decimals for column in table.columns if column.key == f"{one.task}.{one.metric}"), 1)


def _write(ax: Axes, cells: dict[tuple[int, int], Measure | None], colours: ScalarMappable, digits: int) -> None:
    """Write the mean, small beneath it the standard deviation; n/N where results are missing."""
    for (y, x), one in cells.items():
        if one is None or one.summary.mean is None:
            ax.text(x, y, MISSING, ha="center", va="center", fontsize=6, color=BLUE)
            continue
        red, green, blue, _ = colours.to_rgba(np.array(one.summary.mean))
        ink = DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else LIGHT
        more = [] if one.summary.sd is None else [f"±{one.summary.sd:.{max(digits, 1)}f}"]
        more += [f"{one.summary.n}/{len(one.runs)}"] if one.missing else []
        ax.text(x, y - (0.14 if more else 0), f"{one.summary.mean:.{digits}f}",
                ha="center", va="center", fontsize=6, color=ink)  # fmt: skip
        if more:
            ax.text(x, y + 0.26, " ".join(more), ha="center", va="center", fontsize=4, color=ink)


def heat_words(table: Table, record: Record) -> str:
    """Return what the marks of the figure mean."""
    cells = cells_of(table, record)
    first, second = record["axes"]
    words = f"Each cell at its {first} (down) and {second} (right): the brighter, the higher the mean; "
    measures = [one for row in cells.values() for one in row.measures]
    if not _written(record, _size(table, record)):
        words += "the numbers are in the table"
    elif any(one.summary.n > 1 for one in measures):
        words += "written is the mean, small beneath it ± the standard deviation over seeds"
        words += ", n/N where seeds are missing" if any(one.missing and one.values for one in measures) else ""
    else:
        words += "written is its one seed"
    words += "; the baseline in an orange frame" if any(row.kind == "baseline" for row in cells.values()) else ""
    places = len(record["axes"][first]) * len(record["axes"][second])
    lacking = len(cells) < places or any(not one.values for one in measures)
    words += "; hatched: no result yet" if lacking else ""
    beside = sum(row.kind in ("baseline", "cell", "reference") for row in table.rows) - len(cells)
    words += f". {beside} row{'s' if beside > 1 else ''} beside the two axes: in the table alone" if beside else ""
    return f"{words}. The table has the intervals."
