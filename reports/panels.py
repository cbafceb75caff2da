"""Panels of a figure, side by side: their places, their axes and the key beneath, all measured before it is drawn.

matplotlib would find the places by drawing the figure twice, and draws each number of an axis through a dozen objects;
for small panels both take longer than all curves and points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from reports import fonts
from reports.plots import GREY, INK

GAP = 0.06  # inches around texts
LINE = 1.3  # of a font's size
TILT = 30  # degrees, of names that have no room side by side
TICK = 2.5 / 72  # inches
HANDLE, BETWEEN = 0.2, 0.16  # inches: a line in the key, the gap between two entries
Names = list[tuple[float, str]]  # where each stands, from 0 to 1, and its text
Corners = list[tuple[float, float]]


def new_axes(figure: Figure, count: int) -> list[Axes]:
    """Return so many axes, all at one place: arrange() gives them their own once their texts are known."""
    axes = [figure.add_axes((0, 0, 1, 1), label=str(place)) for place in range(count)]
    for ax in axes:
        plain_numbers(ax.yaxis)
    return axes


def plain_numbers(axis: Axis, most: int = 4) -> None:
    """Let an axis have at most so many intervals, and numbers written in full."""
    axis.set_major_locator(MaxNLocator(most))
    axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def name_places(axis: Axis, positions: Sequence[float], names: Sequence[str]) -> None:
    """Let names, or numbers of our own, stand at places of an axis; arrange() tilts them where they have no room."""
    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_major_formatter(FixedFormatter(list(names)))
    axis.set_minor_locator(NullLocator())


def ticks(axis: Axis) -> Names:
    """Return what an axis shows within its limits."""
    places = axis.get_majorticklocs()
    texts = axis.get_major_formatter().format_ticks(list(places))
    low, high = axis.get_view_interval()
    first, *shown, last = axis.get_transform().transform([low, *places, high])
    found = ((float((one - first) / (last - first)), text) for one, text in zip(shown, texts, strict=True))
    return [(place, text) for place, text in found if -0.001 <= place <= 1.001]


@dataclass(frozen=True)
class Sides:
    """What stands around a panel, and the inches that it needs; ``own`` is ``left`` without names of the x-axis."""

    x: Names
    y: Names
    tilt: float
    own: float
    left: float
    right: float
    bottom: float
    top: float


def arrange(
    figure: Figure, axes: Sequence[Axes], across: int, height: float, key: Sequence[Line2D] = (), *,
    shared: bool = False, grid: str = "y", framed: bool = True,
) -> None:  # fmt: skip
    """Give each panel its place, draw its axes, and put the key beneath all.

    The figure keeps its width; its height follows from ``height``, that of a panel. With ``shared`` only the lowest
    panel of a column has the numbers of its x-axis.
    """
    room, count = figure.get_figwidth() / across, len(axes)
    sides = [_sides(ax, room, not shared or place >= count - across) for place, ax in enumerate(axes)]
    columns = [sides[start::across] for start in range(across)]
    rows = [sides[start : start + across] for start in range(0, count, across)]
    left, own = [max(one.left for one in column) for column in columns], [max(o.own for o in c) for c in columns]
    right = [max(one.right for one in column) for column in columns]
    bottom, top = [max(one.bottom for one in row) for row in rows], [max(one.top for one in row) for row in rows]
    wide = max((figure.get_figwidth() - sum(left) - sum(right)) / across, 0.3)
    entries = _lines_of_key(key, figure.get_figwidth())
    whole = sum(bottom) + sum(top) + height * len(rows) + _height_of_key(entries)
    figure.set_figheight(whole)
    for place, (ax, side) in enumerate(zip(axes, sides, strict=True)):
        row, column = divmod(place, across)
        x = sum(left[: column + 1]) + sum(right[:column]) + wide * column
        y = whole - sum(top[: row + 1]) - sum(bottom[:row]) - height * (row + 1)
        _place(figure, ax, (x, y), (wide, height))
        _draw_axes(ax, side, grid, framed, (wide, height))
        _name_axes(ax, bool(side.x), own[column] / wide, bottom[row] / height, (wide, height))
    _draw_key(figure, entries)


def _place(figure: Figure, ax: Axes, at: tuple[float, float], size: tuple[float, float]) -> None:
    wide, tall = figure.get_size_inches()
    ax.set_position((at[0] / wide, at[1] / tall, size[0] / wide, size[1] / tall))


def _sides(ax: Axes, room: float, numbers: bool) -> Sides:
    size, small = mpl.rcParams["axes.labelsize"] / 72, mpl.rcParams["xtick.labelsize"]
    y = ticks(ax.yaxis)
    own = 2 * GAP + max((fonts.width(text, small) for _, text in y), default=0)
    own += LINE * size if ax.get_ylabel() else 0
    inner = room - own - 2 * GAP
    x, tilt = _with_room(ax, inner) if numbers else ([], 0.0)
    widths = [fonts.width(text, small) for _, text in x]
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    ends = [
        2 * GAP + wide * (cosine if tilt else 0.5) - place * inner for (place, _), wide in zip(x, widths, strict=True)
    ]
    over = [0 if tilt else wide / 2 - (1 - place) * inner for (place, _), wide in zip(x, widths, strict=True)]
    lines = max((text.count("\n") + 1 for _, text in x), default=0)
    bottom = 2 * GAP + 1.2 * lines * small / 72 + max(widths, default=0) * sine
    bottom += LINE * size if ax.get_xlabel() and numbers else 0
    top = GAP + (LINE * size if ax.get_title("left") else 0)
    return Sides(x, y, tilt, own, max([own, *ends]), GAP + max([0, *over]), bottom, top)


def _with_room(ax: Axes, inner: float) -> tuple[Names, float]:
    """Return the names beneath a panel that have room, and their tilt: names are tilted, numbers left out."""
    names, size = ticks(ax.xaxis), mpl.rcParams["xtick.labelsize"]
    halves = [fonts.width(text, size) / 2 + 0.02 for _, text in names]
    shown = _apart(names, [half / inner for half in halves])
    if (
        len(shown) == len(names)
        or ax.get_xscale() == "log"
        or not isinstance(ax.xaxis.get_major_formatter(), FixedFormatter)
    ):
        return shown, 0.0
    return _apart(names, [0.75 * size / 72 / inner] * len(names)), float(TILT)


def _apart(names: Names, halves: Sequence[float]) -> Names:
    """Return the names that do not touch the one before."""
    shown: list[int] = []
    for place in sorted(range(len(names)), key=lambda one: names[one][0]):
        if not shown or names[place][0] - names[shown[-1]][0] >= halves[place] + halves[shown[-1]]:
            shown.append(place)
    return [names[place] for place in shown]


def _draw_axes(ax: Axes, side: Sides, grid: str, framed: bool, size: tuple[float, float]) -> None:
    """Draw lines and numbers of both axes in the place of matplotlib's own, which are switched off."""
    wide, tall = size
    ax.set_axis_off()
    small, pad = mpl.rcParams["xtick.labelsize"], 0.02 + (TICK if framed else 0)
    places = ticks(ax.xaxis)
    frame: list[Corners] = [[(0, 1), (0, 0), (1, 0)], *([(at, 0), (at, -TICK / tall)] for at, _ in places)]
    if framed:
        _add_lines(ax, frame, INK, 1, 2.5)
    faint = [[(0.0, at), (1.0, at)] for at, _ in side.y if grid in ("y", "both")]
    faint += [[(at, 0.0), (at, 1.0)] for at, _ in places if grid in ("x", "both")]
    _add_lines(ax, faint, GREY, 0.25, 0.5)
    for at, text in side.x:
        ax.text(at, -pad / tall, text, transform=ax.transAxes, fontsize=small, va="top", rotation=side.tilt,
                ha="right" if side.tilt else "center", rotation_mode="anchor" if side.tilt else None)  # fmt: skip
    for at, text in side.y:
        if text:
            ax.text(-0.05 / wide, at, text, transform=ax.transAxes, fontsize=small, ha="right", va="center")


