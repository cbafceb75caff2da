"""Logs and diagnostics of made runs, beside what tests/made_store.py writes."""

import json
import math

from smog.store import result_path, write_grid, write_json

DIAGNOSTICS = "cccccccc"


def write_groups(store, run, groups, epochs=3, lines=30):
    """Write a log as SMoG writes it, whose numbers can be told in advance."""
    rows = [
        {"step": step, "epoch": epochs * step / lines, "loss": 5 - step / lines, "lr": 0.1, "agreement": step / lines,
         "group_entropy": 0.5 + step / lines / 2, "group_dead": groups * (1 - step / lines), "group_duplicates": 0.0,
         "group_largest": 1 / groups, "group_active": float(groups), "chance_loss": math.log(groups), "bad_images": 0,
         "time": {"seconds": 1.0}}
        for step in range(1, lines + 1)
    ]  # fmt: skip
    (store / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_seconds(store, run, seconds, **env):
    """Write how long a run trained, and on what."""
    write_json(store / run / "done", {"seconds": seconds, "device": "cpu", "packed": 1})
    write_json(store / run / "env.json", {"device": "Some CPU", "threads": 2, "packed": 1, **env})


def with_diagnostics(store, record, ranks):
    """Give each run of the grid a diagnostics result, its RankMe by run; return the grid's new record."""
    record = {**record, "tasks": {**record["tasks"], "diagnostics": DIAGNOSTICS}}
    for run, rank in ranks.items():
        result = {
            "schema": 1, "run_id": run, "group_id": "0" * 12, "seed": None, "task": "diagnostics",
            "protocol": DIAGNOSTICS, "settings": {}, "metrics": {"rankme": rank, "feature_std": 0.5},
            "cost": {"seconds": 2.0, "device": "cpu", "peak_memory": 1000},
            "inputs": {"data": "made", "train": 6000, "val": 2000},
            "provenance": {"commit": "c" * 40, "dirty": True, "versions": {}}, "created": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        write_json(result_path(store / run, "diagnostics", DIAGNOSTICS), result)
    write_grid(store, record)
    return record
