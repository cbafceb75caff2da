"""What needs no Slurm: the settings of launches, and how the answers of its commands are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablations import slurm
from ablations.work import Job, to_json
from smog.config import with_runtime
from smog.data.sources import with_fingerprint
from smog.errors import RunError, StoppedError, UsageError
from smog.failures import kind_of


@pytest.fixture
def says(tmp_path, monkeypatch):
    """A function that puts a command on the path which prints some lines, whatever it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, *lines: str, code: int = 0) -> None:
        text = "".join(f"echo '{line}'\n" for line in lines)
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / name}.asked\n{text}exit {code}\n')
        (folder / name).chmod(0o755)

    return put


@pytest.fixture
def job(tiny, tmp_path):
    """A function from overrides to a job without tasks."""
    return lambda *overrides: Job("cell", with_runtime(with_fingerprint(tiny(*overrides)), store=str(tmp_path)), {})


@pytest.fixture
def launched(job, tmp_path):
    """The runs of a launch of four jobs in two arrays that stands in the store."""
    jobs = [to_json(job(f"seed={seed}")) for seed in range(4)]
    chunks = [{"name": f"smog-20260101-000000-abcd-{k}", "slurm": {}, "jobs": jobs[3 * k : 3 * k + 3]} for k in (0, 1)]
    path = tmp_path / "launches" / "20260101-000000-abcd.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"launch": path.stem, "created": "2026-01-01T00:00:00+00:00", "chunks": chunks}))
    return [one["run"] for one in jobs]


