"""What one process does for a grid: train runs, compute their tasks, and say how each ended."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from smog.config import build
from smog.errors import RunError, StoppedError, UsageError
from smog.failures import kind_of, one_line, trace_of
from smog.identity import as_dict, run_id
from smog.schema import Config
from smog.tasks import schema_of
from transfer import protocols  # noqa: F401 (which adds its tasks to the known ones)


@dataclass(frozen=True)
class Job:
    """A run and the tasks to compute from it (name -> settings)."""

    title: str
    config: Config
    tasks: Mapping[str, Any]

    @cached_property
    def run(self) -> str:
        """The id of the run."""
        return run_id(self.config)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``kind`` is ``done`` or one of smog.failures.KINDS, ``reason`` one line, ``trace`` tells equal
    mistakes, ``seconds`` is what it took."""

    job: Job
    kind: str
    seconds: float
    reason: str = ""
    trace: str = ""

    @property
    def done(self) -> bool:
        """Whether all that the job asked for is in the store."""
        return self.kind == "done"


def work(jobs: Sequence[Job]) -> list[Outcome]:
    """Do jobs: one, or several whose runs share their views and are trained together. Raises StoppedError alone."""
    started = time.monotonic()
    trained = _trained(jobs)
    shared = (time.monotonic() - started) / len(jobs)
    return [_finished(job, found, shared) for job, found in zip(jobs, trained, strict=True)]


def _trained(jobs: Sequence[Job]) -> list[Any]:
    """Return the folder of every run, or the exception that ended it."""
    from smog.training import train

    if len(jobs) > 1:
        from smog.training import train_together

        return train_together([job.config for job in jobs])
    try:
        return [train(jobs[0].config)]
    except Exception as error:
        return [error]


def _finished(job: Job, found: Any, seconds: float) -> Outcome:
    """Compute the tasks of a trained run."""
    from smog.processes import speaks
    from smog.tasks import evaluate

    started = time.monotonic()
    try:
        if isinstance(found, BaseException):
            raise found
        if speaks():  # of several processes that trained together one evaluates
            for task, chosen in job.tasks.items():
                evaluate(found, task, chosen)
    except Exception as error:
        if not isinstance(error, UsageError | RunError):
            traceback.print_exception(error)
        return _ended(job, error, seconds + time.monotonic() - started)
    return Outcome(job, "done", seconds + time.monotonic() - started)


def _ended(job: Job, error: BaseException, seconds: float) -> Outcome:
    return Outcome(job, kind_of(error), seconds, one_line(error), trace_of(error))


def stopped(jobs: Sequence[Job], error: StoppedError, seconds: float) -> list[Outcome]:
    """Return the outcomes of jobs that a signal stopped."""
    print(error, file=sys.stderr)
    return [_ended(job, error, seconds / len(jobs)) for job in jobs]


def to_json(job: Job) -> dict[str, Any]:
    """Return a job as plain values, for a file that another process reads."""
    return {
        "title": job.title,
        "run": job.run,
        "config": as_dict(job.config),
        "tasks": {name: asdict(chosen) for name, chosen in job.tasks.items()},
    }


def from_json(content: Mapping[str, Any]) -> Job:
    """Return the job that ``to_json`` wrote."""
    tasks = {name: build(schema_of(name), values) for name, values in content["tasks"].items()}
    return Job(content["title"], build(Config, content["config"]), tasks)
