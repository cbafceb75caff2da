"""One number of the cells over another: accuracy over the cost of training, and RankMe against accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports import fonts
from reports.metric import MARKS, WIDE, full_name
from reports.panels import arrange, name_places, new_axes, plain_numbers
from reports.plots import BLUE, INK, ORANGE, style
from reports.stats import Measure
from reports.tables import Record, Results, Row, Table, column_title, measure, read_results
from smog.store import read_json

HEIGHT = 2.0  # inches
NAMED = 14  # cells; of more only the front and the baseline have names
HEAVY = 1500  # points; of more the SVG holds a picture
Place = tuple[float, float]
Box = tuple[float, ...]  # left, low, right, high, in inches


@dataclass(frozen=True)
class Spot:
    """A cell: its label, its kind, and (x, y) of each of its seeds by run."""

    label: str
    kind: str
    seeds: dict[str, Place]

    @property
    def mean(self) -> Place:
        """The mean of its seeds."""
        return fmean(x for x, _ in self.seeds.values()), fmean(y for _, y in self.seeds.values())


@dataclass(frozen=True)
class Cloud:
    """What a figure shows: cells, the names of the axes, whether a front is drawn, and notes for its caption."""

    spots: tuple[Spot, ...]
    x: str
    y: str
    front: bool = False
    notes: tuple[str, ...] = ()


def cost_cloud(store: Path, table: Table) -> Cloud | None:
    """Return the grid's metric over the seconds of training; None where fewer than two cells have both.

    Seconds compare on one machine alone: the device, threads and runs at once of most runs are drawn, others not.
    """
    rows = [row for row in table.rows if row.kind in MARKS]
    spent = {run: found for row in rows for run in row.measures[table.headline].runs.values()
             if (found := _spent(store / run))}  # fmt: skip
    if not spent:
        return None
    ways = Counter(way for _, way in spent.values())
    way = min(ways, key=lambda one: (-ways[one], one))
    seconds = {run: cost for run, (cost, own) in spent.items() if own == way}
    spots = _spots(rows, table.headline, seconds)
    if len(spots) < 2:
        return None
    one, others = rows[0].measures[table.headline], len(spent) - len(seconds)
    notes = [f"Seconds of {way}"]
    notes += [f"{others} of {len(spent)} runs were trained otherwise and are left out"] if others else []
    return Cloud(spots, "seconds of training", column_title(one.task, one.metric), True, tuple(notes))


def _spent(folder: Path) -> tuple[float, str] | None:
    """Return the seconds of a finished training, and in words what it ran on."""
    if not (folder / "done").is_file():
        return None
    done = read_json(folder / "done")
    env = read_json(folder / "env.json") if (folder / "env.json").is_file() else {}
    seconds = done.get("seconds")
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return None
    threads, packed = env.get("threads", "?"), env.get("packed", done.get("packed", 1))
    device = fonts.legible(env.get("device", done.get("device", "an unknown device")))
    way = f"{device}, {threads} thread{'' if threads == 1 else 's'} a process"
    return float(seconds), way + ("" if packed == 1 else f", {packed} runs at once")


def _spots(rows: Sequence[Row], place: int, known: dict[str, float]) -> tuple[Spot, ...]:
    several = len({row.axis for row in rows if row.axis}) > 1
    spots = (
        Spot(full_name(row) if several else row.label, row.kind, _pairs(row.measures[place], known)) for row in rows
    )
    return tuple(spot for spot in spots if spot.seeds)


def _pairs(one: Measure, known: dict[str, float]) -> dict[str, Place]:
    return {one.runs[seed]: (known[one.runs[seed]], value) for seed, value in sorted(one.values.items())
            if one.runs[seed] in known}  # fmt: skip


def rankme_cloud(store: Path, record: Record, table: Table, results: Results | None = None) -> Cloud | None:
    """Return linear top-1, else the grid's metric, over RankMe; None where fewer than two cells have both."""
    if "diagnostics" not in record["tasks"]:
        return None
    if results is None:
        results = read_results(store, record | {"tasks": {"diagnostics": record["tasks"]["diagnostics"]}})
    ranks = {run: float(value) for cell in record["cells"] for run, value in _ranks(record, cell, results)}
    rows = [row for row in table.rows if row.kind in MARKS]  # other networks, raw pixels say, have ranks far from these
    pairs = [(one.task, one.metric) for one in rows[0].measures]
    place = pairs.index(("linear", "top1")) if ("linear", "top1") in pairs else table.headline
    spots = _spots(rows, place, ranks)
    if len(spots) < 2:
        return None
    return Cloud(spots, "RankMe", column_title(*pairs[place]), notes=(_correlation(spots),))


