"""One job of a launch on Slurm. Which, says the launch's file; how far it is, says the store; nothing is pickled."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.policies import POLICIES, SAME
from ablations.work import Job, Outcome, from_json, work
from smog.attempts import BEAT, alive, attempt, history, read, stages
from smog.config import with_runtime
from smog.errors import RunError, StoppedError
from smog.failures import slurm_job
from smog.processes import place, speaks
from smog.progress import say
from smog.signals import StopSignals
from smog.store import read_json

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

UNTRIED = "not tried"


class Member:
    """What a job of an array does: train a run and compute its tasks, or what the store lacks of that."""

    def __init__(self, path: Path, chunk: int, place: int) -> None:
        self.path, self.chunk, self.place = path, chunk, place

    def __call__(self) -> str:
        """Do the job; return how it ended. What Slurm is to call FAILED raises RunError with the one line."""
        record = read_json(self.path)
        chunk = record["chunks"][self.chunk]
        store, requeue = self.path.parents[1], chunk["slurm"]["requeue"]
        job = _placed(from_json(chunk["jobs"][self.place]), store, chunk["slurm"]["cpus"])
        try:
            with StopSignals():
                outcome = _work(job, store, [one["run"] for part in record["chunks"] for one in part["jobs"]])
        except StoppedError as stopped:
            say(str(stopped))
            if requeue:
                _hand_to_submitit()
            raise
        return _ended(outcome, store / job.run, requeue)

    def checkpoint(self) -> DelayedSubmission:
        """Return what a requeued job does: the same. The run itself was saved before."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _placed(job: Job, store: Path, cpus: int) -> Job:
    """Return the job with the store as an absolute path, and as many threads as it has CPUs."""
    threads = job.config.runtime.threads or cpus
    return Job(job.title, with_runtime(job.config, store=str(store), threads=threads), job.tasks)


def _work(job: Job, store: Path, runs: list[str]) -> Outcome:
    """Do the job of a launch of these runs, unless there are reasons not to."""
    if speaks():
        _link_log(store, job.run)
    _stop_at_the_same(runs, store, job)
    if speaks():
        _wait_for_sign(store / job.run)
    return work([job])[0]


def _link_log(store: Path, run: str) -> None:
    """Let the log of the run, where other launchers keep it as well, lead to the one that Slurm writes."""
    from submitit.helpers import JobEnvironment

    link = store / "logs" / f"{run}.txt"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_file() and not link.is_symlink():
        link.rename(link.with_suffix(".before.txt"))
    temporary = link.with_name(f".{link.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.symlink_to(os.path.relpath(JobEnvironment().paths.stdout, link.parent))
    temporary.replace(link)


def _stop_at_the_same(runs: list[str], store: Path, job: Job) -> None:
    """Raise RunError, on record, where SAME attempts of this launch failed alike: this one would as well."""
    seen = Counter[str]()
    for stage, one in (found for run in runs for found in _of_launch(store / run, "code")):
        seen[one["trace"]] += not one["reason"].startswith(UNTRIED)
        if seen[one["trace"]] == SAME:
            with attempt(store / job.run, stage) if speaks() else contextlib.nullcontext():
                raise RunError(f"{UNTRIED}: {SAME} jobs of this launch failed alike: {one['reason']}")


def _of_launch(folder: Path, outcome: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the attempts at a run within this launch that ended so, each with its stage."""
    for stage in stages(folder):
        for one in history(folder, stage):
            if one["outcome"] == outcome and one["owner"]["launch"] == os.environ["SMOG_LAUNCH"]:
                yield stage, one


def _wait_for_sign(folder: Path) -> None:
    """Wait until it is known whether another machine's process that holds a stage of the run lives."""
    for stage in stages(folder):
        path = max((folder / "attempts" / stage).glob("[0-9]*.json"))
        record = read(path)
        while record and not record["outcome"] and alive(path, record["owner"]) is None:
            time.sleep(BEAT / 2)
            record = read(path)


def _hand_to_submitit() -> None:
    """Call submitit's handler of the signal, which on rank 0 requeues the job and exits.

    Not where Slurm already ends the job, as after scancel: it is COMPLETING then, and RUNNING while it is warned alone.
    """
    handler: Any = signal.getsignal(signal.SIGUSR2)
    _ignore_signals()
    if callable(handler) and _in_queue("%T") != "COMPLETING":
        handler(signal.SIGUSR2, None)


def _ignore_signals() -> None:
    """Ignore what Slurm still sends: here, and in the commands that decide what comes next, which inherit it."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _in_queue(field: str) -> str:
    """Return a field of this job in the queue, empty where Slurm does not answer."""
    asked = ["squeue", "-h", "-j", slurm_job(), "-o", field]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _ended(outcome: Outcome, folder: Path, requeue: bool) -> str:
    """Return how a job ended, or do what the policy of its failure says."""
    if outcome.done:
        return "done"
    say(f"{outcome.job.title}: {outcome.kind}: {outcome.reason}")
    if outcome.kind == "busy":  # the other process finishes it
        return "busy"
    policy = POLICIES[outcome.kind]
    tries = sum(1 for _ in _of_launch(folder, outcome.kind))
    if requeue and policy.elsewhere and tries <= policy.retries and speaks():
        _requeue_elsewhere(_at_fault(outcome.reason))
    raise RunError(outcome.reason, outcome.kind)


def _at_fault(reason: str) -> str:
    """Return the node that is at fault: that of the rank which a message names, or this one."""
    from submitit.helpers import JobEnvironment

    here, named = place(), re.search(r"rank (\d+)", reason)
    if not here or not named:
        return os.environ["SLURMD_NODENAME"]
    hosts = JobEnvironment().hostnames
    return hosts[int(named[1]) * len(hosts) // here.world]


def _requeue_elsewhere(node: str) -> None:
    """Requeue this job for another node, and exit. Where Slurm refuses, return.

    A job that runs can't be given other nodes; once requeued it can, and until this process ends it can't start anew.
    """
    job = slurm_job()
    _ignore_signals()
    excluded = ",".join(part for part in (_in_queue("%x"), node) if part and part not in ("(null)", "N/A"))
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode:
        return
    subprocess.run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={excluded}"], check=False)
    say(f"requeued without {excluded}")
    raise SystemExit(1)