def test_the_file_holds_every_key():
    assert slurm.slurm_settings([]).parallel > 0
    assert slurm.slurm_settings(["hours=0.5", "gpus=0", "partition=a-b"]).partition == "a-b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["partitoin=gpu"], "unknown key 'partitoin'; nearest: partition"),
        (["hours=0"], "launch.hours=0.0: 0.0167 or more expected"),
        (["hours=nan"], "launch.hours=nan"),
        (["cpus=0"], "launch.cpus=0: 1 or more expected"),
        (["hours=0.02"], "launch.warn=120: fewer seconds than launch.hours=0.02 expected"),
        (["gpus=two"], "gpus='two': int expected"),
        (["classes=[{gpus:2}]"], r"launch.classes\[0\] needs where"),
        (["classes=[{where:{seed:1},gpsu:2}]"], r"unknown key 'launch.classes\[0\].gpsu'; nearest: .*gpus"),
        (["classes=[{where:{sed:1},gpus:2}]"], r"launch.classes\[0\].where: unknown key 'sed'; nearest: seed"),
        (["classes=[{where:{seed:1},gpus:-2}]"], "launch.gpus=-2: 0 or more expected"),
    ],
)
def test_wrong_settings_are_one_line(overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        slurm.slurm_settings(overrides)
    assert "\n" not in str(caught.value)


def test_the_first_class_that_fits_is_taken(job):
    classes = "classes=[{where:{method.num_groups:4,seed:1},gpus:2},{where:{seed:1},nodes:3},{where:{seed:2},cpus:2}]"
    chosen = slurm.slurm_settings([classes, "gpus=1"])
    jobs = [job("seed=0"), job("seed=1"), job("seed=1", "method.num_groups=4"), job("seed=2")]
    found = {one.run: (s.gpus, s.nodes, s.cpus) for s, members in slurm._by_class(jobs, chosen) for one in members}
    assert [found[one.run] for one in jobs] == [(1, 1, 8), (1, 3, 8), (2, 1, 8), (1, 1, 2)]


def test_what_the_cluster_decides_is_left_out():
    small = slurm._parameters(slurm.slurm_settings(["gpus=0"]), [])
    assert not {"partition", "account", "qos", "constraint", "mem", "gpus_per_node"} & set(small)
    assert (small["ntasks_per_node"], small["time"], small["additional_parameters"]) == (1, 1440, {"requeue": True})
    large = slurm._parameters(slurm.slurm_settings(["gpus=4", "nodes=2", "memory_gb=1.5", "requeue=false"]), [])
    assert (large["ntasks_per_node"], large["nodes"], large["mem"]) == (4, 2, "1536MB")
    assert large["additional_parameters"] == {"no-requeue": True}


def test_without_slurm_it_says_what_is_missing(job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="launch=slurm needs Slurm's commands; not found: sbatch, srun"):
        slurm.submit([job()], tmp_path / "store", slurm.slurm_settings([]))
    assert not (tmp_path / "store").exists()


def test_queued_are_the_members_of_this_stores_arrays(launched, says, tmp_path):
    name = "smog-20260101-000000-abcd"
    says(
        "squeue",
        f"{name}-0|12_1|RUNNING|None",
        f"{name}-0|12_2|PENDING|Resources",
        f"{name}-1|13|COMPLETING|None",
        "smog-20250101-000000-abcd-0|9|RUNNING|None",
        "another|of|theirs|with|bars|RUNNING|None",
    )
    assert slurm.queued(tmp_path) == {
        launched[1]: "Slurm job 12_1, running",
        launched[2]: "Slurm job 12_2, pending (Resources)",
        launched[3]: "Slurm job 13, completing",
    }
    says("scancel")
    assert slurm.cancel(tmp_path, {launched[2], launched[0]}) == ["cell: Slurm job 12_2"]
    assert (tmp_path / "scancel.asked").read_text() == "12_2\n"


def test_a_queue_that_does_not_answer_is_not_an_empty_one(launched, says, tmp_path):
    says("squeue", code=1)
    with pytest.raises(RunError, match="squeue failed: code 1"):
        slurm.queued(tmp_path)
    assert slurm.queued(tmp_path / "another") == {}, "nothing was submitted: nothing is asked"


def test_ended_tells_what_the_processes_could_not(launched, says, tmp_path):
    name = "smog-20260101-000000-abcd"
    assert slurm.ended(tmp_path / "another") == {}
    says("sacct", f"{name}-0|12_0|OUT_OF_MEMORY", f"{name}-0|12_[1-2%1]|CANCELLED by 0", f"{name}-1|13|NODE_FAIL")
    runs = dict(zip(launched, ("memory", "stopped", "stopped", "node"), strict=True))
    assert slurm.ended(tmp_path) == runs
    asked = (tmp_path / "sacct.asked").read_text()
    assert asked == f"-X -n -P -S 2026-01-01T00:00:00 --name={name}-0,{name}-1 -o JobName,JobID,State\n"
    says("sacct", f"{name}-0|12_0|COMPLETED", f"{name}-0|12_1|TIMEOUT", f"{name}-0|12_2|FAILED", "odd||", "x|1_[|y")
    assert slurm.ended(tmp_path) == {launched[1]: "timeout"}
    says("sacct", "Slurm accounting storage is disabled", code=1)
    assert slurm.ended(tmp_path) == {}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("1:00 2:00:00 RUNNING", "preempted"),
        ("0:00 2:00:00 COMPLETING", "preempted"),  # requeued by Slurm
        ("1:00 2:00:00 COMPLETING", "stopped"),  # cancelled
        ("1:57:10 2:00:00 RUNNING", "timeout"),
        ("1:00 UNLIMITED RUNNING", "preempted"),
        ("", "preempted"),
    ],
)
def test_why_slurm_stops_a_run(says, monkeypatch, tmp_path, answer, kind):
    says("squeue", answer)
    for name, value in (("JOB_ID", "12"), ("ARRAY_JOB_ID", "12"), ("ARRAY_TASK_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SMOG_WARNED", "120")
    assert kind_of(StoppedError(15, "stopped")) == kind
    asked = (tmp_path / "squeue.asked").read_text()
    assert "-j 12_7 " in asked, "and not of the whole array, which has the number of its last member"


def test_max_array_is_what_the_cluster_says(says):
    says("scontrol", "MaxJobCount = 10000", "MaxArraySize            = 501")
    assert slurm._max_array() == 501
    says("scontrol", "nothing of the kind")
    assert slurm._max_array() == 1001


def test_submitted_from_a_job_a_job_does_not_take_its_shape(monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/a/file")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with slurm._outside_of_slurm():
        import os

        assert os.environ.get("SLURM_NTASKS") == "8", "not in a job: what a person set stays"
        monkeypatch.setenv("SLURM_JOB_ID", "3")
    with slurm._outside_of_slurm():
        assert {name for name in os.environ if name.startswith("SLURM_")} == {"SLURM_CONF"}
    assert os.environ["SLURM_NTASKS"] == "8"


def test_the_lines_before_a_job_take_the_frozen_code(tmp_path):
    import subprocess

    folder = Path(tmp_path / "with a space")
    lines = [*slurm._setup(slurm.slurm_settings(["setup=['export A=1']"]), "id", str(folder)), 'echo "$A $PYTHONPATH"']
    for before, after in (({}, ""), ({"PYTHONPATH": "/b"}, ":/b")):
        done = subprocess.run(["bash", "-c", "\n".join(lines)], env=before, capture_output=True, text=True, check=True)
        assert done.stdout == f"1 {folder}{after}\n"
