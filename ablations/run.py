"""The command ``python ablations/run.py``: plan grids, run them, see how they stand, print their tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, a checkout's packages are found

from ablations.request import Request, parse
from smog.errors import UsageError, exit_code
from smog.progress import say

if TYPE_CHECKING:
    from ablations.launch import Inline, Local
    from ablations.plan import Plan
    from ablations.preview import Preview
    from ablations.slurm import Slurm
    from ablations.stock import Stock
    from ablations.work import Job

HELP = """usage: python ablations/run.py grid=NAME[,NAME...] [action=run] [launch=local] [store=runs] [seeds=[0,1,2]]
                               [tasks=[knn,linear]] [metric=knn.top1] [max_hours=H] [pack=true] [format=json]
                               [key=value ...]

grid     {grids}
action   run      train and evaluate what the store lacks, then print the tables (running it again does no work)
         plan     show the cells, what the store has of them, and what the rest will cost
         explain  cell=LABEL [seed=N]: say why a cell is computed again, and what of it
         status   how every cell stands, failures by cause; watch=true goes on looking
         results  print the tables of what is there
         cancel   stop what is queued or running of these grids; it goes on where it was cut when run again
launch   local    one process a core, or a GPU, each its own run; launch.slots=N, launch.threads=N
         inline   one run after the other in this process
         slurm    job arrays, and this command may leave; launch.partition=NAME launch.hours=H launch.gpus=N ...
                  (all keys: ablations/launchers/slurm.yaml)
max_hours=H       refuse to run what will cost more hours of the device
pack=true|N       train runs that share images and views together in one process, at most N at once

Several grids share their cells. All other keys go to every run, as in `smog train`; task.key=value goes to a task:

  python ablations/run.py grid=num_groups
  python ablations/run.py grid=num_groups,temperature action=plan
  python ablations/run.py grid=temperature data=cifar10 data.root=DIR recipe=demo knn.k=5
