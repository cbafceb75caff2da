"""How grids stand: what is done, runs, waits or failed, with partial results, failures by cause, and waste."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.plan import Cell, Plan, shared
from ablations.policies import POLICIES
from ablations.stock import Stock
from ablations.work import Job
from reports.spent import last_row, waste
from smog.attempts import history, holder, stages
from smog.cost_text import duration
from smog.failures import KINDS

SHOWN = 40  # cells that a terminal shows; format=json has all


@dataclass(frozen=True)
class State:
    """How one job stands: done, running, queued, failed or waiting. ``progress`` from 0 to 1, ``left`` in seconds."""

    name: str
    stage: str = ""
    progress: float | None = None
    left: float | None = None
    loss: float | None = None
    where: str = ""
    kind: str = ""
    reason: str = ""
    trace: str = ""
    attempts: int = 0
    waste: float = 0.0


@dataclass(frozen=True)
class Status:
    """All grids of a call, with the state of every run."""

    plans: list[Plan]
    states: dict[str, State]  # by run
    values: dict[str, float] = field(default_factory=dict)  # run -> the grid's metric, where it is there

    @property
    def open(self) -> bool:
        """Whether anything is under way."""
        return any(state.name in ("running", "queued") for state in self.states.values())


def status(plans: Sequence[Plan], stock: Stock, queued: Mapping[str, str], ended: Mapping[str, str]) -> Status:
    """Look at every run of the grids. ``queued`` and ``ended`` are what Slurm knows of runs that say nothing now."""
    states = {job.run: _state(job, stock, queued, ended) for job in shared(plans)}
    values = {}
    for plan in plans:
        task, metric = plan.grid.metric.split(".", 1)
        for cell in plan.cells:
            for run in cell.runs.values():
                result = stock.read(stock.result(run, task, plan.tasks[task])) if run in stock.runs else None
                if result and metric in result["metrics"]:
                    values[run] = result["metrics"][metric]
    return Status(list(plans), states, values)


def _state(job: Job, stock: Stock, queued: Mapping[str, str], ended: Mapping[str, str]) -> State:
    folder, missing = stock.store / job.run, stock.missing(job)
    if job.run not in stock.runs:
        return State("queued", where=queued[job.run]) if job.run in queued else State("waiting")
    tried = {stage: history(folder, stage) for stage in stages(folder)} if missing or _several(folder) else {}
    spent: dict[str, Any] = {"attempts": sum(map(len, tried.values())), "waste": waste(folder, tried)}
    if not missing:
        return State("done", progress=1.0, **spent)
    at_work = _running(folder, tried)
    if at_work:
        return State("running", **at_work, **_progress(folder, job), **spent)
    if job.run in queued:
        return State("queued", where=queued[job.run], **_progress(folder, job), **spent)
    last = max((one[-1] for one in tried.values() if one), key=lambda one: one["began"], default=None)
    if last is None or last["outcome"] == "done":
        return State("waiting", stage=missing[0], **_progress(folder, job), **spent)
    kind = last["outcome"] or ended.get(job.run, "killed")
    reason = last.get("reason", "it ended without a word")
    return State("failed", kind=kind, reason=reason, trace=last.get("trace", ""), **_progress(folder, job), **spent)


def _several(folder: Path) -> bool:
    """Say whether any stage was tried more than once, from the names of the files alone."""
    return any(len(os.listdir(folder / "attempts" / stage)) > 1 for stage in stages(folder))


def _running(folder: Path, tried: Mapping[str, Any]) -> dict[str, Any]:
    for stage in tried:
        if found := holder(folder, stage):
            owner = found["owner"]
            job = f"Slurm {owner['job']} on {owner['node']}" if owner["job"] else f"process {owner['pid']}"
            return {"stage": stage.partition("@")[0], "where": job}
    return {}


def _progress(folder: Path, job: Job) -> dict[str, Any]:
    row = last_row(folder)
    if not row or not job.config.optim.epochs:
        return {}
    share = min(1.0, row["epoch"] / job.config.optim.epochs)
    left = row["time"]["seconds"] * (1 / share - 1) if share else 0.0
    return {"progress": share, "left": left, "loss": row["loss"]}


# ---- what is shown ----


def causes(found: Status) -> list[dict[str, Any]]:
    """Return the failures grouped by cause: the kind, and for errors in the program where they were raised."""
    titles = {job.run: job.title for job in shared(found.plans)}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run, state in found.states.items():
        if state.name == "failed":
            groups[state.kind, state.trace].append(run)
    return [
        {
            "kind": kind,
            "jobs": [titles[run] for run in runs],
            "reason": found.states[runs[0]].reason,
            "help": POLICIES[kind].hint if kind in POLICIES else "",
        }
        for (kind, _), runs in groups.items()
    ]


def as_json(found: Status) -> dict[str, Any]:
    """Return the status as one JSON document."""
    return {
        "grids": [
            {
                "grid": plan.name,
                "metric": plan.grid.metric,
                "cells": [
                    {
                        "cell": cell.label,
                        "runs": [
                            {"seed": seed, "run": run, "value": found.values.get(run), **vars(found.states[run])}
                            for seed, run in cell.runs.items()
                        ],
                    }
                    for cell in plan.cells
                ],
            }
            for plan in found.plans
        ],
        "counts": dict(Counter(state.name for state in found.states.values())),
        "failures": causes(found),
        "waste_seconds": round(sum(state.waste for state in found.states.values()), 1),
    }


def render(found: Status) -> Any:
    """Return what a terminal shows, for rich."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_table(plan, found) for plan in found.plans]
    for cause in causes(found):
        jobs = cause["jobs"]
        more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
        parts.append(Text(f"{KINDS[cause['kind']]}: {', '.join(jobs[:3])}{more}", style="red"))
        parts.append(Text(f"  {cause['reason']}"))
        if cause["help"]:
            parts.append(Text(f"  {cause['help']}", style="dim"))
    return Group(*parts, Text(summary(found)))


