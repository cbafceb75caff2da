"""From jobs to outcomes on this machine: inline in this process, or local in a bounded number of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

from ablations.policies import POLICIES, SAME
from ablations.work import Job, Outcome, stopped, work
from smog.config import build, compose_raw, with_runtime
from smog.environment import cores, gpus
from smog.errors import StoppedError, UsageError
from smog.identity import run_id
from smog.progress import say
from smog.schema import Config
from smog.signals import GRACE

HERE = Path(__file__).parent / "launchers"
POLL = 2.0  # seconds after which a job that another launch has at hand is looked at again


@dataclass(frozen=True)
class Local:
    """The settings of launch=local; see launchers/local.yaml."""

    slots: int
    threads: int

    @property
    def at_once(self) -> int:
        """How many processes work side by side."""
        return self.slots or gpus() or cores()


@dataclass(frozen=True)
class Inline:
    """The settings of launch=inline: none."""

    at_once: ClassVar[int] = 1


def launcher_settings(how: str, overrides: Sequence[str]) -> Local | Inline:
    """Return the settings of a launcher of this machine: its file and overrides such as ``slots=2``."""
    schema: Any = {"local": Local, "inline": Inline}[how]
    chosen = build(schema, compose_raw(HERE, how, overrides, schema))
    if isinstance(chosen, Local) and min(chosen.slots, chosen.threads) < 0:
        raise UsageError(f"launch.slots={chosen.slots}, launch.threads={chosen.threads}: 0 or more expected")
    return chosen


def launch(packs: Sequence[Sequence[Job]], chosen: Local | Inline) -> Iterator[Outcome]:
    """Work off packs of jobs, most of them of one, and yield each job's outcome. What fails does not stop the others,
    except where the same traceback comes again and again."""
    queue = Queue([tuple(pack) for pack in packs])
    return _inline(queue) if isinstance(chosen, Inline) else _local(queue, _slots(len(packs), chosen))


@dataclass
class Queue:
    """The packs that wait, with the rules for when one waits again; see policies.py."""

    packs: list[tuple[Job, ...]]
    tries: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    later: dict[str, float] = field(default_factory=dict)  # run -> when it is looked at again
    said: set[str] = field(default_factory=set)

    def next(self) -> tuple[Job, ...] | None:
        """Take the first pack that is due, None while all that are left wait for another process."""
        for place, pack in enumerate(self.packs):
            if all(time.monotonic() >= self.later.get(job.run, 0.0) for job in pack):
                return self.packs.pop(place)
        return None

    def settle(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Yield outcomes that are final and put the others' jobs back."""
        for outcome in outcomes:
            if outcome.kind == "busy":
                self._wait(outcome)
            elif outcome.done or not self._again(outcome):
                yield outcome
        if self.packs and (same := self._same()):
            yield from self._give_up(same)

    def _wait(self, outcome: Outcome) -> None:
        run = outcome.job.run
        if run not in self.said:
            self.said.add(run)
            say(f"{outcome.job.title}: {outcome.reason}; waiting for it")
        self.later[run] = time.monotonic() + POLL
        self.packs.append((outcome.job,))

    def _again(self, outcome: Outcome) -> bool:
        run, policy = outcome.job.run, POLICIES[outcome.kind]
        if outcome.kind == "code":
            self.traces[outcome.trace] += 1
        if self.tries[run] >= policy.retries:
            return False
        self.tries[run] += 1
        say(f"{outcome.job.title}: {outcome.kind} ({outcome.reason}); try {self.tries[run] + 1}")
        self.packs.insert(0, (outcome.job,))
        return True

    def _same(self) -> str:
        return next((trace for trace, count in self.traces.items() if count >= SAME), "")

    def _give_up(self, trace: str) -> Iterator[Outcome]:
        reason = f"not started: {SAME} jobs ended with the same traceback ({trace})"
        for pack in self.packs:
            yield from (Outcome(job, "code", 0.0, reason, trace) for job in pack)
        self.packs.clear()


def endings(pack: Sequence[Job]) -> list[Outcome]:
    """Do a pack of jobs and say how each ended; a signal to stop is one of the endings."""
    started = time.monotonic()
    try:
        return work(pack)
    except StoppedError as error:
        return stopped(pack, error, time.monotonic() - started)