"""
WATCH = 5.0  # seconds between two looks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 some cell failed, 2 wrong use."""
    return exit_code(_main, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        grids = sorted(path.stem for path in (Path(__file__).parent / "grids").glob("*.yaml"))
        print(HELP.format(grids=", ".join(grids)), end="")
        return 0 if arguments else 2
    request = parse(arguments)
    settings = _launcher(request)
    from ablations.plan import plan
    from ablations.stock import Stock

    overrides = [*request.overrides, f"runtime.store={request.store}"]
    plans = [plan(name, overrides, request.changes, request.command) for name in request.grids]
    return ACTIONS[request.action](request, settings, plans, Stock(request.store))


def _launcher(request: Request) -> Inline | Local | Slurm:
    """Return the settings of the launcher; a wrong key is said before anything else happens."""
    if request.how == "slurm":
        from ablations.slurm import slurm_settings

        return slurm_settings(request.launcher)
    from ablations.launch import launcher_settings

    return launcher_settings(request.how, request.launcher)


# ---- the actions ----


def _preview(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> Preview:
    from ablations.preview import preview

    return preview(plans, stock, settings.at_once, getattr(settings, "device", ""))


def _plan(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    from ablations.preview import as_json, to_text

    found = _preview(request, settings, plans, stock)
    print(json.dumps(as_json(found)) if request.json else to_text(found))  # indented it takes seconds for 10,000 cells
    for path in stock.damaged:
        say(f"{path} is damaged: it would be computed again")
    return 0


def _explain(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    from dataclasses import asdict

    from ablations.explain import explain

    if not request.cell:
        raise UsageError("action=explain needs a cell: cell=LABEL, as action=plan shows it")
    found = [explain(plan, stock, request.cell, request.seed) for plan in plans]
    print(json.dumps([asdict(one) for one in found], indent=1) if request.json else "\n".join(_lines(found)))
    return 0


def _lines(found: Sequence[Any]) -> Iterator[str]:
    for one in found:
        yield from one.lines()


def _run(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    found = _affordable(request, settings, plans, stock)
    if found.to_do:
        _writable(request.store)
    stock.set_aside()
    from ablations.preview import counts
    from smog.store import grid_path, write_grid

    say(f"{', '.join(plan.name for plan in plans)}: {counts(found)}")
    for plan in plans:
        record = plan.record()
        if found.to_do or not grid_path(request.store, record).exists():
            write_grid(request.store, record)
    for job in {job.config.data: job for job in found.to_do}.values():
        _prepare(job)
    if request.how == "slurm":
        return _submit(request, settings, found)
    return _tables(request, plans, _work(request, settings, found))


def _affordable(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> Preview:
    """Return the plans beside the store; refuse to go on where they would cost too much."""
    if request.max_hours is None:
        from ablations.preview import unpriced

        return unpriced(plans, stock)
    found = _preview(request, settings, plans, stock)
    if found.total.hours > request.max_hours:
        raise UsageError(f"max_hours={request.max_hours:g}: this would cost {found.total.text()}")
    return found


def _writable(store: Path) -> None:
    """Refuse a store that can't be written, before a run finds out."""
    from smog.store import write_atomically

    path = store / ".writable"
    try:
        write_atomically(path, lambda file: file.write(b"\0" * 4096))
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"the store {store} can't be written: {error.strerror}; store=DIR takes another") from None


def _prepare(job: Job) -> None:
    """Decode small data sets once, before several processes would each do it."""
    from smog.data.images import open_images

    for split in ("train", "val"):
        open_images(job.config, split)


def _work(request: Request, settings: Any, found: Preview) -> list[dict[str, str]]:
    """Work off what is missing on this machine; return the failures."""
    from ablations.launch import launch, log_path
    from ablations.packs import packs
    from smog.signals import StopSignals

    jobs = found.to_do
    failed, started, number = [], time.monotonic(), 0
    with StopSignals():
        for outcome in launch(packs(jobs, request.pack, settings.at_once), settings):
            number += 1
            left = (time.monotonic() - started) / number * (len(jobs) - number)
            state = f"done in {outcome.seconds:.0f} s" if outcome.done else f"failed: {outcome.reason}"
            say(f"[{number}/{len(jobs)}] {outcome.job.title}: {state}; about {left / 60:.1f} min left")
            if not outcome.done:
                log = log_path(outcome.job.config)
                failed.append(_failure(outcome, str(log) if log.exists() else ""))
    return failed


def _failure(outcome: Any, log: str) -> dict[str, str]:
    from ablations.policies import POLICIES

    hint = POLICIES[outcome.kind].hint
    return {"job": outcome.job.title, "kind": outcome.kind, "error": outcome.reason, "help": hint, "log": log}


def _submit(request: Request, settings: Any, found: Preview) -> int:
    from ablations.slurm import submit

    submission = submit(found.to_do, request.store, settings)
    print(json.dumps(submission.as_json(), indent=1) if request.json else submission.text())
    return 0


def _tables(request: Request, plans: Sequence[Plan], failed: list[dict[str, str]]) -> int:
    from ablations.results import to_json, to_text

    if request.json:
        documents = [to_json(request.store, plan.record(), failed=failed) for plan in plans]
        print(documents[0] if len(documents) == 1 else f"[{','.join(documents)}]", end="")
    else:
        print("\n\n".join(to_text(request.store, plan.record()) for plan in plans), end="")
    for one in failed:
        log = f" (log: {one['log']})" if one["log"] else ""
        say(f"failed: {one['job']}: {one['error']}{log}" + (f"; {one['help']}" if one["help"] else ""))
    return 1 if failed else 0


def _results(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    return _tables(request, plans, [])


def _status(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    from rich.console import Console
    from rich.live import Live

    from ablations.status import as_json, render

    found = _look(request, plans)
    if request.json:
        print(json.dumps(as_json(found)))
    elif not request.watch:
        Console().print(render(found))
    else:
        with Live(render(found), console=Console(), auto_refresh=False) as live:
            idle = not found.open
            while found.open or not idle:  # between two jobs nothing runs for a moment
                idle = not found.open
                time.sleep(WATCH)
                found = _look(request, plans)
                live.update(render(found), refresh=True)
    return 0


def _look(request: Request, plans: list[Plan]) -> Any:
    from ablations.status import status
    from ablations.stock import Stock

    queued, ended = {}, {}
    if (request.store / "launches").is_dir():  # something was submitted to Slurm
        from ablations import slurm

        queued, ended = slurm.queued(request.store), slurm.ended(request.store)
    return status(plans, Stock(request.store), queued, ended)


def _cancel(request: Request, settings: Any, plans: list[Plan], stock: Stock) -> int:
    from ablations.cancel import cancel

    stopped = cancel(plans, stock)
    if request.json:
        print(json.dumps({"cancelled": stopped}, indent=1))
    else:
        print("\n".join([*stopped, f"{len(stopped)} stopped"]))
    return 0


ACTIONS: dict[str, Callable[[Request, Any, list[Any], Any], int]] = {
    "run": _run,
    "plan": _plan,
    "explain": _explain,
    "status": _status,
    "results": _results,
    "cancel": _cancel,
}

if __name__ == "__main__":
    sys.exit(main())
