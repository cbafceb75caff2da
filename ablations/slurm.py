"""launch=slurm: jobs become arrays, one a resource class and in chunks, and the command that submitted them may leave.

``<store>/launches/<launch>.json`` says what every job of a launch is; a job's name in Slurm and its place in the array
lead there. What Slurm knows is asked of Slurm, what became of a run stands in the store: nothing else is kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ablations.frozen import freeze
from ablations.policies import POLICIES
from ablations.work import Job, to_json
from smog.attempts import attempt
from smog.config import build, compose_raw, key_names, kinds_of
from smog.environment import now
from smog.errors import BusyError, RunError, UsageError, nearest
from smog.identity import values_of
from smog.schema import Config
from smog.store import read_json, write_json

HERE = Path(__file__).parent / "launchers"
PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
LEAST = {"hours": 1 / 60, "nodes": 1, "gpus": 0, "cpus": 1, "memory_gb": 0, "parallel": 1, "max_array": 0, "warn": 1}
PATIENCE = 120.0  # seconds that a submission waits for another one to the same store
KINDS = {  # of failures, by the states of jobs that could not say so themselves
    "OUT_OF_MEMORY": "memory",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "CANCELLED": "stopped",
}


@dataclass(frozen=True)
class Slurm:
    """How jobs are submitted; what each value means stands in launchers/slurm.yaml."""

    partition: str
    account: str
    qos: str
    constraint: str
    hours: float
    nodes: int
    gpus: int
    cpus: int
    memory_gb: float
    parallel: int
    max_array: int
    requeue: bool
    warn: int
    setup: list[str]
    python: str
    classes: list[dict[str, Any]]
    device: str

    @property
    def at_once(self) -> int:
        """How many jobs run side by side."""
        return self.parallel


@dataclass(frozen=True)
class Submission:
    """What was submitted: the id of the launch, those of its arrays in Slurm, how many jobs, how many were there."""

    launch: str
    arrays: list[str]
    submitted: int
    queued: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Return it as a line to read."""
        there = f"{self.queued} in the queue already" if self.queued else ""
        new = f"launch {self.launch}: {self.submitted} submitted as Slurm job {', '.join(self.arrays)}"
        return "; ".join(part for part in (new if self.submitted else "nothing submitted", there) if part)


# ---- settings ----


def slurm_settings(overrides: Sequence[str]) -> Slurm:
    """Return the settings of this launcher: launchers/slurm.yaml and overrides such as ``hours=4``."""
    chosen = build(Slurm, compose_raw(HERE, "slurm", overrides, Slurm))
    _check(chosen)
    for number in range(len(chosen.classes)):
        _check(_of_class(chosen, number))
    return chosen


def _check(chosen: Slurm) -> None:
    for name, smallest in LEAST.items():
        if not getattr(chosen, name) >= smallest:
            raise UsageError(f"launch.{name}={getattr(chosen, name)}: {smallest:.3g} or more expected")
    if chosen.warn >= 3600 * chosen.hours:
        raise UsageError(f"launch.warn={chosen.warn}: fewer seconds than launch.hours={chosen.hours:g} expected")


def _of_class(chosen: Slurm, number: int) -> Slurm:
    """Return the settings with those of a resource class over them."""
    values = dict(chosen.classes[number])
    where, name = values.pop("where", None), f"launch.classes[{number}]"
    if not isinstance(where, Mapping) or not where:
        raise UsageError(f"{name} needs where: {{key of a configuration: value}}")
    for key in where:
        if key not in key_names(Config):
            raise UsageError(f"{name}.where: unknown key {key!r}{nearest(key, key_names(Config))}")
    plain = {field: getattr(chosen, field) for field in kinds_of(Slurm)}
    return build(Slurm, {**plain, **values, "classes": []}, f"{name}.")


