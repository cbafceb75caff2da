"""What ``action=plan`` shows: each cell, how it differs from the baseline, what is missing of it, and the price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ablations.plan import Cell, Plan, difference, shared
from ablations.price import Price, Pricer, Total, total
from ablations.stock import Stock
from ablations.work import Job
from smog.cost_text import duration

SHOWN = 2  # differences of a cell in a line for people; format=json has all


@dataclass(frozen=True)
class Preview:
    """Plans beside the store: the jobs of all grids once, what is missing of each, and what that will cost."""

    plans: list[Plan]
    jobs: list[Job]
    missing: dict[str, list[str]]  # by run
    prices: dict[str, Price]
    total: Total

    @property
    def to_do(self) -> list[Job]:
        """The jobs of which something is missing."""
        return [job for job in self.jobs if self.missing[job.run]]


def preview(plans: Sequence[Plan], stock: Stock, at_once: int, device: str = "") -> Preview:
    """Compare plans with the store and price what is missing."""
    jobs, pricer = shared(plans), Pricer(stock, device)
    missing = {job.run: stock.missing(job) for job in jobs}
    prices = {job.run: pricer.price(job, missing[job.run]) for job in jobs if missing[job.run]}
    return Preview(list(plans), jobs, missing, prices, total(list(prices.values()), at_once))


def unpriced(plans: Sequence[Plan], stock: Stock) -> Preview:
    """Compare plans with the store, without a price."""
    jobs = shared(plans)
    return Preview(list(plans), jobs, {job.run: stock.missing(job) for job in jobs}, {}, total([], 1))


def counts(found: Preview) -> str:
    """Return how many cells and runs there are, in one line: ``31 cells, 9 shared, 22 to train``."""
    cells = Counter(cell.group for plan in found.plans for cell in plan.cells)
    twice = cells.total() - len(cells)
    both = f", {twice} shared" if len(found.plans) > 1 else ""
    train = {cell.group for plan in found.plans for cell in plan.cells if _trains(cell, found)}
    runs = f"{len(found.jobs)} runs, {len(found.jobs) - len(found.to_do)} in the store, {len(found.to_do)} to do"
    return f"{cells.total()} cells{both}, {len(train)} to train; {runs}"


def _trains(cell: Cell, found: Preview) -> bool:
    return any("train" in found.missing[run] for run in cell.runs.values())


def to_text(found: Preview) -> str:
    """Return the plans for people."""
    from tabulate import tabulate

    parts = []
    for plan in found.plans:
        rows = [_row(plan, cell, found) for cell in plan.cells]
        head = f"{plan.name}: {plan.grid.title} ({plan.grid.mode}, seeds {', '.join(map(str, plan.grid.seeds))})"
        header = ("cell", "differs from the baseline in", "runs there", "to do", "device time")
        parts.append(f"{head}\n{tabulate(rows, header, 'plain', disable_numparse=True)}")
    return "\n\n".join([*parts, f"{counts(found)}\ncost: {found.total.text()}"])


def _row(plan: Plan, cell: Cell, found: Preview) -> tuple[str, ...]:
    runs = list(dict.fromkeys(cell.runs.values()))
    stages = dict.fromkeys(stage for run in runs for stage in found.missing[run])
    there = sum(not found.missing[run] for run in runs)
    priced = sum(found.prices[run].seconds for run in runs if run in found.prices)
    label = cell.label + (" (baseline)" if cell.baseline and cell.label != "baseline" else "")
    return (
        label,
        _differs(plan, cell),
        f"{there}/{len(runs)}",
        ", ".join(stages),
        duration(priced / 3600) if priced else "",
    )


def _differs(plan: Plan, cell: Cell) -> str:
    if cell.baseline:
        return ""
    found = [f"{name} {new} ({old})" for name, (old, new) in _difference(plan, cell).items()]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _difference(plan: Plan, cell: Cell) -> dict[str, tuple[Any, Any]]:
    seed = plan.grid.seeds[0]
    return difference(cell.configs[seed], plan.baseline.configs[seed])


def as_json(found: Preview) -> dict[str, Any]:
    """Return the plans as one JSON document."""
    return {
        "grids": [
            {
                "grid": plan.name,
                "mode": plan.grid.mode,
                "tasks": plan.protocols,
                "cells": [_cell(plan, cell, found) for cell in plan.cells],
            }
            for plan in found.plans
        ],
        "counts": counts(found),
        "cost": asdict(found.total),
    }


def _cell(plan: Plan, cell: Cell, found: Preview) -> dict[str, Any]:
    return {
        "cell": cell.label,
        "group_id": cell.group,
        "baseline": cell.baseline,
        "reference": cell.reference,
        "differs": {name: {"baseline": old, "cell": new} for name, (old, new) in _difference(plan, cell).items()},
        "runs": [
            {"seed": seed, "run": run, "missing": found.missing[run], **_price(found.prices.get(run))}
            for seed, run in cell.runs.items()
        ],
    }


def _price(price: Price | None) -> dict[str, Any]:
    return {} if price is None else {"seconds": round(price.seconds, 3), "origin": price.origin}
