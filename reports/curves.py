"""Figures of what runs logged: training curves, and the groups over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports import fonts
from reports.logs import MANY, Course, Point, Reader
from reports.panels import arrange, new_axes, plain_numbers
from reports.plots import GREY, INK, MARKERS, PALETTE, current, style

NOT_CURVES = ("step", "epoch", "time", "chance_loss", "group_active")
HEAVY = 1000  # points of thin lines in a panel; of more the SVG holds a picture
MOST_PANELS = 12
HEIGHT = 0.95  # inches of a panel
Value = Callable[[Point], float | None]
Panels = dict[str, Value]


@dataclass(frozen=True)
class Look:
    """How a cell is drawn: its colour, the mark that stands on its line; None: a thin grey line among many."""

    colour: str = GREY
    marker: str | None = None


def looks(courses: Sequence[Course]) -> list[Look]:
    """Return how each cell is drawn; of many only the baseline, the best and the worst have a look of their own."""
    chosen = list(range(len(courses)))
    if len(courses) > MANY:
        ranked = sorted((one.mean, place) for place, one in enumerate(courses) if one.mean is not None)
        ends = [ranked[-1][1], ranked[0][1]] if ranked else []
        chosen = [place for place, one in enumerate(courses) if one.kind == "baseline" or place in ends]
    own = {place: Look(PALETTE[number % len(PALETTE)], MARKERS[number]) for number, place in enumerate(chosen)}
    return [own.get(place, Look()) for place in range(len(courses))]


def metrics_of(courses: Sequence[Course], without: Sequence[str] = ()) -> list[str]:
    """Return what there are curves of, the loss first."""
    keys = {name for course in courses for log in course.logs for name in log.keys}
    return sorted(keys - {*NOT_CURVES, *without}, key=lambda name: (name != "loss", name != "lr", name))


def curves_panels(courses: Sequence[Course], without: Sequence[str] = ()) -> Panels:
    """Return the panels of the training curves: what was logged, but not what another figure shows."""
    return {name.replace("_", " "): _of(name) for name in metrics_of(courses, without)[:MOST_PANELS]}


def _of(name: str) -> Value:
    return lambda point: point.get(name)


GROUPS: Panels = {
    "entropy / ln K": lambda point: point.get("group_entropy"),
    "dead groups (share)": lambda point: _share(point, "group_dead", "group_active"),
    "duplicates (share)": lambda point: _share(point, "group_duplicates", "group_active"),
    "largest group (share)": lambda point: point.get("group_largest"),
    "own = target (share)": lambda point: point.get("agreement"),
    "loss / ln K": lambda point: _share(point, "loss", "chance_loss"),
}
NEEDS = {
    "entropy / ln K": {"group_entropy"}, "dead groups (share)": {"group_dead", "group_active"},
    "duplicates (share)": {"group_duplicates", "group_active"}, "largest group (share)": {"group_largest"},
    "own = target (share)": {"agreement"}, "loss / ln K": {"loss", "chance_loss"},
}  # fmt: skip
OF_GROUPS = ("group_entropy", "group_dead", "group_duplicates", "group_largest", "agreement")


def _share(point: Point, part: str, whole: str) -> float | None:
    return point[part] / point[whole] if part in point and point.get(whole, 0) > 0 else None


def groups_panels(courses: Sequence[Course]) -> Panels:
    """Return the panels of the groups over time for which something was logged; none without groups."""
    keys = {name for course in courses for log in course.logs for name in log.keys}
    found = {title: value for title, value in GROUPS.items() if NEEDS[title] <= keys}
    return found if "group_entropy" in keys else {}


def with_groups(courses: Sequence[Course]) -> list[Course]:
    """Return the cells whose runs logged their groups."""
    return [course for course in courses if any("group_entropy" in log.keys for log in course.logs)]


def figure_of(courses: Sequence[Course], panels: Panels, read: Reader | None = None) -> Figure:
    """Draw one small panel a metric over epochs: a line a cell (the mean of its seeds), a thin line a seed."""
    read = read or Reader(courses, panels)
    points = [[read(log) for log in course.logs] for course in courses]
    own, panels = looks(courses), _telling(panels, points)
    with style() as venue:
        across = venue.across(len(panels))
        figure = Figure(figsize=(venue.text if across > 1 else venue.column, 1))
        axes = new_axes(figure, len(panels))
        for ax, (title, value) in zip(axes, panels.items(), strict=True):
            _draw(ax, [[_series(run, value) for run in runs] for runs in points], own)
            for level, colour in _chances(title, points, own):
                ax.plot(*level, color=colour, lw=0.9, ls=(0, (4, 2)), zorder=2)
            ax.set_title(fonts.legible(title, 34), loc="left", y=1.0, pad=3)
            ax.set_xlabel("epoch")
            for axis in (ax.xaxis, ax.yaxis):
                plain_numbers(axis, 3)
        arrange(figure, axes, across, HEIGHT, list(_key(courses, own, points)), shared=True)
    return figure


Series = list[tuple[float, float]]


def _telling(panels: Panels, points: list[list[list[Point]]]) -> Panels:
    """Leave out what was 0 all along and so says nothing, but of the groups: no duplicates is a finding."""
    lines = [point for runs in points for run in runs for point in run]
    told = {title: value for title, value in panels.items() if title in GROUPS or any(map(value, lines))}
    return told or panels


def curves_words(courses: Sequence[Course], panels: Panels, stride: int) -> str:
    """Return what the marks of a figure of curves mean."""
    seeds = any(len(course.logs) > 1 for course in courses)
    keys = {name for course in courses for log in course.logs for name in log.keys}
    if len(courses) > MANY:
        words = f"Over epochs: the baseline, the best and the worst of {len(courses)} cells by the grid's metric, thick"
        words += " (means over seeds), their single seeds thin" if seeds else ""
        words += "; the other cells as thin grey lines."
    else:
        words = "Over epochs: a thick line a cell, the mean of its seeds as far as all have come; "
        words = f"{words}thin lines are single seeds." if seeds else "Over epochs: a line a cell."
    if "chance_loss" in keys and {"loss", "loss / ln K"} & panels.keys():
        words += " Dashed: ln K, the loss of guessing among K groups."
    if "own = target (share)" in panels:
        words += " Own = target: images whose own group is the target's."
    if "dead groups (share)" in panels:
        words += " Dead groups hold no image of the cache; duplicates lie within a cosine of 0.99 of another group."
    if len(panels) == MOST_PANELS < len(metrics_of(courses, OF_GROUPS)):
        words += f" Of more metrics the first {MOST_PANELS} are drawn."
    if stride > 1:
        words += f" One logged line in {stride} is drawn."
    return words


def _series(run: list[Point], value: Value) -> Series:
    found = ((point["epoch"], value(point)) for point in run)
    return [(epoch, number) for epoch, number in found if number is not None]


def _draw(ax: Axes, cells: list[list[Series]], own: Sequence[Look]) -> None:
    """Draw the seeds in one go, the many grey cells in another, and a line for each of the others."""
    means = [_averaged(seeds) for seeds in cells]
    thin = [(seed, look.colour) for seeds, look in zip(cells, own, strict=True) for seed in seeds
            if look.marker and len(seeds) > 1 and len(seed) > 1]  # fmt: skip
    grey = [(mean, look.colour) for mean, look in zip(means, own, strict=True) if not look.marker and len(mean) > 1]
    for lines, alpha in ((thin, 0.4), (grey, 0.5)):
        if lines:
            colours = [colour for _, colour in lines]
            heavy = sum(len(line) for line, _ in lines) > HEAVY
            ax.add_collection(LineCollection([line for line, _ in lines], colors=colours, lw=0.5, alpha=alpha,
                                             zorder=1.5, rasterized=heavy))  # fmt: skip
    for number, (mean, look) in enumerate(zip(means, own, strict=True)):
        if look.marker and mean:
            marks = list(range(number % 5 * len(mean) // 20, len(mean), max(1, len(mean) // 4)))
            ax.plot(*zip(*mean, strict=True), color=look.colour, lw=1.2, marker=look.marker, ms=3, mew=0,
                    markevery=marks, zorder=3)  # fmt: skip
    ax.autoscale_view()


def _averaged(seeds: list[Series]) -> Series:
    """Return the mean of the seeds at the epochs of the first, as far as all of them have come.

    The seeds of a cell log at the same epochs, unless the interval was changed between two runs: then the others are
    taken between their neighbouring lines.
    """
    found = [tuple(zip(*seed, strict=True)) for seed in seeds if seed]
    if not found:
        return []
    first, last = max(epochs[0] for epochs, _ in found), min(epochs[-1] for epochs, _ in found)
    common = [epoch for epoch in found[0][0] if first <= epoch <= last]
    means = np.mean([np.interp(common, epochs, values) for epochs, values in found], axis=0) if common else []
    return list(zip(common, map(float, means), strict=True))


def _chances(
    title: str, points: list[list[list[Point]]], own: Sequence[Look]
) -> Iterator[tuple[list[list[float]], str]]:
    """Yield the dashed lines of a panel: the loss of guessing, ln K, of each cell; once, in grey, where all agree."""
    if title == "loss / ln K":
        epochs = [point["epoch"] for runs in points for run in runs for point in run]
        yield [[min(epochs), max(epochs)], [1.0, 1.0]], GREY
    elif title == "loss":
        lines = [_series(runs[0], lambda point: point.get("chance_loss")) for runs in points]
        shown = [(line, look.colour) for line, look in zip(lines, own, strict=True) if look.marker and line]
        levels = {tuple(sorted({level for _, level in line})) for line, _ in shown}
        for line, colour in shown if len(levels) > 1 else shown[:1]:
            yield [list(one) for one in zip(*line, strict=True)], colour if len(levels) > 1 else GREY


def _key(courses: Sequence[Course], own: Sequence[Look], points: list[list[list[Point]]]) -> Iterator[Line2D]:
    size, room = mpl.rcParams["legend.fontsize"], current().text / 2 - 0.55  # so that two stand side by side
    for course, look in zip(courses, own, strict=True):
        if look.marker:
            suffix = " (baseline)" if course.kind == "baseline" else ""
            label = fonts.fitted(course.label, room - fonts.width(suffix, size), size) + suffix
            yield Line2D([], [], color=look.colour, lw=1.2, marker=look.marker, ms=3, mew=0, label=label)
    if any(not look.marker for look in own):
        yield Line2D([], [], color=GREY, lw=0.5, label=f"{sum(not look.marker for look in own)} other cells")
    if any("chance_loss" in point for runs in points for run in runs for point in run[:1]):
        yield Line2D([], [], color=INK, lw=0.9, ls=(0, (4, 2)), label="ln K, the loss of guessing")