def summary(found: Status) -> str:
    """Return the whole in one line."""
    names = Counter(state.name for state in found.states.values())
    runs = f"{len(found.states)} runs, {names['done']} in the store, {len(found.states) - names['done']} to do"
    apart = ", ".join(f"{names[name]} {name}" for name in ("running", "queued", "failed") if names[name])
    left = max((state.left or 0.0 for state in found.states.values() if state.name == "running"), default=0.0)
    waste = sum(state.waste for state in found.states.values())
    return "; ".join(
        part
        for part in (runs, apart, f"{duration(left / 3600)} left of what runs" * bool(left), _wasted(waste))
        if part
    )


def _wasted(seconds: float) -> str:
    return f"{duration(seconds / 3600)} spent on attempts that left no result" if seconds >= 1 else ""


def _table(plan: Plan, found: Status) -> Any:
    from rich.table import Table

    table = Table("cell", "seeds", "now", "left", "loss", plan.grid.metric, title=plan.name, title_justify="left")
    cells = sorted(plan.cells, key=lambda cell: _rank(cell, found)) if len(plan.cells) > SHOWN else plan.cells
    for cell in cells[:SHOWN]:
        table.add_row(*_row(cell, found))
    if len(cells) > SHOWN:
        table.add_row(f"and {len(cells) - SHOWN} more", *[""] * 5, style="dim")
    return table


def _rank(cell: Cell, found: Status) -> int:
    names = {found.states[run].name for run in cell.runs.values()}
    return min(("running", "failed", "queued", "waiting", "done").index(name) for name in names)


def _row(cell: Cell, found: Status) -> list[Any]:
    from rich.text import Text

    runs = list(dict.fromkeys(cell.runs.values()))
    states = [found.states[run] for run in runs]
    done = sum(state.name == "done" for state in states)
    at_work = [state for state in states if state.name == "running"]
    left = max((state.left for state in at_work if state.left is not None), default=None)
    loss = next((state.loss for state in at_work if state.loss is not None), None)
    values = [found.values[run] for run in runs if run in found.values]
    complete = len(values) == len(runs)
    return [
        Text(cell.label + (" (baseline)" if cell.baseline and cell.label != "baseline" else "")),
        f"{done}/{len(runs)}",
        Text(", ".join(dict.fromkeys(map(_now, states))), style="" if done == len(runs) else "yellow"),
        "" if left is None else duration(left / 3600),
        "" if loss is None else f"{loss:.3f}",
        Text(_mean(values, len(runs)), style="" if complete else "bright_black"),
    ]


def _now(state: State) -> str:
    if state.name == "running":
        share = f" {state.progress:.0%}" if state.progress is not None and state.stage == "train" else ""
        return f"{state.stage}{share} ({state.where})"
    return f"failed: {state.kind}" if state.name == "failed" else state.name


def _mean(values: Sequence[float], planned: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean}{spread}" + (f" (n = {len(values)}/{planned})" if len(values) < planned else "")
