"""Pure: a grid file and overrides -> cells -> runs and their identities. Nothing is started or written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from smog.config import build, compose
from smog.data.sources import with_fingerprint
from smog.errors import UsageError, nearest
from smog.identity import digest, group_id, run_id
from smog.schema import Config
from smog.store import result_path
from smog.tasks import protocol, settings

HERE = Path(__file__).parent
MODES = ("one_factor",)


@dataclass(frozen=True)
class Grid:
    """A grid as its file declares it; defaults.yaml fills what the file leaves out."""

    title: str
    axes: dict[str, Any]
    mode: str
    baseline: dict[str, Any]
    seeds: list[int]
    tasks: list[str]
    metric: str
    family: str
    references: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A point of a grid with all its seeds. A reference is a row to read the others against, such as raw pixels."""

    label: str
    axis: str | None
    value: Any
    baseline: bool
    reference: bool
    configs: dict[int, Config]

    @property
    def group(self) -> str:
        """The identity that the seeds share."""
        return group_id(next(iter(self.configs.values())))


@dataclass(frozen=True)
class Plan:
    """All that a launch has to know."""

    name: str
    grid: Grid
    cells: list[Cell]
    tasks: dict[str, Any]  # name -> settings
    command: str

    def runs(self) -> Iterator[tuple[Cell, int, Config]]:
        """Yield every run once: seed by seed, so that an early look at the table has whole rows of one seed."""
        seen = set()
        for seed in self.grid.seeds:
            for cell in self.cells:
                identity = run_id(cell.configs[seed])
                if identity not in seen:
                    seen.add(identity)
                    yield cell, seed, cell.configs[seed]

    def missing(self, config: Config) -> list[str]:
        """Return what the store lacks of a run: ``train`` and the names of tasks."""
        folder = Path(config.runtime.store) / run_id(config)
        tasks = [
            name
            for name, chosen in self.tasks.items()
            if not result_path(folder, name, protocol(name, chosen)).exists()
        ]
        return ([] if (folder / "done").exists() else ["train"]) + tasks

    def record(self) -> dict[str, Any]:
        """Return what reports need to know of the grid; see smog.store.write_grid."""
        cells = [
            {
                **{key: getattr(cell, key) for key in ("label", "axis", "value", "baseline", "reference")},
                "group_id": cell.group,
                "runs": {str(seed): run_id(config) for seed, config in cell.configs.items()},
            }
            for cell in self.cells
        ]
        content = {
            "grid": self.name,
            **{key: value for key, value in asdict(self.grid).items() if key != "references"},
            "tasks": {name: protocol(name, chosen) for name, chosen in self.tasks.items()},
            "cells": cells,
        }
        return {**content, "id": digest(content), "command": self.command, "context": self._context()}

    def _context(self) -> dict[str, Any]:
        config = next(cell for cell in self.cells if cell.baseline).configs[self.grid.seeds[0]]
        return {
            "recipe": config.recipe,
            "data": config.data.name,
            "backbone": config.backbone.name,
            "epochs": config.optim.epochs,
            "batch": config.optim.batch,
            "crops": f"2x{config.views.size}",
        }


def grid_names() -> list[str]:
    """Return the names of the grids that there are."""
    return sorted(path.stem for path in (HERE / "grids").glob("*.yaml"))


def load_grid(name: str, changes: dict[str, Any]) -> Grid:
    """Read a grid file over the defaults, and the given changes over both."""
    if name not in grid_names():
        raise UsageError(f"no grid {name!r}{nearest(name, grid_names())}")
    defaults, declared = (yaml.safe_load(p.read_text()) for p in (HERE / "defaults.yaml", HERE / f"grids/{name}.yaml"))
    grid = build(Grid, {**defaults, **declared, **changes})
    _check(name, grid)
    return grid


def _check(name: str, grid: Grid) -> None:
    if grid.mode not in MODES:
        raise UsageError(f"grid {name}: mode {grid.mode!r}{nearest(grid.mode, MODES)}")
    if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds) or not all(type(s) is int for s in grid.seeds):
        raise UsageError(f"grid {name}: seeds={grid.seeds} must be different whole numbers, at least one")
    if not grid.tasks:
        raise UsageError(f"grid {name}: at least one task is needed")
    if grid.metric.split(".")[0] not in grid.tasks:
        raise UsageError(f"grid {name}: metric {grid.metric} is of no task in {grid.tasks}")
    for axis, values in grid.axes.items():
        if not isinstance(values, list) or not values or len({str(value) for value in values}) < len(values):
            raise UsageError(f"grid {name}: the axis {axis} needs a list of different values, not {values}")
        if grid.baseline.get(axis) not in values:
            raise UsageError(f"grid {name}: the baseline {axis}={grid.baseline.get(axis)} is not on its axis {values}")


def plan(name: str, overrides: Sequence[str], changes: dict[str, Any] | None = None, command: str = "") -> Plan:
    """Resolve a grid with the overrides of every run and the changes to the grid itself, such as its seeds."""
    grid = load_grid(name, changes or {})
    tasks = {task: settings(task) for task in grid.tasks}
    if any(override.startswith("seed=") for override in overrides):
        raise UsageError("seed is set by the grid for every run; take seeds=[...]")
    taken = [axis for axis in grid.axes if any(override.startswith(f"{axis}=") for override in overrides)]
    if taken:
        raise UsageError(f"{taken[0]} is the axis of the grid {name}; it can't be overridden for all its cells")
    references = [
        _cell(label, None, None, [*overrides, *_base(grid), *more], grid.seeds, reference=True)
        for label, more in grid.references.items()
    ]
    return Plan(name, grid, [*references, *_one_factor(grid, overrides)], tasks, command)


def _base(grid: Grid) -> list[str]:
    return [f"{axis}={value}" for axis, value in grid.baseline.items()]


def _one_factor(grid: Grid, overrides: Sequence[str]) -> Iterator[Cell]:
    """Yield the baseline and every cell that differs from it along one axis; with one axis in the axis' order."""
    if len(grid.axes) > 1:
        yield _cell("baseline", None, None, [*overrides, *_base(grid)], grid.seeds, baseline=True)
    for axis, values in grid.axes.items():
        for value in values:
            same = value == grid.baseline[axis]
            if not same or len(grid.axes) == 1:
                cell = [*overrides, *_base(grid), f"{axis}={value}"]
                yield _cell(str(value), axis, value, cell, grid.seeds, baseline=same)


def _cell(
    label: str,
    axis: str | None,
    value: Any,
    overrides: Sequence[str],
    seeds: Sequence[int],
    baseline: bool = False,
    reference: bool = False,
) -> Cell:
    config = with_fingerprint(compose(overrides))
    fixed = any(override.startswith("seed=") for override in overrides)  # a reference that no seed changes
    configs = {seed: config if fixed else replace(config, seed=seed) for seed in seeds}
    return Cell(label, axis, value, baseline, reference, configs)
