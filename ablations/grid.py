"""A grid as its file declares it: axes, baseline, seeds, tasks. Nothing is resolved here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smog.config import build
from smog.errors import UsageError, nearest

HERE = Path(__file__).parent
MODES = ("one_factor", "factorial", "zip")
FAMILIES = ("holm",)


@dataclass(frozen=True)
class Grid:
    """What a grid's file says; defaults.yaml fills what the file leaves out.

    An axis is a key of the configuration with a list of values, or any name with a mapping from labels to the keys
    that each sets. ``include`` adds cells by label, as changes to the baseline; ``exclude`` lists points, or parts of
    points, that are left out; ``overrides`` are those of every run, under what is typed.
    """

    title: str
    axes: dict[str, Any]
    mode: str
    baseline: dict[str, Any]
    include: dict[str, Any]
    exclude: list[dict[str, Any]]
    overrides: list[str]
    seeds: list[int]
    tasks: list[str]
    metric: str
    family: str
    references: dict[str, Any]

    def values(self, axis: str) -> list[Any]:
        """Return the values of an axis, or the labels of its named values."""
        return list(self.axes[axis])

    def changes(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that a point sets."""
        found: dict[str, Any] = {}
        for axis, value in point.items():
            declared = self.axes[axis]
            found |= (declared[value] or {}) if isinstance(declared, dict) else {axis: value}
        return found


@dataclass(frozen=True)
class Point:
    """A cell before it is resolved: its place on the axes and the keys it sets. ``axis`` and ``value`` where it differs
    from the baseline along one axis alone."""

    label: str
    point: dict[str, Any]
    changes: dict[str, Any]
    baseline: bool
    axis: str | None = None
    value: Any = None


def grid_names() -> list[str]:
    """Return the names of the grids that there are."""
    return sorted(path.stem for path in (HERE / "grids").glob("*.yaml"))


def load_grid(name: str, changes: Mapping[str, Any]) -> Grid:
    """Read a grid file over the defaults, and the given changes over both."""
    if name not in grid_names():
        raise UsageError(f"no grid {name!r}{nearest(name, grid_names())}")
    defaults, declared = (_read(path) for path in (HERE / "defaults.yaml", HERE / "grids" / f"{name}.yaml"))
    grid = build(Grid, {**defaults, **declared, **changes})
    _check(name, grid)
    return grid


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no mapping")
    return found


def _check(name: str, grid: Grid) -> None:
    for key, known in (("mode", MODES), ("family", FAMILIES)):
        if getattr(grid, key) not in known:
            raise UsageError(f"grid {name}: {key} {getattr(grid, key)!r}{nearest(getattr(grid, key), known)}")
    if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds) or not all(type(s) is int for s in grid.seeds):
        raise UsageError(f"grid {name}: seeds={grid.seeds} must be different whole numbers, at least one")
    if not grid.tasks or len(set(grid.tasks)) < len(grid.tasks):
        raise UsageError(f"grid {name}: tasks={grid.tasks} must be different names, at least one")
    if grid.metric.split(".")[0] not in grid.tasks:
        raise UsageError(f"grid {name}: metric {grid.metric} is of no task in {grid.tasks}")
    if not grid.axes:
        raise UsageError(f"grid {name}: at least one axis is needed")
    for axis, values in grid.axes.items():
        _check_axis(name, axis, values, grid.baseline)
    for axis in grid.baseline:
        if axis not in grid.axes:
            raise UsageError(f"grid {name}: the baseline has {axis!r}, which is no axis{nearest(axis, grid.axes)}")
    for part in grid.exclude:
        for axis, value in part.items():
            if axis not in grid.axes or value not in grid.values(axis):
                raise UsageError(f"grid {name}: exclude has {axis}={value}, which is nowhere on the axes")
    if grid.mode == "zip" and len({len(values) for values in grid.axes.values()}) > 1:
        lengths = ", ".join(f"{axis} has {len(values)}" for axis, values in grid.axes.items())
        raise UsageError(f"grid {name}: zip needs axes of one length: {lengths}")


def _check_axis(name: str, axis: str, values: Any, baseline: Mapping[str, Any]) -> None:
    if isinstance(values, dict):
        wrong = [label for label, keys in values.items() if not isinstance(keys, dict | None)]
        if wrong:
            raise UsageError(f"grid {name}: the axis {axis} at {wrong[0]!r} needs a mapping of keys to values")
    if not isinstance(values, list | dict) or not values or len({str(value) for value in values}) < len(values):
        raise UsageError(f"grid {name}: the axis {axis} needs a list of different values, not {values}")
    if baseline.get(axis) not in values:
        raise UsageError(f"grid {name}: the baseline {axis}={baseline.get(axis)} is not on its axis {list(values)}")


def points(name: str, grid: Grid) -> list[Point]:
    """Return the cells that a grid declares, the baseline among them, without the references."""
    found = [point for point in _MODES[grid.mode](grid) if not _excluded(grid, point)]
    if not any(point.baseline for point in found):
        raise UsageError(f"grid {name}: the baseline {_label(grid.baseline)} is none of its cells")
    return [*found, *_included(name, grid)]


def _excluded(grid: Grid, point: Point) -> bool:
    return any(all(point.point[axis] == value for axis, value in part.items()) for part in grid.exclude)


def _included(name: str, grid: Grid) -> Iterator[Point]:
    base = grid.changes(grid.baseline)
    for label, keys in grid.include.items():
        if not isinstance(keys, dict):
            raise UsageError(f"grid {name}: include {label!r} needs a mapping of keys to values")
        moved = {key: value for key, value in keys.items() if key in grid.axes}
        yield Point(label, {**grid.baseline, **moved}, {**base, **keys}, baseline=False)


def _one_factor(grid: Grid) -> Iterator[Point]:
    """Yield the baseline and every cell that differs from it along one axis; with one axis in the axis' order."""
    base = grid.changes(grid.baseline)
    if len(grid.axes) > 1:
        yield Point("baseline", grid.baseline, base, baseline=True)
    for axis in grid.axes:
        for value in grid.values(axis):
            same = value == grid.baseline[axis]
            if not same or len(grid.axes) == 1:
                # the axis last: what its value sets holds against what the baseline sets on another axis
                moved = {**grid.changes({**grid.baseline, axis: value}), **grid.changes({axis: value})}
                yield Point(str(value), {**grid.baseline, axis: value}, moved, same, axis, value)


def _factorial(grid: Grid) -> Iterator[Point]:
    yield from _at(grid, itertools.product(*(grid.values(axis) for axis in grid.axes)))


def _zip(grid: Grid) -> Iterator[Point]:
    yield from _at(grid, zip(*(grid.values(axis) for axis in grid.axes), strict=True))


def _at(grid: Grid, places: Iterator[Sequence[Any]] | itertools.product[Any]) -> Iterator[Point]:
    for place in places:
        point = dict(zip(grid.axes, place, strict=True))
        yield Point(_label(point), point, grid.changes(point), point == grid.baseline)


def _label(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in point.items())


_MODES = {"one_factor": _one_factor, "factorial": _factorial, "zip": _zip}