def _ranks(record: Record, cell: Record, results: Results) -> list[tuple[str, float]]:
    one = measure(results, record, cell, "diagnostics", "rankme")
    return [(one.runs[seed], value) for seed, value in one.values.items() if math.isfinite(value)]


def _correlation(spots: Sequence[Spot]) -> str:
    """Return Spearman's rank correlation over the cells in words."""
    from scipy.stats import spearmanr  # here, because it takes long to import and few grids need it

    means = [spot.mean for spot in spots]
    across, up = {x for x, _ in means}, {y for _, y in means}
    if len(means) < 3 or len(across) < 2 or len(up) < 2:
        return f"{len(means)} cells are too few, or too equal, for a rank correlation"
    rho = float(spearmanr([x for x, _ in means], [y for _, y in means]).statistic)
    return f"Spearman's rank correlation over the n = {len(means)} cells (without references): {rho:.2f}"


def scatter_words(cloud: Cloud) -> str:
    """Return what the marks of the figure mean."""
    several = any(len(spot.seeds) > 1 for spot in cloud.spots)
    words = f"{cloud.y} over {cloud.x}: every seed as a small open mark, the mean of a cell as a large one"
    words = words if several else f"{cloud.y} over {cloud.x}: one seed a cell"
    words += "; the baseline as a diamond in orange" if any(spot.kind == "baseline" for spot in cloud.spots) else ""
    if cloud.front and len(best := front(cloud.spots)) == 1:
        words += f"; none is better than {fonts.legible(best[0].label)}, and none costs less"
    elif cloud.front:
        words += "; the line joins the cells that no other one beats at the same cost or less"
    words += "" if len(cloud.spots) <= NAMED else "; of the many cells only some have names"
    return ". ".join([words, *cloud.notes]) + "."


LOOKS = {"cell": ("o", BLUE), "baseline": ("D", ORANGE)}


def scatter_figure(cloud: Cloud) -> Figure:
    """Draw the cloud: every seed small, the mean of each cell large and named, and the front where there is one."""
    with style() as venue:
        figure = Figure(figsize=(venue.column, 1))
        [ax] = new_axes(figure, 1)
        for kind, (mark, colour) in LOOKS.items():
            _draw_kind(ax, [spot for spot in cloud.spots if spot.kind == kind], mark, colour)
        if cloud.front:
            ax.plot(*_steps(front(cloud.spots)), color=INK, lw=0.7, alpha=0.6, zorder=1)
        _scale(ax, [x for spot in cloud.spots for x, _ in spot.seeds.values()])
        ax.set_xlabel(cloud.x)
        ax.set_ylabel(cloud.y)
        ax.margins(0.08)
        ax.autoscale_view()
        arrange(figure, [ax], 1, HEIGHT, _key(cloud), grid="both")
        _name(figure, ax, cloud)
    return figure


def _draw_kind(ax: Axes, spots: Sequence[Spot], mark: str, colour: str) -> None:
    seeds = [place for spot in spots if len(spot.seeds) > 1 for place in spot.seeds.values()]
    for dots, size, fill in ((seeds, 2.4, "none"), ([spot.mean for spot in spots], 4.5, colour)):
        if dots:
            ax.plot([x for x, _ in dots], [y for _, y in dots], mark, ms=size, mfc=fill, mec=colour, mew=0.6, ls="none",
                    zorder=3 if fill == "none" else 4, rasterized=len(dots) > HEAVY)  # fmt: skip


