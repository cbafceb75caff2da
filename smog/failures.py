"""Of what kind a failure is: what can be done about it depends on the kind alone."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import traceback

from smog.errors import RunError, StoppedError, UsageError

KINDS = {
    "preempted": "the scheduler took the machine back",
    "timeout": "the time limit of the job was reached",
    "stopped": "a signal asked it to stop",
    "killed": "the process was killed without a word",
    "memory": "out of memory",
    "code": "an error in the program",
    "nan": "the loss, or a feature, is no longer finite",
    "data": "an image can't be read",
    "node": "the machine, or the connection to it, is at fault",
    "disk": "the store can't be written",
    "usage": "the configuration does not fit",
    "busy": "another process works on it",
}
_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|OutOfMemory", re.IGNORECASE)
_NODE = re.compile(
    r"gloo|nccl|ECC error|device unavailable|no CUDA-capable device|CUDA driver|fell off the bus"
    r"|unspecified launch failure|illegal instruction",
    re.IGNORECASE,
)
_CUT = re.compile(r"PytorchStreamWriter|inline_container.*unexpected pos")  # torch.save on a full disk
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NEAR = 65  # seconds: Slurm sends the signal before a limit up to a minute early


def kind_of(error: BaseException) -> str:
    """Return the kind of a failure, a key of KINDS. Torch's errors are told by name and text: it is not imported."""
    if isinstance(error, SystemExit):  # StoppedError, or a scheduler's handler of the signal
        return _stop_kind()
    if isinstance(error, RunError):
        return error.kind
    if isinstance(error, UsageError):
        return "usage"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, MemoryError) or _MEMORY.search(f"{type(error).__name__} {error}"):
        return "memory"
    if (isinstance(error, OSError) and error.errno in _FULL) or _CUT.search(str(error)):
        return "disk"
    if isinstance(error, RuntimeError | ConnectionError) and _NODE.search(str(error)):
        return "node"
    return "code"


def _stop_kind() -> str:
    """Tell a time limit from a preemption by the time used; outside of Slurm it is a person, or a shell. Within, a job
    that a person cancels is about to end, and has used time: one to be requeued has it set back to none."""
    job = slurm_job()
    if not job:
        return "stopped"
    try:
        line = subprocess.run(["squeue", "-h", "-j", job, "-o", "%M %l %T"], capture_output=True, text=True, timeout=20)
        used, limit, state = line.stdout.split()
        left = seconds(limit) - seconds(used)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "preempted"
    warned = float(os.environ.get("SMOG_WARNED", 90))  # how long before the limit the signal comes
    if left <= warned + _NEAR:
        return "timeout"
    return "stopped" if state == "COMPLETING" and seconds(used) else "preempted"


def slurm_job() -> str:
    """Return the id of the Slurm job that this process is in, empty outside of one. That of an array's member is
    ARRAY_PLACE: the plain number of its last member is that of the whole array as well."""
    array, place = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{place}" if array and place else os.environ.get("SLURM_JOB_ID", "")


def seconds(text: str) -> float:
    """Return the seconds of a duration as Slurm writes it: ``1-02:03:04``, ``2:03:04``, ``3:04``, UNLIMITED."""
    if text in ("UNLIMITED", "INVALID"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return float(total + 86400 * int(days or 0))


def trace_of(error: BaseException) -> str:
    """Return 8 hex digits over the type of an error and where it was raised: equal for the same mistake, whatever the
    values in its message."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{os.path.basename(frame.filename)}:{frame.name}:{frame.line}" for frame in frames]
    return hashlib.sha256("\n".join([type(error).__name__, *places]).encode()).hexdigest()[:8]


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, with its type where we did not word it ourselves."""
    text = " ".join(str(error).split())
    ours = isinstance(error, UsageError | RunError | StoppedError)
    return text if ours else f"{type(error).__name__}: {text}" if text else type(error).__name__