def _by_class(jobs: Sequence[Job], chosen: Slurm) -> Iterator[tuple[Slurm, list[Job]]]:
    """Yield the jobs of every resource class that has some, with its settings."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        values = dict(values_of(job.config))
        fitting = (n for n, one in enumerate(chosen.classes) if all(values[k] == v for k, v in one["where"].items()))
        groups.setdefault(next(fitting, -1), []).append(job)
    for number, members in sorted(groups.items()):
        yield (replace(chosen, classes=[]) if number < 0 else _of_class(chosen, number)), members


# ---- submission ----


def submit(jobs: Sequence[Job], store: Path, chosen: Slurm) -> Submission:
    """Submit the jobs that are not in the queue yet and return at once. Raises UsageError where Slurm takes none."""
    _need_slurm()
    store = store.absolute()
    with _one_at_a_time(store):
        there = queued(store)
        left = [job for job in jobs if job.run not in there]
        if not left:
            return Submission("", [], 0, len(jobs))
        path = _write(left, store, chosen)
        arrays = _submit_chunks(path)
    return Submission(path.stem, arrays, len(left), len(jobs) - len(left))


def _need_slurm() -> None:
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        raise UsageError(f"launch=slurm needs Slurm's commands; not found: {', '.join(absent)}")


@contextlib.contextmanager
def _one_at_a_time(store: Path) -> Iterator[None]:
    """Let one process after the other submit to a store: the second finds the jobs of the first in the queue."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(attempt(store / "launches", "submit"))
                break
            except BusyError as error:
                if time.monotonic() > deadline:
                    raise RunError(f"another process submits to {store}: {error}", kind="busy") from None
                time.sleep(0.5)
        yield


def _write(jobs: Sequence[Job], store: Path, chosen: Slurm) -> Path:
    """Write down what is submitted, before it is: its jobs read it."""
    launch = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    chunks = list[dict[str, Any]]()
    for settings, members in _by_class(jobs, chosen):
        size = settings.max_array or _max_array()
        for start in range(0, len(members), size):
            part = [to_json(job) for job in members[start : start + size]]
            chunks.append({"name": f"smog-{launch}-{len(chunks)}", "slurm": asdict(settings), "jobs": part})
    path = store / "launches" / f"{launch}.json"
    write_json(path, {"launch": launch, "created": now(), "code": str(freeze(store)), "chunks": chunks})
    return path


def _max_array() -> int:
    """Return how many jobs the cluster takes in an array; its indices end one below MaxArraySize."""
    for line in _ask(["scontrol", "show", "config"]).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))
    return 1001  # Slurm's own default


def _submit_chunks(path: Path) -> list[str]:
    """Submit an array a chunk; return their ids. What was submitted stays so when Slurm refuses the next."""
    record, arrays = read_json(path), list[str]()
    for number, chunk in enumerate(record["chunks"]):
        try:
            arrays.append(_sbatch(path, number, chunk, record["code"]))
        except RuntimeError as error:  # with all of standard error in it
            lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
            reason = " ".join(lines[0].split()).removeprefix("sbatch: error: ")
            if not arrays:
                path.unlink()
                raise UsageError(f"Slurm takes no job: {reason}") from None
            raise RunError(
                f"Slurm took {number} of {len(record['chunks'])} arrays: {reason}; the same command submits the others"
            ) from None
    return arrays


def _sbatch(path: Path, number: int, chunk: Mapping[str, Any], code: str) -> str:
    from submitit.slurm.slurm import SlurmExecutor

    from ablations.member import Member

    chosen = build(Slurm, chunk["slurm"])
    executor = SlurmExecutor(path.with_suffix(""), POLICIES["timeout"].retries, python=chosen.python or None)
    executor.update_parameters(job_name=chunk["name"], **_parameters(chosen, _setup(chosen, path.stem, code)))
    with _outside_of_slurm():
        jobs = executor.submit_array([Member(path, number, place) for place in range(len(chunk["jobs"]))])
    return jobs[0].job_id.split("_")[0]


def _parameters(chosen: Slurm, setup: list[str]) -> dict[str, Any]:
    """Return submitit's names and values; what the cluster decides is left out."""
    given = {name: getattr(chosen, name) for name in ("partition", "account", "qos", "constraint")}
    memory = {"mem": f"{math.ceil(1024 * chosen.memory_gb)}MB"} if chosen.memory_gb else {}
    return {
        **{name: value for name, value in given.items() if value},
        **({"gpus_per_node": chosen.gpus} if chosen.gpus else {}),
        **memory,
        "time": round(60 * chosen.hours),
        "nodes": chosen.nodes,
        "ntasks_per_node": max(1, chosen.gpus),
        "cpus_per_task": chosen.cpus,
        "array_parallelism": chosen.parallel,
        "signal_delay_s": chosen.warn,
        "stderr_to_stdout": True,
        "setup": setup,
        "additional_parameters": {"requeue" if chosen.requeue else "no-requeue": True},
        # srun no longer takes the CPUs of a task from the job (22.05); processes that end, or fail, before rank 0 has
        # written down what happened do not end it
        "srun_args": [f"--cpus-per-task={chosen.cpus}", "--wait=0", "--kill-on-bad-exit=0"],
    }