def _inline(queue: Queue) -> Iterator[Outcome]:
    while queue.packs:
        pack = queue.next()
        if pack is None:
            time.sleep(POLL / 4)
            continue
        yield from queue.settle(work(pack))  # a signal to stop is for the whole launch


@dataclass(frozen=True)
class Slot:
    """A place for one process: a share of the cores, and a GPU of its own where there are any."""

    threads: int
    environment: dict[str, str]


def _slots(packs: int, chosen: Local) -> list[Slot]:
    count, devices = max(1, min(packs, chosen.at_once)), gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
    threads = chosen.threads or max(1, cores() // count)
    return [Slot(threads, {"CUDA_VISIBLE_DEVICES": visible[i % devices]} if devices else {}) for i in range(count)]


@dataclass
class _Child:
    process: multiprocessing.process.BaseProcess
    answer: Connection
    pack: tuple[Job, ...]
    slot: Slot
    started: float

    def outcomes(self) -> list[Outcome]:
        self.process.join()
        try:
            return self.answer.recv()
        except (EOFError, ConnectionResetError):  # it ended without a word
            share = (time.monotonic() - self.started) / len(self.pack)
            kind, reason = _killed(self.process.exitcode)
            return [Outcome(job, kind, share, reason) for job in self.pack]


def _killed(code: int | None) -> tuple[str, str]:
    if code == -signal.SIGTERM:
        return "stopped", "a signal asked it to stop"
    if code is not None and code < 0:
        return "killed", f"the process was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return "killed", f"the process ended with code {code}"


def _local(queue: Queue, slots: list[Slot]) -> Iterator[Outcome]:
    """Keep every slot busy with one process a pack: what crashes takes only itself along."""
    context = _served()
    free, children = list(slots), list[_Child]()
    try:
        while queue.packs or children:
            while free and (pack := queue.next()):
                children.append(_start(context, pack, free.pop(0)))
            ended = wait([child.process.sentinel for child in children], timeout=POLL if queue.packs else None)
            if not children:
                time.sleep(POLL / 4)
            for child in [child for child in children if child.process.sentinel in ended]:
                children.remove(child)
                free.append(child.slot)
                yield from queue.settle(child.outcomes())
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join(GRACE)
            child.process.kill()  # what has not saved itself by now hangs; on one that has ended it does nothing


def _served() -> multiprocessing.context.ForkServerContext:
    """Start the server, which imports all code of this checkout once; its children are forked from it in milliseconds.

    It looks for what it preloads where its environment says, and not where this process does (Python 3.11): without
    the two it would take the code of the folder that the command is typed in, or of an installed checkout.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablations.server"])
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *filter(None, [before["PYTHONPATH"]])])
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})
    return context


def _start(context: multiprocessing.context.ForkServerContext, pack: tuple[Job, ...], slot: Slot) -> _Child:
    answer, end = context.Pipe()
    log = log_path(pack[0].config)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_in_child, args=(pack, slot, str(log), end))
    process.start()
    end.close()
    return _Child(process, answer, pack, slot, time.monotonic())


def log_path(config: Config) -> Path:
    """Return where the output of a run's process goes; that of a pack goes to its first run's."""
    return Path(config.runtime.store) / "logs" / f"{run_id(config)}.txt"


def _in_child(pack: tuple[Job, ...], slot: Slot, log: str, answer: Connection) -> None:
    threading.Thread(target=_leave_with_launcher, args=(answer,), daemon=True).start()
    os.environ.update(slot.environment)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    own = [_with_threads(job, slot.threads) for job in pack]
    answer.send([replace(ended, job=job) for job, ended in zip(pack, endings(own), strict=True)])


def _with_threads(job: Job, threads: int) -> Job:
    return Job(job.title, with_runtime(job.config, threads=job.config.runtime.threads or threads), job.tasks)


def _leave_with_launcher(answer: Connection) -> None:
    """End this process when the launcher is gone, however it went: its next start must find nobody at work."""
    with contextlib.suppress(EOFError, OSError):
        answer.recv()  # nothing is ever sent; it returns when the other end closes
    os._exit(1)
