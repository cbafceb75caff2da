"""The command ``python ablations/run.py``: plan a grid, run it, see how it stands, print its table."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, a checkout's packages are found

from smog.__main__ import take, take_json
from smog.errors import UsageError, exit_code, nearest

HELP = """usage: python ablations/run.py grid=NAME [action=run] [launch=local] [store=runs] [seeds=[0,1,2]]
                               [tasks=[knn,linear]] [metric=knn.top1] [format=json] [key=value ...]

grid     {grids}
action   run      train and evaluate what the store lacks, then print the table (running it again does no work)
         plan     show the cells and what the store has of them
         status   the same, with failures
         results  print the table of what is there
launch   local    one process a core, or a GPU, each its own run
         inline   one run after the other in this process

All other keys go to every run of the grid, as in `smog train`:

  python ablations/run.py grid=num_groups
  python ablations/run.py grid=temperature data=cifar10 data.root=DIR recipe=demo
"""
ACTIONS = ("run", "plan", "status", "results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 some cell failed, 2 wrong use."""
    return exit_code(_main, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        grids = sorted(path.stem for path in (Path(__file__).parent / "grids").glob("*.yaml"))
        print(HELP.format(grids=", ".join(grids)), end="")
        return 0 if arguments else 2
    command = shlex.join(["python", "ablations/run.py", *(a for a in arguments if a != "--json")])
    as_json, rest = take_json(arguments)
    action, rest = take(rest, "action", "run")
    how, rest = take(rest, "launch", "local")
    store, rest = take(rest, "store", "runs")
    name, rest = take(rest, "grid", "")
    if action not in ACTIONS:
        raise UsageError(f"action={action!r}{nearest(action, ACTIONS)}")
    from ablations.launch import LAUNCHERS
    from ablations.plan import plan

    if how not in LAUNCHERS:
        raise UsageError(f"launch={how!r}{nearest(how, LAUNCHERS)}")
    changes, rest = _changes(rest)
    planned = plan(name, [*rest, f"runtime.store={store}"], changes, command)
    if action in ("plan", "status"):
        return _show(planned, as_json)
    failed = _run(planned, how) if action == "run" else []
    return _results(planned, store, as_json, failed)


def _changes(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what the arguments change in the grid itself, and the other arguments."""
    import yaml

    changes = {}
    for key in ("seeds", "tasks", "metric"):
        text, arguments = take(arguments, key, "")
        if text:
            try:
                changes[key] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UsageError(f"{key}={text}: {' '.join(str(error).split())}") from None
    return changes, arguments


def _run(planned: Any, how: str) -> list[dict[str, str]]:
    """Work off what is missing; return the failures."""
    from ablations.launch import Job, launch, log_path
    from smog.store import write_grid

    jobs = [
        Job(f"{planned.name} {cell.label} seed {seed}", config, planned.tasks)
        for cell, seed, config in planned.runs()
        if planned.missing(config)
    ]
    total = sum(1 for _ in planned.runs())
    _say(f"{planned.name}: {total} runs, {total - len(jobs)} in the store, {len(jobs)} to do")
    if not jobs:
        return []
    for config in {id(job.config.data): job.config for job in jobs}.values():
        _prepare(config)
    write_grid(Path(jobs[0].config.runtime.store), planned.record())
    failed, started = [], time.monotonic()
    for number, outcome in enumerate(launch(jobs, how), start=1):
        left = (time.monotonic() - started) / number * (len(jobs) - number)
        state = f"failed: {outcome.error}" if outcome.error else f"done in {outcome.seconds:.0f} s"
        _say(f"[{number}/{len(jobs)}] {outcome.job.title}: {state}; about {left / 60:.1f} min left")
        if outcome.error:
            log = log_path(outcome.job.config)
            failed.append({"job": outcome.job.title, "error": outcome.error, "log": str(log) if log.exists() else ""})
    return failed


def _prepare(config: Any) -> None:
    """Decode small data sets once, before several processes would each do it."""
    from smog.data.images import open_images

    for split in ("train", "val"):
        open_images(config, split)


def _show(planned: Any, as_json: bool) -> int:
    rows = []
    for cell in planned.cells:
        for seed, config in cell.configs.items():
            from smog.identity import run_id

            rows.append({"cell": cell.label, "seed": seed, "run": run_id(config), "missing": planned.missing(config)})
    if as_json:
        print(json.dumps({"grid": planned.name, "cells": rows}, indent=1))
        return 0
    for row in rows:
        state = "in the store" if not row["missing"] else "to do: " + ", ".join(row["missing"])
        print(f"{row['cell']:>16}  seed {row['seed']}  {row['run']}  {state}")
    runs = {row["run"]: row["missing"] for row in rows}
    todo = sum(1 for missing in runs.values() if missing)
    print(f"{planned.name}: {len(runs)} runs, {len(runs) - todo} in the store, {todo} to do")
    return 0


def _results(planned: Any, store: str, as_json: bool, failed: list[dict[str, str]]) -> int:
    from reports.tables import grid_table
    from reports.writers import to_json, to_markdown

    table = grid_table(Path(store), planned.record())
    if as_json:
        print(json.dumps({**json.loads(to_json(table)), "failed": failed}, indent=1))
    else:
        print(to_markdown(table))
    for failure in failed:
        _say(f"failed: {failure['job']}: {failure['error']}" + (f" (log: {failure['log']})" if failure["log"] else ""))
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