def _setup(chosen: Slurm, launch: str, code: str) -> list[str]:
    """Return the shell lines before a job: it imports the frozen code, not what lies in the folder it runs in."""
    values = {"SMOG_LAUNCH": launch, "SMOG_WARNED": str(chosen.warn), "PYTHONSAFEPATH": "1"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    return [*chosen.setup, *lines, f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"']


@contextlib.contextmanager
def _outside_of_slurm() -> Iterator[None]:
    """Hide that this process is itself a job, such as a shell on a node: sbatch would take its shape for the jobs'."""
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if inside and name.startswith("SLURM_") and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


# ---- what Slurm knows ----


@dataclass(frozen=True)
class _Entry:
    """A job in the queue: its id in Slurm, its state and what it works on."""

    id: str
    state: str
    run: str
    title: str


def queued(store: Path) -> dict[str, str]:
    """Return the runs that jobs of this store's launches wait for, or work on, each with the job and its state."""
    return {entry.run: f"Slurm job {entry.id}, {entry.state}" for entry in _entries(store)}


def cancel(store: Path, runs: set[str]) -> list[str]:
    """End exactly the jobs of these runs; return a line for each. One that runs saves first, and is not requeued."""
    found = [entry for entry in _entries(store) if entry.run in runs]
    if found:
        _ask(["scancel", *(entry.id for entry in found)])
    return [f"{entry.title}: Slurm job {entry.id}" for entry in found]


def ended(store: Path) -> dict[str, str]:
    """Return the kind of failure of runs whose last job Slurm ended, where accounting (sacct) tells."""
    paths = _launches(store)
    if not paths or not shutil.which("sacct"):
        return {}
    chunks = {chunk["name"]: chunk for path in paths for chunk in read_json(path)["chunks"]}
    since = read_json(paths[0])["created"].partition("+")[0]
    asked = ["sacct", "-X", "-n", "-P", "-S", since, f"--name={','.join(chunks)}", "-o", "JobName,JobID,State"]
    rows = [line.split("|") for line in _answer(asked, {**os.environ, "TZ": "UTC"}).splitlines()]
    states = {(name, place): state for name, job, state in rows for place in _places(job)}
    last = {
        job["run"]: states[name, place]  # a later launch stands later
        for name, chunk in chunks.items()
        for place, job in enumerate(chunk["jobs"])
        if (name, place) in states
    }
    return {run: KINDS[state.split()[0]] for run, state in last.items() if state.split()[0] in KINDS}


def _launches(store: Path) -> list[Path]:
    return sorted((store / "launches").glob("*-*-*.json"))


def _places(job: str) -> list[int]:
    """Return the places of an array that one line of sacct speaks of: 12 and 12_3 of one, 12_[3-5,7%4] of several."""
    text = job.partition("_")[2].strip("[]").partition("%")[0] or "0"
    try:
        ranges = [part.split("-") for part in text.split(",")]
        return [place for part in ranges for place in range(int(part[0]), int(part[-1]) + 1)]
    except ValueError:
        return []


def _entries(store: Path) -> list[_Entry]:
    """Return the jobs in the queue that belong to launches of this store."""
    if not _launches(store):
        return []
    jobs, found = {}, []
    for line in _ask(["squeue", "--me", "-h", "-r", "-o", "%j|%i|%T|%r"]).splitlines():
        name, job, state, why = line.strip().split("|", 3)
        launch = name.removeprefix("smog-").rpartition("-")[0]
        path = store / "launches" / f"{launch}.json"
        if not name.startswith("smog-") or not path.is_file():
            continue
        if path not in jobs:
            jobs[path] = {chunk["name"]: chunk["jobs"] for chunk in read_json(path)["chunks"]}
        one = jobs[path][name][int(job.partition("_")[2] or 0)]
        said = f"pending ({why})" if state == "PENDING" else state.lower()
        found.append(_Entry(job, said, one["run"], one["title"]))
    return found


def _ask(command: list[str]) -> str:
    """Return what a command of Slurm prints. Raises RunError where it fails: an empty answer would say too much."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or f"code {error.returncode}"
        raise RunError(f"{command[0]} failed: {reason}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(f"{command[0]} failed: {error}") from None
    return done.stdout


def _answer(command: list[str], environment: Mapping[str, str]) -> str:
    """Return what a command prints, nothing where it fails: many clusters keep no accounts."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if done.returncode else done.stdout
