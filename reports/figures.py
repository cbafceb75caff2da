"""Which drawings a grid has, in order; each only where the store has what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reports import curves, effects, forest, heat, metric, scatter
from reports.curves import Panels
from reports.logs import Course, Reader, read_logs
from reports.metric import MARKS
from reports.scatter import Cloud
from reports.stats import Measure
from reports.tables import Record, Results, Table


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: the stem of its files, its title, what its marks mean, and all that it shows."""

    name: str
    title: str
    words: str
    inputs: Any
    draw: Callable[[], Figure]


def drawings(store: Path, record: Record, table: Table, name: str, results: Results | None = None) -> list[Drawing]:
    """Return the drawings of a grid, for the venue in use (plots.venue), whose files begin with ``name``.

    In order: the metric, training curves, groups over time, accuracy over cost, RankMe against accuracy. ``results``
    are those of the grid, where they are read already. Numbers that are not finite are taken for missing.
    """
    if not any(row.kind in MARKS for row in table.rows):
        return []
    table = _finite(table)
    found = [*_main(record, table, name), *_over_time(store, table, name)]
    found += _cloud(f"{name}-cost", "Accuracy over cost", scatter.cost_cloud(store, table))
    found += _cloud(f"{name}-rankme", "RankMe and accuracy", scatter.rankme_cloud(store, record, table, results))
    return found


def _finite(table: Table) -> Table:
    rows = [replace(row, measures=tuple(map(_finite_values, row.measures))) for row in table.rows]
    return replace(table, rows=tuple(rows))


def _finite_values(one: Measure) -> Measure:
    if all(map(math.isfinite, one.values.values())):
        return one
    return replace(one, values={seed: value for seed, value in one.values.items() if math.isfinite(value)})


def _main(record: Record, table: Table, name: str) -> list[Drawing]:
    """Return the figure that shows the grid's numbers best; none where it has a baseline alone, on no axis."""
    shown = {"mode": record["mode"], "axes": {axis: list(values) for axis, values in record["axes"].items()},
             "baseline": record["baseline"], "headline": table.headline, "rows": _rows(table)}  # fmt: skip
    if heat.suits(record):
        title, words, draw = "Both axes", heat.heat_words(table, record), partial(heat.heat_figure, table, record)
    elif effects.suits(record):
        title, words = "Each axis over the others", effects.effects_words(table, record)
        draw = partial(effects.effects_figure, table, record)
    elif forest.suits(record):
        title, words = "Differences to the baseline", forest.forest_words(table)
        draw = partial(forest.forest_figure, table)
    elif metric.panels_of(table, record):
        title, words = "Metric", metric.metric_words(table, record)
        draw = partial(metric.metric_figure, table, record)
    else:
        return []
    return [Drawing(name, title, words, shown, draw)]


def _rows(table: Table) -> list[dict[str, Any]]:
    """Return what the figures of the metric know of each row, as plain data."""
    return [
        {"label": row.label, "kind": row.kind, "axis": row.axis, "value": row.value, "point": row.point,
         "measures": [[one.task, one.metric, {str(seed): run for seed, run in one.runs.items()},
                       {str(seed): value for seed, value in one.values.items()}] for one in row.measures]}
        for row in table.rows
    ]  # fmt: skip


def _over_time(store: Path, table: Table, name: str) -> list[Drawing]:
    courses = read_logs(store, table)
    groups = curves.with_groups(courses)
    kinds = [
        (
            f"{name}-curves",
            "Training curves",
            courses,
            curves.curves_panels(courses, curves.OF_GROUPS if groups else ()),
        ),
        (f"{name}-groups-over-time", "Groups over time", groups, curves.groups_panels(groups)),
    ]
    kinds = [kind for kind in kinds if kind[3]]
    read = Reader(courses, *(panels for *_, panels in kinds)) if kinds else None
    return [_curves(*kind, read) for kind in kinds if read]


def _curves(name: str, title: str, courses: list[Course], panels: Panels, read: Reader) -> Drawing:
    """Return a figure of curves. Its inputs are the digests of the logs: the numbers are read when it is drawn."""
    shown = [[one.label, one.kind, one.mean, [[log.run, log.lines, log.digest] for log in one.logs]] for one in courses]
    inputs = {"panels": list(panels), "every": read.stride, "cells": shown}
    draw = partial(curves.figure_of, courses, panels, read)
    return Drawing(name, title, curves.curves_words(courses, panels, read.stride), inputs, draw)


def _cloud(name: str, title: str, cloud: Cloud | None) -> list[Drawing]:
    if cloud is None:
        return []
    draw = partial(scatter.scatter_figure, cloud)
    return [Drawing(name, title, scatter.scatter_words(cloud), asdict(cloud), draw)]
