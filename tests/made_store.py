"""A store with real files and made results, for the tests of the reports. The numbers mean nothing."""

import functools
import hashlib
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

from smog.store import result_path, write_grid, write_json

TASKS = {"knn": "aaaaaaaa", "linear": "bbbbbbbb"}
AXIS = "method.num_groups"


def run_id(*parts: object) -> str:
    """Return twelve hex digits for whatever tells a run from another."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def write_result(
    store: Path, run: str, seed: int, task: str, top1: float, images: int = 2000, group: str = "0" * 12
) -> None:
    """Write one result as a task writes it."""
    result = {
        "schema": 1, "run_id": run, "group_id": group, "seed": seed, "task": task, "protocol": TASKS[task],
        "settings": {}, "metrics": {"top1": top1}, "cost": {"seconds": 2.0, "device": "cpu", "peak_memory": 1000},
        "inputs": {"data": "made", "train": 6000, "val": images},
        "provenance": {"commit": "c" * 40, "dirty": True, "versions": {}}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    write_json(result_path(store / run, task, TASKS[task]), result)


def write_run(store: Path, run: str, steps: int, level: float) -> None:
    """Write a finished run with a line of metrics a step; a run of 0 steps has no metrics file."""
    write_json(store / run / "done", {"seconds": 60.0, "peak_memory": 1000, "steps": steps, "device": "cpu"})
    noise = random.Random(run)
    lines = [
        {"step": step, "epoch": step / 10, "loss": level + 3 * math.exp(-step / 20) + noise.gauss(0, 0.03),
         "lr": 0.1 * math.cos(step / steps * math.pi / 2), "group_entropy": 1 - math.exp(-step / 9), "time": {}}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    if lines:
        (store / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def cell(store: Path, label: str, value: Any, values: dict[str, list[float | None]], **more: Any) -> dict[str, Any]:
    """Write the runs of one cell (a value for every seed, None for a missing result); return its record."""
    seeds, group = range(max(len(one) for one in values.values())), run_id(label)
    runs = {str(seed): run_id(label, seed) for seed in seeds}
    for seed in seeds:
        write_run(store, runs[str(seed)], 0 if more.get("reference") else 60, 2.0 + int(runs["0"], 16) % 10 / 5)
        for task, top1 in values.items():
            if (number := top1[seed]) is not None:
                write_result(store, runs[str(seed)], seed, task, number, group=group)
    own = {"label": label, "axis": AXIS, "value": value, "baseline": False, "reference": False, "group_id": group}
    own["point"] = {} if more.get("reference") else {AXIS: value}
    return {**own, "runs": runs, **more}


def record(cells: list[dict[str, Any]], name: str = "num_groups", **more: Any) -> dict[str, Any]:
    """Return a grid record over the cells."""
    values = [one["value"] for one in cells if not one["reference"]]
    seeds = sorted({int(seed) for one in cells for seed in one["runs"]})
    return {
        "grid": name, "id": run_id(name), "title": "Number of groups",
        "command": f"python ablations/run.py grid={name} recipe=demo", "mode": "one_factor", "axes": {AXIS: values},
        "baseline": {AXIS: 300}, "seeds": seeds, "metric": "knn.top1", "tasks": TASKS, "family": "holm", "cells": cells,
        "context": {"recipe": "demo", "data": "made", "epochs": 6, "batch": 256, "crops": "2x32"}, **more,
    }  # fmt: skip


def made_grid(store: Path, **more: Any) -> dict[str, Any]:
    """Write a complete grid of four cells, three seeds, two tasks and two reference rows, and return its record."""
    reference = {"axis": None, "reference": True}
    cells = [
        cell(store, "untrained", None, {"knn": [31.1, 30.2, 31.9], "linear": [35.0, 35.9, 34.8]}, **reference),
        cell(store, "raw pixels", None, {"knn": [38.4] * 3, "linear": [41.2] * 3}, **reference),
        cell(store, "30", 30, {"knn": [40.3, 41.0, 39.9], "linear": [47.9, 48.8, 47.1]}),
        cell(store, "100", 100, {"knn": [44.7, 45.9, 44.1], "linear": [50.9, 51.7, 51.8]}),
        cell(store, "300", 300, {"knn": [45.9, 46.4, 45.2], "linear": [51.0, 52.7, 51.9]}, baseline=True),
        cell(store, "1000", 1000, {"knn": [45.1, 46.9, 45.0], "linear": [52.4, 52.6, 53.0]}),
    ]
    made = record(cells) | more
    write_grid(store, made)
    return made


def named_cell(store: Path, point: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write a cell that lies on no single axis: its label says its whole point."""
    label = ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in point.items())
    noise = random.Random(label)
    values: list[float | None] = [round(50 + noise.gauss(0, 1), 2) for _ in range(3)]
    return cell(store, label, None, {"knn": values}, axis=None, point=point, **more)


def crossed_grid(store: Path, axes: dict[str, Any], mode: str = "factorial", **more: Any) -> dict[str, Any]:
    """Write a factorial or zip grid whose first point is the baseline, and return its record."""
    rows = itertools.product(*axes.values()) if mode == "factorial" else zip(*axes.values(), strict=True)
    points = [dict(zip(axes, row, strict=True)) for row in rows]
    cells = [named_cell(store, point, baseline=point is points[0]) for point in points]
    made = record([*cells, *more.pop("included", [])], mode=mode, axes=axes, baseline=points[0], **more)
    made["tasks"] = {"knn": TASKS["knn"]}
    write_grid(store, made)
    return made


def configured(store: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Write the configuration of every run of a grid over the number of groups, and return its record."""
    special = {"untrained": ["optim.epochs=0"], "raw pixels": ["optim.epochs=0", "backbone=pixels"]}
    for one in made["cells"]:
        text = config_text(*special.get(one["label"], [f"method.num_groups={one['value']}"]))
        for seed, run in one["runs"].items():
            (store / run / "config.yaml").write_text(text.replace("seed: 0\n", f"seed: {seed}\n", 1))
    return made


@functools.cache  # composing takes longer than all else of a small store
def config_text(*overrides: str) -> str:
    """Return a config.yaml of the demo recipe with seed 0."""
    from smog.config import compose, dump

    return dump(compose(["recipe=demo", "seed=0", "data.fingerprint=abcdef012345", *overrides]))
