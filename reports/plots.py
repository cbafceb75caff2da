"""Figures: a metric over a grid's axes or cells with every seed as a point, and training curves. Byte-stable files."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from reports.tables import Record, Row, Table, column_title, in_order

INK, PAPER, GREY = "#1b1b1b", "#ffffff", "#808080"  # the page replaces the first two by its own colours
BLUE, ORANGE = "#0072b2", "#d55e00"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#808080")  # Okabe and Ito
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
    "text.parse_math": False, "pdf.fonttype": 42, "svg.hashsalt": "smog", "savefig.dpi": 200,
}  # fmt: skip
WITHOUT_DATES: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
WIDE = 20  # from this span on, numbers stand on a logarithmic axis
CROWD = 6  # with more names than this a panel takes the whole width
ROOM = 36  # so many characters stand side by side beneath half the width
NOT_CURVES = ("step", "epoch", "time")


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style from matplotlib's defaults, whatever the machine's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def save(figure: Figure, kind: str) -> bytes:
    """Return the figure as a PDF, SVG or PNG file that is the same byte for byte each time."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=kind, metadata=WITHOUT_DATES[kind])
    return file.getvalue()


@dataclass(frozen=True)
class Panel:
    """What one panel of the metric figure shows: a measure (by its place in the rows) over one axis of the grid."""

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
        broken = self.axis == "cell" and len(self.values) <= CROWD
        return [str(value).replace(", ", ",\n") if broken else str(value) for value in self.values]

    @property
    def length(self) -> int:
        """How many characters the names take side by side."""
        return sum(len(max(name.split("\n"), key=len)) for name in self.names)

    @property
    def crowded(self) -> bool:
        """Whether half the width is too little for the names."""
        return not self.numeric and (len(self.values) > CROWD or (self.axis == "cell" and self.length > ROOM))

    @property
    def positions(self) -> list[float]:
        """Where each value stands on the x-axis."""
        return [float(value) for value in self.values] if self.numeric else [float(x) for x in range(len(self.values))]


