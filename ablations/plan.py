"""Pure: a grid and overrides -> cells -> runs and tasks, their identities, and what the store has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from ablations.grid import Grid, Point, load_grid, points
from ablations.work import Job
from smog.config import GROUPS, Base, backbone_name, crops_of
from smog.data.sources import fingerprint
from smog.errors import UsageError
from smog.identity import digest, group_id, run_id
from smog.schema import Config, Data
from smog.tasks import TASKS, protocol, settings


@dataclass(frozen=True)
class Cell:
    """A point of a grid with all its seeds. A reference is a row to read the others against, such as raw pixels."""

    label: str
    axis: str | None
    value: Any
    point: dict[str, Any]
    baseline: bool
    reference: bool
    group: str  # the identity that the seeds share
    configs: dict[int, Config]
    runs: dict[int, str]  # their identities


@dataclass(frozen=True)
class Plan:
    """All that a launch has to know of one grid."""

    name: str
    grid: Grid
    cells: list[Cell]
    tasks: dict[str, Any]  # name -> settings
    command: str

    @property
    def protocols(self) -> dict[str, str]:
        """The identities of the tasks, apart from the run."""
        return {name: protocol(name, chosen) for name, chosen in self.tasks.items()}

    @property
    def baseline(self) -> Cell:
        """The cell that the others are compared with."""
        return next(cell for cell in self.cells if cell.baseline)

    def jobs(self) -> Iterator[Job]:
        """Yield every run once: seed by seed, so that an early look at the table has whole rows of one seed."""
        seen = set()
        for seed in self.grid.seeds:
            for cell in self.cells:
                if cell.runs[seed] not in seen:
                    seen.add(cell.runs[seed])
                    yield Job(f"{self.name} {cell.label} seed {seed}", cell.configs[seed], self.tasks)

    def record(self) -> dict[str, Any]:
        """Return what reports need to know of the grid; see smog.store.write_grid."""
        kept = ("label", "axis", "value", "point", "baseline", "reference")
        cells = [
            {
                **{key: getattr(cell, key) for key in kept},
                "group_id": cell.group,
                "runs": {str(seed): run for seed, run in cell.runs.items()},
            }
            for cell in self.cells
        ]
        apart = ("references", "include", "exclude", "overrides")
        content = {
            "grid": self.name,
            **{key: value for key, value in asdict(self.grid).items() if key not in apart},
            "tasks": self.protocols,
            "cells": cells,
        }
        return {**content, "id": digest(content), "command": self.command, "context": self._context()}

    def _context(self) -> dict[str, Any]:
        config = self.baseline.configs[self.grid.seeds[0]]
        views = config.views
        return {
            "recipe": config.recipe,
            "data": config.data.name,
            "backbone": backbone_name(config.backbone),
            "epochs": config.optim.epochs,
            "batch": config.optim.batch,
            "crops": crops_of(views.global_crops, views.size, views.local_crops, views.local_size),
        }


def plan(name: str, overrides: Sequence[str], changes: Mapping[str, Any] | None = None, command: str = "") -> Plan:
    """Resolve a grid with the overrides of every run and the changes to the grid itself, such as its seeds.

    An override that starts with the name of a task, such as ``knn.k=5``, is for that task.
    """
    grid = load_grid(name, changes or {})
    own = [override for override in overrides if override.partition(".")[0] not in TASKS]
    tasks = {task: settings(task, _of_task(task, overrides)) for task in grid.tasks}
    for override in overrides:
        if override.partition(".")[0] in TASKS and override.partition(".")[0] not in tasks:
            raise UsageError(f"{override}: the grid {name} has no such task; tasks=[{','.join(tasks)}]")
    taken = {override.partition("=")[0] for override in own}
    if "seed" in taken:
        raise UsageError("seed is set by the grid for every run; take seeds=[...]")
    if clash := sorted(taken & grid.axes.keys()):
        raise UsageError(f"{clash[0]} is the axis of the grid {name}; it can't be overridden for all its cells")
    resolver = _Resolver([*(o for o in grid.overrides if o.partition("=")[0] not in taken), *own], grid.seeds)
    references = [resolver.reference(label, more, grid) for label, more in _references(grid, tasks)]
    cells = [resolver.cell(point) for point in points(name, grid)]
    _check_different(name, cells)
    return Plan(name, grid, [*references, *cells], tasks, command)


def _references(grid: Grid, tasks: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows to read the others against; raw pixels are left out where a task would train them."""
    trained = any(task.TRAINS for task in tasks.values())
    return [(label, more) for label, more in grid.references.items() if not (trained and "backbone=pixels" in more)]


