"""Stop what is queued or at work of some grids: on request alone, never because a line was removed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence

from ablations.plan import Plan, shared
from ablations.stock import Stock
from ablations.work import Job
from smog.attempts import holder, local, stages


def cancel(plans: Sequence[Plan], stock: Stock) -> list[str]:
    """Ask every process of this machine that works on a run of the grids to stop, and Slurm to drop its jobs; return
    what was asked, one line each. A run stops after its next step, with a checkpoint."""
    jobs = [job for job in shared(plans) if job.run in stock.runs or (stock.store / "launches").is_dir()]
    found = [line for job in jobs for line in _local(job, stock)]
    if (stock.store / "launches").is_dir():
        from ablations.slurm import cancel as drop

        found += drop(stock.store, {job.run for job in jobs})
    return found


def _local(job: Job, stock: Stock) -> Iterator[str]:
    folder = stock.store / job.run
    for stage in stages(folder):
        held = holder(folder, stage)
        if held and not held["owner"]["job"] and local(held["owner"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(held["owner"]["pid"], signal.SIGTERM)
                yield f"{job.title}: {stage}, process {held['owner']['pid']}"
