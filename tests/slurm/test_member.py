"""What a job of a launch does before and after its work, told without Slurm."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ablations import member, slurm
from ablations.member import Member
from ablations.work import Job, Outcome, to_json
from smog import attempts
from smog.attempts import attempt, history
from smog.config import with_runtime
from smog.data.sources import with_fingerprint
from smog.errors import RunError, StoppedError
from smog.failures import KINDS


@pytest.fixture
def launched(tiny, tmp_path, monkeypatch):
    """The first of two jobs of a launch, and the folder of its run; nothing is asked of Slurm."""
    monkeypatch.setenv("SMOG_LAUNCH", "20260101-000000-abcd")
    monkeypatch.setattr(member, "_link_log", lambda store, run: None)
    config = with_runtime(with_fingerprint(tiny("optim.epochs=1")), store="elsewhere", threads=0)
    jobs = [to_json(Job("cell", config, {})), to_json(Job("other", with_fingerprint(tiny("seed=1")), {}))]
    path = tmp_path / "launches" / "20260101-000000-abcd.json"
    path.parent.mkdir()
    settings = asdict(slurm.slurm_settings(["cpus=1"]))
    path.write_text(json.dumps({"launch": path.stem, "chunks": [{"name": "x", "slurm": settings, "jobs": jobs}]}))
    return Member(path, 0, 0), tmp_path / jobs[0]["run"]


def held_elsewhere(folder: Path) -> Path:
    """An attempt that looks like that of another machine."""
    with attempt(folder, "train"):
        pass
    [path] = (folder / "attempts" / "train").glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "owner": {**record["owner"], "place": "another"}, "outcome": None}))
    return path


def test_it_works_in_the_store_of_the_launch(launched):
    job, folder = launched
    assert job() == "done"
    assert (folder / "done").exists()
    assert history(folder, "train")[0]["owner"]["launch"] == "20260101-000000-abcd"
    assert job.checkpoint().function is job


def test_it_waits_until_an_owner_elsewhere_is_known_to_be_gone(launched, monkeypatch):
    job, folder = launched
    held_elsewhere(folder)
    monkeypatch.setattr(attempts, "LOST", 1.0)
    monkeypatch.setattr(member, "BEAT", 0.4)
    started = time.monotonic()
    assert job() == "done"
    assert time.monotonic() - started > 1.0
    assert [one["outcome"] for one in history(folder, "train")] == ["killed", "done"]


def test_it_leaves_a_run_to_an_owner_that_lives(launched, monkeypatch):
    job, folder = launched
    path = held_elsewhere(folder)
    monkeypatch.setattr(member, "BEAT", 0.2)
    before = member.time.sleep
    monkeypatch.setattr(member.time, "sleep", lambda seconds: (before(seconds), os.utime(path)))
    assert job() == "busy"
    assert not (folder / "done").exists()


def ended(kind: str, requeue: bool = True) -> str:
    return member._ended(Outcome(Job("cell", None, {}), kind, 1.0, "why"), Path("nowhere"), requeue)


def test_every_kind_of_failure_ends_the_job_as_its_policy_says(monkeypatch):
    monkeypatch.setenv("SMOG_LAUNCH", "x")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    asked = []
    monkeypatch.setattr(member, "_requeue_elsewhere", asked.append)
    assert ended("done") == "done"
    for kind in KINDS:
        if kind != "busy":
            with pytest.raises(RunError, match="why") as caught:
                ended(kind)
            assert caught.value.kind == kind
    assert asked == ["n7"], "for node alone"
    with pytest.raises(RunError):
        ended("node", requeue=False)
    assert len(asked) == 1


def test_a_node_that_failed_too_often_is_given_up(launched, monkeypatch):
    _, folder = launched
    monkeypatch.setattr(member, "_requeue_elsewhere", lambda node: pytest.fail("asked again"))
    for _ in range(4):
        with pytest.raises(RunError), attempt(folder, "train"):
            raise RunError("ECC", kind="node")
    with pytest.raises(RunError, match="ECC"):
        member._ended(Outcome(Job("cell", None, {}), "node", 1.0, "ECC"), folder, requeue=True)


@pytest.mark.parametrize(("state", "handed"), [("RUNNING", True), ("", True), ("COMPLETING", False)])
def test_a_stopped_job_is_requeued_unless_slurm_ends_it(launched, monkeypatch, state, handed):
    def stop(jobs):
        raise StoppedError(signal.SIGTERM, "stopped at step 3")

    job, _ = launched
    seen = []
    monkeypatch.setattr(member, "work", stop)
    monkeypatch.setattr(member, "_in_queue", lambda field: state)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(StoppedError):
            job()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIGUSR2] * handed


def test_a_signal_before_the_training_is_not_lost(launched, monkeypatch):
    """Submitit's own handler of SIGTERM only says that it came."""
    job, folder = launched
    handed = []
    monkeypatch.setattr(member, "_stop_at_the_same", lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(member, "_hand_to_submitit", lambda: handed.append(1))
    with pytest.raises(StoppedError):
        job()
    assert handed == [1]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("reason", "node"),
    [("rank 3 was lost", "b"), ("rank 0 failed (x)", "a"), ("CUDA error: ECC", "here")],
)
def test_the_node_at_fault_is_that_of_the_rank_that_is_named(monkeypatch, reason, node):
    import submitit.helpers

    from smog.processes import Place

    class Environment:
        hostnames = ("a", "b")

    monkeypatch.setattr(submitit.helpers, "JobEnvironment", Environment)
    monkeypatch.setattr(member, "place", lambda: Place(0, 4, 0, "a", 1))
    monkeypatch.setenv("SLURMD_NODENAME", "here")
    assert member._at_fault(reason) == node


def test_mistakes_of_another_launch_or_place_do_not_count(launched, monkeypatch):
    job, folder = launched
    for launch, numbers in (("another", range(3)), ("20260101-000000-abcd", range(2))):
        monkeypatch.setenv("SMOG_LAUNCH", launch)
        for number in numbers:
            with pytest.raises(ValueError, match=str(number)), attempt(folder, "train"):
                raise ValueError(number)
    with pytest.raises(KeyError), attempt(folder, "train"):
        raise KeyError("one more, of another kind")
    assert job() == "done"
