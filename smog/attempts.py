"""Who works on a stage, one at a time, and what became of every attempt.

A stage is what is computed and kept: the training of a run, or a task. Its attempts are numbered files in
``<run>/attempts/<stage>/``. The last one holds the stage until it has an outcome; whoever finds its owner dead closes
it and makes the next number, which only one can do, since a file can be made once. They are locks and record in one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smog.environment import now
from smog.errors import BusyError, UsageError
from smog.failures import kind_of, one_line, slurm_job, trace_of
from smog.progress import say
from smog.store import write_json

BEAT = 10.0  # seconds between two signs of life
LOST = 180.0  # seconds without one until an owner elsewhere is taken for dead: file servers show changes a minute late
_NUMBERED = re.compile(r"(\d{4,})\.json")
_ours: set[Path] = set()  # what this process holds: after an ending that could not be written it holds it no more
_signs: dict[Path, tuple[int, float, bool]] = {}  # last sign of an owner, when we first saw it, did it ever change


@contextlib.contextmanager
def attempt(folder: Path, stage: str) -> Iterator[None]:
    """Hold a stage of a run within the body, and write down how it ended.

    Raises BusyError while another process holds it. A UsageError leaves nothing behind: nothing was attempted.
    """
    path = _take(folder / "attempts" / stage)
    _ours.add(path)
    started, ended = time.monotonic(), threading.Event()
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, UsageError):
            _forget(path)
        else:
            with contextlib.suppress(OSError):  # a full disk is often the very error
                _close(path, kind_of(error), time.monotonic() - started, reason=one_line(error), trace=trace_of(error))
        raise
    else:
        _close(path, "done", time.monotonic() - started)
    finally:
        ended.set()
        _ours.discard(path)


def history(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return the attempts at a stage of a run, oldest first; the last has no outcome while it is under way."""
    found = (read(path) for path in _numbered(folder / "attempts" / stage))
    return [one for one in found if one]


def holder(folder: Path, stage: str) -> dict[str, Any] | None:
    """Return the attempt that holds a stage now, or None."""
    paths = _numbered(folder / "attempts" / stage)
    last = read(paths[-1]) if paths else None
    return last if last and not last["outcome"] and alive(paths[-1], last["owner"]) is not False else None


def stages(folder: Path) -> list[str]:
    """Return the stages of a run that were ever attempted."""
    place = folder / "attempts"
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def read(path: Path) -> dict[str, Any] | None:
    """Return an attempt, None where the file is damaged or gone."""
    try:
        found = json.loads(path.read_text())
        return {**found, "sign": path.stat().st_mtime}
    except (OSError, ValueError):
        return None


def _numbered(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    found = ((_NUMBERED.fullmatch(path.name), path) for path in place.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _take(place: Path) -> Path:
    while True:
        paths = _numbered(place)
        last = paths[-1] if paths else None
        record = read(last) if last else None
        if last and record and not record["outcome"]:
            living = alive(last, record["owner"])
            if living is not False:
                raise BusyError(_busy(place, record), certain=bool(living))
            _close(last, "killed", max(0.0, record["sign"] - record["began"]), reason="it ended without a word")
        path = place / f"{int(last.stem) + 1 if last else 1:04}.json"
        if _make(path):
            return path


def _busy(place: Path, record: Mapping[str, Any]) -> str:
    owner = record["owner"]
    job = f", Slurm job {owner['job']}" if owner["job"] else ""
    run, stage = place.parent.parent.name, place.name
    return f"run {run}: {stage} is in the hands of process {owner['pid']} on {owner['host']}{job}"


def _make(path: Path) -> bool:
    """Make a file whole or not at all, unless it exists: a link is atomic, an exclusive open and a write are not."""
    content = {"owner": owner(), "started": now(), "began": time.time(), "outcome": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # another was faster, or the stage is done and its folder gone
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _close(path: Path, outcome: str, seconds: float, **more: str) -> None:
    record = read(path)
    if record:
        del record["sign"]
        write_json(path, {**record, "outcome": outcome, "seconds": round(seconds, 3), "ended": now(), **more})


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[:4]:  # the stage's, the attempts', the run's, the store, where they are empty
        with contextlib.suppress(OSError):
            folder.rmdir()


def _beat(path: Path, ended: threading.Event) -> None:
    """Give signs of life. Where this process was held up so long that another took over, end it: two would write."""
    following = path.with_name(f"{int(path.stem) + 1:04}.json")
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
        if following.exists() and not ended.is_set():
            say(f"failed: {path.parent} was taken over by another process, since this one gave no sign of life")
            os._exit(1)


def owner() -> dict[str, Any]:
    """Return who this process is, so that others can find out whether it lives."""
    job = slurm_job()
    return {
        "host": socket.gethostname(),
        "place": _place(),
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "job": job,
        "start": _start(),
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "launch": os.environ.get("SMOG_LAUNCH", ""),
    }


def _start() -> int:
    """Return how often the Slurm job of this process was started before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


@functools.cache
def _place() -> str:
    """Return what processes share whose ids mean the same: one boot of one machine, one namespace of its ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def born(pid: int) -> str:
    """Return when a process started, in ticks since the boot, which no clock changes; empty where it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        if os.path.isdir("/proc/self"):
            return ""
    import psutil  # elsewhere than on Linux

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""


def local(record: Mapping[str, Any]) -> bool:
    """Say whether an owner is a process of this machine."""
    return record["place"] == _place()


def alive(path: Path, record: Mapping[str, Any]) -> bool | None:
    """Say whether the owner of an attempt lives: None where that can't be known yet.

    On its own machine its process tells; under Slurm the queue; elsewhere it is dead when no sign of life has come for
    LOST seconds of our own clock since we first looked. Other clocks play no part.
    """
    if local(record):
        living = bool(record["born"]) and born(record["pid"]) == record["born"]
        return living and (record["pid"] != os.getpid() or path in _ours)
    if record["job"] and _ended_in_slurm(record):
        return False
    try:
        sign = path.stat().st_mtime_ns
    except OSError:
        return False
    known, since, changed = _signs.get(path, (sign, time.monotonic(), False))
    if known != sign:
        known, since, changed = sign, time.monotonic(), True
    _signs[path] = known, since, changed
    if time.monotonic() - since > LOST:
        return False
    return True if changed else None


def _ended_in_slurm(record: Mapping[str, Any]) -> bool:
    """Say whether Slurm knows that an owner's job does not run now; a requeued one waits under the same number."""
    job = record["job"]
    if job == slurm_job() and record.get("start", 0) != _start():
        return True  # we are a later start of it; in the same one an owner on another node may well live
    if not shutil.which("squeue"):
        return False
    try:
        found = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    if found.returncode:
        return "Invalid job id" in found.stderr
    return not {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"} & set(found.stdout.split())