def _add_lines(ax: Axes, lines: Sequence[Corners], colour: str, alpha: float, zorder: float) -> None:
    """Draw all lines as one path: one element of an SVG."""
    if lines:
        codes = [code for line in lines for code in (Path.MOVETO, *[Path.LINETO] * (len(line) - 1))]
        path = Path([corner for line in lines for corner in line], codes)
        ax.add_artist(PathPatch(path, fill=False, ec=colour, lw=0.6 if alpha == 1 else 0.5, alpha=alpha, zorder=zorder,
                                transform=ax.transAxes, clip_on=False))  # fmt: skip


def _name_axes(ax: Axes, beneath: bool, left: float, bottom: float, size: tuple[float, float]) -> None:
    wide, tall = size
    font = mpl.rcParams["axes.labelsize"]
    if ax.get_ylabel():
        ax.text(-left + (GAP + font / 144) / wide, 0.5, ax.get_ylabel(), transform=ax.transAxes, fontsize=font,
                rotation=90, ha="center", va="center")  # fmt: skip
    if ax.get_xlabel() and beneath:
        ax.text(0.5, -bottom + (GAP + font / 144) / tall, ax.get_xlabel(), transform=ax.transAxes, fontsize=font,
                ha="center", va="center")  # fmt: skip


def _lines_of_key(key: Sequence[Line2D], width: float) -> list[list[tuple[Line2D, float]]]:
    """Return the entries of the key and their widths in lines; of several lines the entries stand in columns."""
    size = mpl.rcParams["legend.fontsize"]
    entries = [(one, HANDLE + 0.06 + fonts.width(str(one.get_label()), size)) for one in key]
    for columns in range(len(entries), 0, -1):
        lines = [entries[start : start + columns] for start in range(0, len(entries), columns)]
        widths = [max(line[place][1] for line in lines if place < len(line)) for place in range(columns)]
        if columns == 1 or sum(widths) + BETWEEN * (columns + 1) <= width:
            return [[(one, wide) for (one, _), wide in zip(line, widths, strict=False)] for line in lines]
    return []


def _height_of_key(lines: list[list[tuple[Line2D, float]]]) -> float:
    return (0.6 + 1.45 * len(lines)) * mpl.rcParams["legend.fontsize"] / 72 if lines else 0.0


def _draw_key(figure: Figure, lines: list[list[tuple[Line2D, float]]]) -> None:
    """Draw what explains the marks in as few lines as the figure's width allows."""
    size, (wide, tall) = mpl.rcParams["legend.fontsize"], figure.get_size_inches()
    whole = max((sum(own for _, own in line) + BETWEEN * (len(line) - 1) for line in lines), default=0)
    for number, line in enumerate(lines):
        y = ((len(lines) - number - 0.5) * 1.45 + 0.3) * size / 72 / tall
        starts = itertools.accumulate([own + BETWEEN for _, own in line], initial=max((wide - whole) / 2, GAP))
        for (mark, _), x in zip(line, starts, strict=False):
            alone = mark.get_linestyle() == "None"
            parts = (0.5,) if alone else (0.0, 0.5, 1.0)
            mark.set_data([(x + HANDLE * part) / wide for part in parts], [y] * len(parts))
            mark.set_markevery(None if alone else [1])
            mark.set_transform(figure.transFigure)
            figure.add_artist(mark)
            figure.text((x + HANDLE + 0.06) / wide, y, str(mark.get_label()), fontsize=size, va="center_baseline")
