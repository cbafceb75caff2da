"""From a plan to finished runs: inline in this process, or local in a bounded number of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from smog.config import with_runtime
from smog.environment import cores
from smog.errors import RunError, UsageError, nearest
from smog.identity import run_id
from smog.schema import Config

LAUNCHERS = ("inline", "local")


@dataclass(frozen=True)
class Job:
    """A run and the tasks to compute from it (name -> settings)."""

    title: str
    config: Config
    tasks: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A job that ended; ``error`` is empty, or one line that says why it failed."""

    job: Job
    seconds: float
    error: str


def launch(jobs: Sequence[Job], how: str) -> Iterator[Outcome]:
    """Work off the jobs and yield each as it ends. A job that fails does not stop the others."""
    if how not in LAUNCHERS:
        raise UsageError(f"launch={how!r}{nearest(how, LAUNCHERS)}")
    return _inline(jobs) if how == "inline" else _local(jobs, _slots(len(jobs)))


def work(job: Job) -> None:
    """Train the run, or what is left of it, and compute its tasks."""
    from smog.tasks import evaluate
    from smog.training import train

    folder = train(job.config)
    for task, chosen in job.tasks.items():
        evaluate(folder, task, chosen)


def attempt(job: Job) -> str:
    """Do a job; return an empty text, or one line on what went wrong. A traceback goes to standard error."""
    try:
        work(job)
    except (UsageError, RunError) as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


def _inline(jobs: Sequence[Job]) -> Iterator[Outcome]:
    for job in jobs:
        started = time.monotonic()
        error = attempt(job)
        yield Outcome(job, time.monotonic() - started, error)


@dataclass(frozen=True)
class Slot:
    """A place for one process: a share of the cores, and a GPU of its own where there are any."""

    threads: int
    environment: dict[str, str]


def _slots(jobs: int) -> list[Slot]:
    import torch

    gpus = torch.cuda.device_count()
    count = max(1, min(jobs, gpus or cores()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    threads = max(1, cores() // count)
    return [Slot(threads, {"CUDA_VISIBLE_DEVICES": visible[i]} if gpus else {}) for i in range(count)]


@dataclass
class _Child:
    process: multiprocessing.process.BaseProcess
    answer: Connection
    job: Job
    slot: Slot
    started: float

    def outcome(self) -> Outcome:
        self.process.join()
        try:
            error = self.answer.recv()
        except (EOFError, ConnectionResetError):  # it ended without a word
            error = _killed(self.process.exitcode)
        return Outcome(self.job, time.monotonic() - self.started, error)


def _killed(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"the process ended with code {code}"


def _local(jobs: Sequence[Job], slots: list[Slot]) -> Iterator[Outcome]:
    """Keep every slot busy with one process a job: a job that crashes takes only itself along."""
    # The server imports torch once; its children are forked from it, so a job starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["smog.training", "smog.tasks.knn", "smog.tasks.linear", "ablations.launch"])
    waiting, free, children = list(jobs), list(slots), list[_Child]()
    try:
        while waiting or children:
            while waiting and free:
                children.append(_start(context, waiting.pop(0), free.pop(0)))
            ended = wait([child.process.sentinel for child in children])
            for child in [child for child in children if child.process.sentinel in ended]:
                children.remove(child)
                free.append(child.slot)
                yield child.outcome()
    finally:
        for child in children:
            child.process.terminate()


def _start(context: multiprocessing.context.ForkServerContext, job: Job, slot: Slot) -> _Child:
    answer, end = context.Pipe()
    log = log_path(job.config)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_in_child, args=(job, slot, str(log), end))
    process.start()
    end.close()
    return _Child(process, answer, job, slot, time.monotonic())


def log_path(config: Config) -> Path:
    """Return where the output of a run's process goes."""
    return Path(config.runtime.store) / "logs" / f"{run_id(config)}.txt"


def _in_child(job: Job, slot: Slot, log: str, answer: Connection) -> None:
    threading.Thread(target=_leave_with_launcher, args=(answer,), daemon=True).start()
    os.environ.update(slot.environment)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    threads = job.config.runtime.threads or slot.threads
    answer.send(attempt(Job(job.title, with_runtime(job.config, threads=threads), job.tasks)))


def _leave_with_launcher(answer: Connection) -> None:
    """End this process when the launcher is gone, however it went: its next start must find nobody at work."""
    with contextlib.suppress(EOFError, OSError):
        answer.recv()  # nothing is ever sent; it returns when the other end closes
    os._exit(1)