def _of_task(task: str, overrides: Sequence[str]) -> list[str]:
    return [override.removeprefix(f"{task}.") for override in overrides if override.startswith(f"{task}.")]


def _check_different(name: str, cells: Sequence[Cell]) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        if cell.group in seen:
            raise UsageError(f"grid {name}: the cells {seen[cell.group]!r} and {cell.label!r} are one and the same")
        seen[cell.group] = cell.label


class _Resolver:
    """Makes configurations of cells. What hydra composes, and what data are looked at, is done once for many cells."""

    def __init__(self, overrides: Sequence[str], seeds: Sequence[int]) -> None:
        self.overrides, self.seeds = list(overrides), list(seeds)
        self.bases: dict[tuple[str, ...], Base] = {}
        self.fingerprints: dict[Data, str] = {}

    def cell(self, point: Point) -> Cell:
        """Resolve a cell of the grid."""
        config = self._varied(self.overrides, point.changes)
        configs = {seed: replace(config, seed=seed) for seed in self.seeds}
        return self._cell(point.label, configs, point.axis, point.value, point.point, point.baseline)

    def reference(self, label: str, more: Sequence[str], grid: Grid) -> Cell:
        """Resolve a row to read the others against: overrides on top of the baseline. With a seed of its own it is one
        run for all seeds."""
        config = self._varied(
            [*self.overrides, *more], grid.changes(grid.baseline), [o.partition("=")[0] for o in more]
        )
        fixed = any(override.startswith("seed=") for override in more)
        configs = {seed: config if fixed else replace(config, seed=seed) for seed in self.seeds}
        return self._cell(label, configs, reference=True)

    def _varied(self, overrides: Sequence[str], changes: Mapping[str, Any], last: Sequence[str] = ()) -> Config:
        """Return the configuration for overrides and, on top of them, changes; but the keys in ``last`` hold."""
        changes = {key: value for key, value in changes.items() if key not in last}
        chosen = [f"{key}={value}" for key, value in changes.items() if key in GROUPS]
        single = {key: value for key, value in changes.items() if key not in GROUPS}
        key = (*_latest([*overrides, *chosen]),)
        if key not in self.bases:
            self.bases[key] = Base(key)
        return self._known(self.bases[key].varied(single))

    def _known(self, config: Config) -> Config:
        """Return the configuration with the fingerprint of its data."""
        if config.data not in self.fingerprints:
            self.fingerprints[config.data] = fingerprint(config.data)
        return replace(config, data=replace(config.data, fingerprint=self.fingerprints[config.data]))

    def _cell(
        self,
        label: str,
        configs: dict[int, Config],
        axis: str | None = None,
        value: Any = None,
        point: dict[str, Any] | None = None,
        baseline: bool = False,
        reference: bool = False,
    ) -> Cell:
        group = group_id(configs[self.seeds[0]])
        runs = {seed: run_id(config) for seed, config in configs.items()}
        return Cell(label, axis, value, point or {}, baseline, reference, group, configs, runs)


def _latest(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that a later one of the same key replaces."""
    found: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        found.pop(key, None)
        found[key] = override
    return list(found.values())


def shared(plans: Sequence[Plan]) -> list[Job]:
    """Return the jobs of several grids, each run once with the tasks of all grids that it is in."""
    jobs: dict[str, Job] = {}
    for plan in plans:
        for job in plan.jobs():
            known = jobs.setdefault(job.run, job)
            if job.tasks.keys() - known.tasks.keys():  # one call has one set of settings a task
                jobs[job.run] = replace(known, tasks={**known.tasks, **job.tasks})
    return list(jobs.values())


def difference(config: Config, baseline: Config) -> dict[str, tuple[Any, Any]]:
    """Return the values in which a configuration differs from another, the other's first; where and how fast is left
    out, and so is the seed."""
    return {name: (old, new) for name, old, new in _differing(config, baseline) if name != "seed"}


def _differing(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if mine == theirs or field.metadata.get("runtime"):  # most parts of two cells are equal as a whole
            continue
        if is_dataclass(mine):
            yield from _differing(mine, theirs, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, theirs, mine