def front(spots: Sequence[Spot]) -> list[Spot]:
    """Return the cells that are better than every cell that costs no more, from the cheapest on."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda one: (one.mean[0], -one.mean[1])):
        if not found or spot.mean[1] > found[-1].mean[1]:
            found.append(spot)
    return found


def _steps(spots: Sequence[Spot]) -> tuple[list[float], list[float]]:
    """Return the corners of the front: it rises where a better cell begins."""
    corners = [spots[0].mean]
    for spot in spots[1:]:
        corners += [(spot.mean[0], corners[-1][1]), spot.mean]
    return [x for x, _ in corners], [y for _, y in corners]


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Give wide positive numbers a logarithmic axis with plain numbers on it."""
    if min(values) <= 0 or max(values) <= WIDE * min(values):
        plain_numbers(ax.xaxis, 6)
        return
    ax.set_xscale("log")
    first, last = (math.floor(math.log10(one)) for one in (min(values), max(values)))
    steps = (1, 3) if last - first < 4 else (1,)
    marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    name_places(ax.xaxis, marks, [f"{mark:.6g}" for mark in marks])


def _key(cloud: Cloud) -> list[Line2D]:
    kinds = {spot.kind for spot in cloud.spots}
    names = {"cell": "mean of a cell", "baseline": "baseline"}
    marks = [Line2D([], [], marker=LOOKS[kind][0], ls="none", ms=4.5, color=LOOKS[kind][1], label=name)
             for kind, name in names.items() if kind in kinds]  # fmt: skip
    if any(len(spot.seeds) > 1 for spot in cloud.spots):
        marks.append(Line2D([], [], marker="o", ls="none", ms=2.4, mec=BLUE, mfc="none", mew=0.6, label="one seed"))
    if cloud.front and len(front(cloud.spots)) > 1:
        marks.append(Line2D([], [], color=INK, lw=0.7, alpha=0.6, label="front of cost and accuracy"))
    return marks


def _name(figure: Figure, ax: Axes, cloud: Cloud) -> None:
    """Write the cells' names beside their means, away from means and other names; from seeds where it can be."""
    size = mpl.rcParams["xtick.labelsize"] - 0.5
    best = front(cloud.spots)
    named = [spot for spot in cloud.spots if len(cloud.spots) <= NAMED or spot in best or spot.kind != "cell"]
    inch = ax.transData.transform([spot.mean for spot in cloud.spots]) / figure.dpi
    dots = [place for spot in cloud.spots for place in spot.seeds.values()]
    small = [(x - 0.02, y - 0.02, x + 0.02, y + 0.02) for x, y in ax.transData.transform(dots) / figure.dpi]
    taken: list[Box] = [(x - 0.03, y - 0.03, x + 0.03, y + 0.03) for x, y in inch]
    (left, low), (right, high) = ax.get_position().get_points() * figure.get_size_inches()
    frame = (left, low, right, high)
    for spot in named[: 3 * NAMED]:
        text = fonts.legible(spot.label, 32)
        x, y = ax.transData.transform(spot.mean) / figure.dpi
        shape = (fonts.width(text, size), 1.1 * size / 72)
        box = _free((x, y), shape, [*taken, *small], frame) or _free((x, y), shape, taken, frame)
        if box:
            taken.append(box)
            away = ((box[0] - x) * 72, (box[1] - y) * 72)
            ax.annotate(text, spot.mean, xytext=away, textcoords="offset points", fontsize=size, zorder=5)


def _free(at: Place, shape: Place, taken: Sequence[Box], frame: Box) -> Box | None:
    """Return the first place around a point where a text of this size touches nothing, in inches."""
    (x, y), (wide, tall), gap = at, shape, 0.05
    places = [(gap, -tall / 2), (-wide - gap, -tall / 2), (-wide / 2, gap), (-wide / 2, -tall - gap),
              (gap, gap), (gap, -tall - gap), (-wide - gap, gap), (-wide - gap, -tall - gap)]  # fmt: skip
    for right, up in places:
        box = (x + right, y + up, x + right + wide, y + up + tall)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(_touch(box, other) for other in taken):
            return box
    return None


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
