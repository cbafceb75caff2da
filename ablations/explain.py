"""Why a cell is computed again: which ingredient of its identity differs from a stored run's, old and new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.plan import Cell, Plan
from ablations.stock import Stock
from ablations.work import Job
from smog.errors import UsageError, nearest
from smog.identity import as_dict, ingredients
from smog.store import DONE, read_json

LOOK = 200  # the newest finished runs, among which the nearest is looked for: reading a configuration takes 10 ms


@dataclass(frozen=True)
class Change:
    """One ingredient of an identity, as the stored run has it and as it is now."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Explanation:
    """What of a cell, at one seed, would be computed and why. ``other`` is the stored run that it is compared with."""

    cell: str
    seed: int
    run: str
    missing: list[str]
    other: str | None
    changes: list[Change]

    def lines(self) -> Iterator[str]:
        """Yield what to tell a person."""
        yield f"{self.cell}, seed {self.seed}: run {self.run}"
        if not self.missing:
            yield "  in the store: nothing would be computed again"
            return
        yield f"  would be computed: {', '.join(self.missing)}"
        if self.other is None:
            yield "  no run of the store is near it"
        elif self.other == self.run:
            kept = "the run itself is there" if "train" not in self.missing else "the run was begun and never finished"
            yield f"  {kept}; its identity has not changed"
        else:
            yield f"  run {self.other} of the store differs in:"
        for change in self.changes:
            yield f"    {change.name}: {change.old} -> {change.new}"


def explain(plan: Plan, stock: Stock, label: str, seed: int | None = None) -> Explanation:
    """Compare a cell with what the store has under its label, or else with the nearest run there."""
    cell = _cell(plan, label)
    seed = plan.grid.seeds[0] if seed is None else seed
    if seed not in cell.runs:
        raise UsageError(f"seed={seed} is none of the grid's seeds {plan.grid.seeds}")
    job = Job(label, cell.configs[seed], plan.tasks)
    missing = stock.missing(job)
    new = ingredients(cell.configs[seed])
    if job.run in stock.runs:
        return Explanation(label, seed, job.run, missing, job.run, list(_tasks(stock, job, missing)))
    other = _recorded(plan, stock, label, seed) or _nearest(stock, new)
    changes = [] if other is None else _changes(_stored(stock.store / other), new)
    return Explanation(label, seed, job.run, missing, other, changes)


def _cell(plan: Plan, label: str) -> Cell:
    labels = {cell.label: cell for cell in plan.cells}
    if label not in labels:
        raise UsageError(f"cell={label!r} is not in the grid {plan.name}{nearest(label, labels)}")
    return labels[label]


def _recorded(plan: Plan, stock: Stock, label: str, seed: int) -> str | None:
    """Return the run that the newest launch of this grid had for the cell and the seed."""
    paths = (stock.store / "grids").glob(f"{plan.name}-*.json")
    for path in sorted(paths, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        for cell in (stock.read(path) or {"cells": []})["cells"]:
            run = cell["runs"].get(str(seed)) if cell["label"] == label else None
            if run in stock.runs:
                return run
    return None


def _nearest(stock: Stock, new: dict[str, Any]) -> str | None:
    """Return the run that differs in the fewest ingredients, among the newest finished ones of the store."""
    done = {run: stock.read(stock.store / run / DONE) for run in sorted(stock.runs)}
    ends = {run: str(one.get("finished")) for run, one in done.items() if one}
    finished = sorted(ends, key=ends.__getitem__)
    return min(finished[-LOOK:], key=lambda run: len(_changes(_stored(stock.store / run), new)), default=None)


def _stored(folder: Path) -> dict[str, Any]:
    """Return the ingredients of a stored run's identity, with the versions that it was made under."""
    from smog.config import load

    found = ingredients(load(folder / "config.yaml"))
    try:
        return {**found, **read_json(folder / "env.json")["identity"]}
    except (UsageError, KeyError):  # of a version that kept none
        return found


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    names = [*new, *(name for name in old if name not in new)]
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _tasks(stock: Stock, job: Job, missing: Sequence[str]) -> Iterator[Change]:
    """Yield what differs between a task's settings and those of its results that the run has."""
    for name in missing:
        for path in sorted((stock.store / job.run / "results").glob(f"{name}@*.json")):
            if result := stock.read(path):
                old, new = result["settings"], as_dict(job.tasks[name], science_only=True)
                found = _changes(old, new)
                version = result.get("version"), job.tasks[name].VERSION
                yield from (Change(f"{name}.{one.name}", one.old, one.new) for one in found)
                if not found:
                    yield Change(f"{name}, the version of its code", *version)