def metric_figure(table: Table, record: Record) -> Figure:
    """Draw each measure over each axis: every seed, the mean, its t interval, and the reference rows as lines."""
    panels = _panels(table, record)
    crowded = any(panel.crowded for panel in panels)
    across = 1 if crowded else min(len(panels), max(2, min(3, len(panels) // len(table.rows[0].measures))))
    with style():
        figure, axes = _grid_of_axes(len(panels), across, 6.2 if crowded else 3.1, 2.5)
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, 2.8 * ROOM if crowded else ROOM)
            _draw_references(ax, [row for row in table.rows if row.kind == "reference"], panel.place)
        columns = 5 if crowded or across > 1 else 2  # below a single panel of half the width no more have room
        figure.legend(handles=_key(table), loc="outside lower center", ncols=columns, frameon=False, handlelength=1.5)
    return figure


def _key(table: Table) -> list[Line2D]:
    """Return what explains the marks, and only those that the figure has."""
    measures = [one for row in table.rows if row.kind != "reference" for one in row.measures]
    dot: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 5, "mec": INK}
    marks = [Line2D([], [], **dot | {"ms": 3, "mfc": "none", "mew": 0.7}, label="one seed")]
    if any(one.summary.n > 1 for one in measures):
        marks.append(Line2D([], [], **dot, mfc=INK, label="mean"))
    if any(one.summary.n > 1 and one.missing for one in measures):
        marks.append(Line2D([], [], **dot, mfc=PAPER, label="mean, results missing"))
    if any(one.summary.low is not None for one in measures):
        marks.append(Line2D([], [], color=INK, lw=1.4, label="95 % t interval of the mean"))
    if any(row.kind == "baseline" for row in table.rows):
        marks.append(Line2D([], [], **dot | {"mec": ORANGE}, mfc=ORANGE, label="baseline"))
    return marks


def _grid_of_axes(count: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def _panels(table: Table, record: Record) -> list[Panel]:
    rows = [row for row in table.rows if row.kind != "reference"]
    axes = list(record["axes"]) if record["mode"] == "one_factor" else []
    along = [(axis, *_along(axis, rows, record)) for axis in axes]
    if any(row.axis is None and row.kind == "cell" for row in rows):  # what lies on no axis stands by its label
        named = [row for row in rows if row.axis is None or row.kind == "baseline"]
        along.append(("cell", named, [_full_name(row) for row in named]))
    return [
        Panel(place, column_title(one.task, one.metric), axis, tuple(shown), tuple(values))
        for place, one in enumerate(rows[0].measures)
        for axis, shown, values in along
    ]


def _full_name(row: Row) -> str:
    return row.label if row.axis is None else f"{row.axis.rpartition('.')[2]} {row.label}"


def _along(axis: str, rows: Sequence[Row], record: Record) -> tuple[list[Row], list[Any]]:
    """Return the rows of one axis with their values, in the axis' order; a shared baseline stands at its own value."""
    order = list(record["axes"][axis])
    own = [(row.value if row.axis == axis else record["baseline"].get(axis), row) for row in rows
           if row.axis == axis or (row.axis is None and row.kind == "baseline")]  # fmt: skip
    own.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
    return [row for _, row in own], [value for value, _ in own]


def _draw_panel(ax: Axes, panel: Panel, room: float) -> None:
    for x, row in zip(panel.positions, panel.rows, strict=True):
        _draw_cell(ax, x, row, panel.place)
    found = [row.measures[panel.place].summary.mean for row in panel.rows]
    means = [math.nan if mean is None else mean for mean in found]
    if panel.numeric:
        ax.set_xscale("log")
        ax.plot(panel.positions, means, color=BLUE, lw=0.8, alpha=0.5, zorder=2)
        edge = (max(panel.positions) / min(panel.positions)) ** 0.09
        ax.set_xlim(min(panel.positions) / edge, max(panel.positions) * edge**1.6)
    else:
        ax.set_xlim(-0.5, len(panel.values) - 0.25)
    tilt = 30 if panel.length > room else 0
    ax.set_xticks(panel.positions, panel.names, rotation=tilt, ha="right" if tilt else "center")
    ax.set_xticks([], minor=True)
    ax.set_xlabel(panel.axis)
    ax.set_ylabel(panel.title)
    ax.grid(axis="y", color=GREY, alpha=0.25, lw=0.5)
    ax.autoscale_view(scalex=False)


def _draw_cell(ax: Axes, x: float, row: Row, place: int) -> None:
    values, summary = row.measures[place].values, row.measures[place].summary
    colour = ORANGE if row.kind == "baseline" else BLUE
    if summary.mean is None:
        ax.text(x, 0.02, "missing", transform=ax.get_xaxis_transform(), ha="center", color=GREY, fontsize=6)
        return
    if summary.low is not None and summary.high is not None:
        ax.plot([x, x], [summary.low, summary.high], color=colour, lw=1.4, zorder=3, solid_capstyle="butt")
    ax.update_datalim([(x, value) for value in values.values()])  # points that stand aside do not count by themselves
    for number, seed in enumerate(sorted(values)):
        aside = ScaledTranslation((5 + 3.5 * number if summary.n > 1 else 0) / 72, 0, ax.figure.dpi_scale_trans)
        ax.plot(x, values[seed], "o", ms=3, mfc="none", mec=colour, mew=0.7, transform=ax.transData + aside, zorder=3)
    if summary.n > 1:
        hollow = row.measures[place].missing > 0
        ax.plot(x, summary.mean, "o", ms=5, mec=colour, mfc=PAPER if hollow else colour, zorder=4)


def _draw_references(ax: Axes, rows: Sequence[Row], place: int) -> None:
    means = ((row.measures[place].summary.mean, row.label) for row in rows)
    found = sorted((mean, label) for mean, label in means if mean is not None)
    for mean, _ in found:
        ax.axhline(mean, color=GREY, lw=0.8, ls=(0, (4, 2)), zorder=1)
    low, high = ax.get_ylim()
    for number, (mean, label) in enumerate(found):
        below = number + 1 < len(found) and found[number + 1][0] - mean < 0.08 * (high - low)
        ax.annotate(
            label, (0.995, mean), xycoords=ax.get_yaxis_transform(), xytext=(0, -2 if below else 1.5),
            textcoords="offset points", ha="right", va="top" if below else "bottom", color=GREY, fontsize=6.5,
        )  # fmt: skip
    ax.set_ylim(low - 0.04 * (high - low), high)


Curves = dict[str, list[dict[float, dict[str, float]]]]


def read_curves(store: Path, record: Record) -> Curves:
    """Return for every cell the metrics of its runs by epoch; a run that logged nothing (0 epochs) is left out."""
    curves: Curves = {}
    for cell in in_order(record):
        paths = [store / cell["runs"][seed] / "metrics.jsonl" for seed in sorted(cell["runs"], key=int)]
        runs = [_read_run(path) for path in dict.fromkeys(paths) if path.is_file()]
        if any(runs):
            axis = cell["axis"].rpartition(".")[2] if cell["axis"] and len(record["axes"]) > 1 else ""
            curves[f"{axis} {cell['label']}".strip()] = [run for run in runs if run]
    return curves


def _read_run(path: Path) -> dict[float, dict[str, float]]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line["epoch"]: {name: value for name, value in line.items() if _is_curve(name, value)} for line in lines}


def _is_curve(name: str, value: object) -> bool:
    return name not in NOT_CURVES and isinstance(value, int | float) and not isinstance(value, bool)


def curves_figure(curves: Curves) -> Figure:
    """Draw one small panel a metric over epochs: a line a cell (mean over seeds), a thin line a seed."""
    lines = [line for runs in curves.values() for run in runs for line in run.values()]
    metrics = list(dict.fromkeys(name for line in lines for name in line))
    metrics = [name for name in metrics if any(line.get(name) for line in lines)] or metrics  # 0 all along says nothing
    colours = dict(zip(curves, _colours(len(curves)), strict=True))
    across = min(3, len(metrics))
    with style():
        figure, axes = _grid_of_axes(len(metrics), across, 2.2, 1.75)
        for ax, metric in zip(axes, metrics, strict=True):
            for name, runs in curves.items():
                _draw_curve(ax, runs, metric, colours[name], name)
            ax.set_title(metric.replace("_", " "), loc="left")
            ax.grid(color=GREY, alpha=0.2, lw=0.5)
        for ax in axes[-across:]:
            ax.set_xlabel("epoch")
        handles, labels = axes[0].get_legend_handles_labels()
        columns = max(1, int(across * 38 / (max(map(len, labels)) + 8)))  # about 38 characters of 7 pt fill a panel
        more = max(0, math.ceil(len(labels) / columns) - 2)
        figure.set_figheight(figure.get_figheight() + 0.16 * more)  # a long key takes no room from the panels
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns), frameon=False)
    return figure


def _draw_curve(ax: Axes, runs: list[dict[float, dict[str, float]]], metric: str, colour: str, label: str) -> None:
    seeds = [{epoch: line[metric] for epoch, line in run.items() if metric in line} for run in runs]
    for seed in seeds:
        ax.plot(list(seed), list(seed.values()), color=colour, lw=0.5, alpha=0.35)
    common = [epoch for epoch in seeds[0] if all(epoch in seed for seed in seeds)]
    mean = [sum(seed[epoch] for seed in seeds) / len(seeds) for epoch in common]
    ax.plot(common, mean, color=colour, lw=1.3, label=label)


def _colours(count: int) -> list[str]:
    """Return as many colours as there are cells: told apart with colour blindness, and on dark as on light."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [to_hex(mpl.colormaps["viridis"](0.15 + 0.7 * place / (count - 1))) for place in range(count)]
