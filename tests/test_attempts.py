"""A stage is worked on by one process at a time; a dead owner's place is taken over; what became of it is kept."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smog import attempts
from smog.attempts import attempt, history, holder, stages
from smog.errors import BusyError, RunError, StoppedError, UsageError
from smog.failures import KINDS, kind_of, seconds, trace_of

HOLD = """
import sys, time
from pathlib import Path
from smog.attempts import attempt
with attempt(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path, **more: str) -> Path:
    """Let the last attempt look as if a process of another machine held it."""
    path = sorted((folder / "attempts" / "train").glob("[0-9]*.json"))[-1]
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "owner": {**record["owner"], "place": "another", **more}, "outcome": None}))
    return path


def test_an_attempt_says_how_it_ended(tmp_path: Path) -> None:
    with attempt(tmp_path, "train"):
        assert holder(tmp_path, "train")["owner"]["pid"] == os.getpid()
    with pytest.raises(RunError), attempt(tmp_path, "train"):
        raise RunError("the loss is nan", kind="nan")
    first, second = history(tmp_path, "train")
    assert (first["outcome"], second["outcome"]) == ("done", "nan")
    assert second["reason"] == "the loss is nan"
    assert len(second["trace"]) == 8
    assert first["seconds"] >= 0
    assert holder(tmp_path, "train") is None
    assert stages(tmp_path) == ["train"]


def test_two_processes_never_hold_a_stage(tmp_path: Path) -> None:
    process = start_holder(tmp_path / "run")
    try:
        message = f"train is in the hands of process {process.pid}"
        with pytest.raises(BusyError, match=message) as caught, attempt(tmp_path / "run", "train"):
            pass
        assert caught.value.certain
        with attempt(tmp_path / "run", "knn@0"):  # another stage of the same run
            pass
    finally:
        process.kill()
        process.communicate()
    with attempt(tmp_path / "run", "train"):  # the owner is dead: no waiting
        pass
    assert [one["outcome"] for one in history(tmp_path / "run", "train")] == ["killed", "done"]


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    process.kill()
    while attempts.born(process.pid):  # killed, and not yet waited for
        time.sleep(0.01)
    with attempt(tmp_path, "train"):
        pass
    process.communicate()


def count_up(folder: str, turns: int) -> None:
    for _ in range(turns):
        while True:
            try:
                with attempt(Path(folder), "train"):
                    path = Path(folder) / "count"
                    number = int(path.read_text()) if path.exists() else 0
                    time.sleep(0.001)
                    path.write_text(str(number + 1))
                break
            except BusyError:
                time.sleep(0.001)


def test_many_processes_that_want_it_take_turns(tmp_path: Path) -> None:
    """Each reads a number and writes the next one: what two at once would do shows as a number too few."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_up, args=(str(tmp_path), 15)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "45"


def test_wrong_use_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError), attempt(tmp_path / "store" / "run", "train"):
        raise UsageError("no such backbone")
    assert not (tmp_path / "store").exists()


def test_an_owner_elsewhere_is_dead_after_a_silence_by_our_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(tmp_path, "train"):
        pass
    path, clock = elsewhere(tmp_path), [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: clock[0])
    for when in (0, 4e9):  # a clock that jumps on the other machine, or on the file server
        os.utime(path, (when, when))
        with pytest.raises(BusyError), attempt(tmp_path, "train"):
            pass
    assert holder(tmp_path, "train")
    clock[0] += attempts.LOST - 1
    with pytest.raises(BusyError), attempt(tmp_path, "train"):
        pass
    clock[0] += 2
    with attempt(tmp_path, "train"):
        pass
    assert [one["outcome"] for one in history(tmp_path, "train")] == ["killed", "done"]


def test_who_shows_no_sign_yet_is_not_known_to_live(tmp_path: Path) -> None:
    with attempt(tmp_path, "train"):
        pass
    path = elsewhere(tmp_path)
    certain = []
    for beat in (None, 5.0):
        if beat:
            os.utime(path, (beat, beat))
        with pytest.raises(BusyError) as caught, attempt(tmp_path, "train"):
            pass
        certain.append(caught.value.certain)
    assert certain == [False, True]


def test_the_start_of_a_requeued_job_takes_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with attempt(tmp_path, "train"):
        pass
    elsewhere(tmp_path)
    monkeypatch.setenv("PATH", "")  # no squeue, which would know better
    with pytest.raises(BusyError), attempt(tmp_path, "train"):  # another node of the same start
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with attempt(tmp_path, "train"):
        pass
    assert len(history(tmp_path, "train")) == 2


def test_a_damaged_attempt_holds_nothing(tmp_path: Path) -> None:
    with attempt(tmp_path, "train"):
        pass
    (tmp_path / "attempts" / "train" / "0002.json").write_text("{")
    with attempt(tmp_path, "train"):
        pass
    assert [path.name for path in sorted((tmp_path / "attempts" / "train").iterdir())][-1] == "0003.json"


def test_who_was_taken_over_ends_itself(tmp_path: Path) -> None:
    script = HOLD.replace("with attempt", "import smog.attempts; smog.attempts.BEAT = 0.05\nwith attempt")
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    (tmp_path / "attempts" / "train" / "0002.json").write_text("{}")
    process.communicate(timeout=30)
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RunError("x", kind="data"), "data"),
        (UsageError("x"), "usage"),
        (StoppedError(15, "x"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "node"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EROFS, "Read-only file system"), "disk"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 54656 vs 54552"), "disk"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "code"),
        (ZeroDivisionError(), "code"),
    ],
)
def test_failures_have_a_kind(error: BaseException, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert kind_of(error) == kind
    assert kind in KINDS


def broken(value: int) -> None:
    raise ValueError(f"no {value}")


def test_the_same_mistake_has_one_trace_whatever_its_values() -> None:
    found = set()
    for value in range(3):
        try:
            broken(value)
        except ValueError as error:
            found.add(trace_of(error))
    assert len(found) == 1
    with pytest.raises(ValueError, match="x") as other:
        int("x")
    assert trace_of(other.value) not in found


@pytest.mark.parametrize(("text", "expected"), [("45", 45), ("1:05", 65), ("2:00:00", 7200), ("1-00:00:01", 86401)])
def test_slurms_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected
    assert seconds("UNLIMITED") == float("inf")
