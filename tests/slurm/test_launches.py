"""Launches on a real Slurm of two nodes: what its jobs leave behind is, bit for bit, what the same runs leave behind in
one process, whatever happens to them on the way."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import MAX_ARRAY

from ablations import slurm
from ablations.work import Job, work
from smog import checkpoint
from smog.attempts import history, stages
from smog.config import with_runtime
from smog.data.sources import with_fingerprint
from smog.errors import UsageError
from smog.records import read_lines
from smog.tasks import settings

pytestmark = [pytest.mark.usefixtures("two_nodes"), pytest.mark.timeout(300)]

INJECT = Path(__file__).parent / "inject"
LONG = ("optim.epochs=100", "runtime.log_every=20", "method.regroup_interval=50")  # 600 steps


@pytest.fixture
def job(tiny, tmp_path):
    """A function from overrides to a job in the store of the test."""
    return functools.partial(make_job, tiny, tmp_path / "store")


def make_job(tiny, store: Path, *overrides: str) -> Job:
    config = with_runtime(with_fingerprint(tiny(*overrides)), store=str(store))
    return Job(" ".join(overrides), config, {"knn": settings("knn")})


def chosen(*overrides: str, **injected: Any) -> slurm.Slurm:
    """Settings for small jobs, into which something of tests/slurm/inject is put."""
    lines = [f"export PYTHONPATH={INJECT}", *(f"export SMOG_TEST_{k.upper()}={v}" for k, v in injected.items())]
    setup = f"setup=[{','.join(repr(line) for line in lines)}]" if injected else "setup=[]"
    return slurm.slurm_settings(["gpus=0", "cpus=1", "hours=0.25", "warn=10", setup, *overrides])


def idle(store: Path) -> bool:
    return not slurm.queued(store)


def outcomes(job: Job, stage: str = "train") -> list[str]:
    return [one["outcome"] for one in history(folder_of(job), stage)]


def folder_of(job: Job) -> Path:
    return Path(job.config.runtime.store) / job.run


def training(job: Job) -> bool:
    return bool(list(read_lines(folder_of(job) / "metrics.jsonl"))) if folder_of(job).is_dir() else False


def preempt(node: str) -> None:
    """Submit an urgent job that needs all of a node."""
    urgent = ["sbatch", "--partition=high", f"--constraint={node}", "--ntasks=2", "--output=/dev/null"]
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True, capture_output=True)


def state_in_slurm(job: Job) -> list[str]:
    """The states in which Slurm keeps the jobs of a run, first to last."""
    store = Path(job.config.runtime.store)
    found = []
    for path in sorted((store / "launches").glob("*.json")):
        for chunk in json.loads(path.read_text())["chunks"]:
            asked = ["sacct", "-n", f"--name={chunk['name']}", "-o", "JobID,State"]
            rows = [line.split("|") for line in subprocess.check_output(asked, text=True).splitlines()]
            wanted = [place for place, one in enumerate(chunk["jobs"]) if one["run"] == job.run]
            found += [state for one, state in rows if slurm._places(one)[0] in wanted]
    return found


def assert_as_inline(jobs: Sequence[Job], inline: Path) -> None:
    """Train the same runs in this process, and compare all that both leave behind."""
    for job in jobs:
        again = Job(job.title, with_runtime(job.config, store=str(inline)), job.tasks)
        assert work([again])[0].done
        ours, theirs = remains(folder_of(again)), remains(folder_of(job))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            equal = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            assert equal, f"{job.title}: {name}"


def remains(folder: Path) -> dict[str, Any]:
    """All numbers of a run but the times."""
    content = checkpoint.read(folder / checkpoint.FILE)
    momenta = {f"optimizer.{k}": v["momentum_buffer"] for k, v in content["optimizer"]["state"].items()}
    lines = [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / "metrics.jsonl")]
    metrics = {path.name: json.loads(path.read_text())["metrics"] for path in (folder / "results").iterdir()}
    return {**content["method"], **momenta, "rng": content["rng"], "step": content["step"], "lines": lines, **metrics}


@pytest.fixture(scope="module")
def timed(tiny, tmp_path_factory, two_nodes) -> Job:
    """A job that needs more than the minute it has. It is on its way while the other tests run."""
    job = make_job(tiny, tmp_path_factory.mktemp("timed") / "store", *LONG, "seed=7")
    limits = ("hours=0.0167", "warn=5", "constraint=n2")
    slurm.submit([job], Path(job.config.runtime.store), chosen(*limits, sleep=0.2))
    return job


@pytest.fixture(scope="module", autouse=True)
def _under_way(timed) -> None:
    """Start it before the first test."""


SUBMIT = """
import json, sys, time
from pathlib import Path
from ablations import slurm
from ablations.work import from_json
jobs, store, chosen = json.load(open(sys.argv[1])), Path(sys.argv[2]), json.loads(sys.argv[3])
print(slurm.submit([from_json(job) for job in jobs], store, slurm.Slurm(**chosen)).submitted, flush=True)
time.sleep(600)
"""


def submit_and_die(jobs: Sequence[Job], store: Path, code: Path) -> None:
    """Submit from a copy of the code, in a process that is killed right after."""
    from dataclasses import asdict

    from ablations.work import to_json

    (code.parent / "jobs.json").write_text(json.dumps([to_json(job) for job in jobs]))
    process = subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(code.parent / "jobs.json"), str(store), json.dumps(asdict(chosen()))],
        env={**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == f"{len(jobs)}\n"
        process.send_signal(signal.SIGKILL)


def test_an_array_outlives_its_submitter_and_edits_of_the_code(job, repository, tmp_path, wait_until):
    """More cells than an array takes, submitted from a copy of the checkout that is broken while they wait."""
    jobs = [job(f"method.num_groups={number}") for number in range(4, 5 + MAX_ARRAY)]
    store, code = tmp_path / "store", tmp_path / "code"
    for package in ("smog", "ablations", "transfer"):
        shutil.copytree(repository / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    submit_and_die(jobs, store, code)
    (code / "smog" / "training.py").write_text("raise SystemError('edited')\n")
    again = slurm.submit(jobs, store, chosen())
    assert (again.submitted, again.queued) == (0, len(jobs)), "while they wait"
    wait_until(lambda: idle(store))
    assert_as_inline(jobs, tmp_path / "inline")
    [path] = (store / "launches").glob("*.json")
    record = json.loads(path.read_text())
    assert [len(chunk["jobs"]) for chunk in record["chunks"]] == [MAX_ARRAY, 1]
    assert "SystemError" not in (Path(record["code"]) / "smog" / "training.py").read_text()
    assert (store / "logs" / f"{jobs[-1].run}.txt").read_text().count("Job completed successfully") == 1

    once_more = slurm.submit(jobs[:1], store, chosen())
    assert once_more.submitted == 1, "it is no longer in the queue; the store says that there is nothing to do"
    wait_until(lambda: idle(store))
    assert outcomes(jobs[0]) == ["done"]
    assert state_in_slurm(jobs[0]) == ["COMPLETED", "COMPLETED"]
    assert slurm.ended(store) == {}


def test_a_preempted_run_goes_on(job, tmp_path, wait_until):
    one = job(*LONG)
    slurm.submit([one], tmp_path / "store", chosen("constraint=n1", sleep=0.2))
    wait_until(lambda: training(one))
    preempt("n1")
    wait_until(lambda: idle(tmp_path / "store"))
    assert outcomes(one) == ["preempted", "done"]
    assert_as_inline([one], tmp_path / "inline")
    first, second = history(folder_of(one), "train")
    assert first["owner"]["job"] == second["owner"]["job"], "requeued, not submitted anew"


def test_three_equal_mistakes_are_enough(job, tmp_path, wait_until):
    """And the traceback is in the log, which lies where that of a local launch does."""
    jobs = [job(f"seed={seed}") for seed in range(4)]
    slurm.submit(jobs, tmp_path / "store", chosen("parallel=1", code=1))
    bad = [job("optim.lr=1e30", "optim.precision=fp32")]
    slurm.submit(bad, tmp_path / "store", chosen())
    wait_until(lambda: idle(tmp_path / "store"))
    assert [outcomes(one) for one in (*jobs, *bad)] == [["code"]] * 4 + [["nan"]]
    reasons = [history(folder_of(one), "train")[0]["reason"] for one in jobs]
    assert reasons[:3] == [f"KeyError: 'groups of {one.run}'" for one in jobs[:3]]
    assert reasons[3].startswith("not tried: 3 jobs of this launch failed alike: KeyError")
    assert [state_in_slurm(one) for one in (*jobs, *bad)] == [["FAILED"]] * 5
    log = (tmp_path / "store" / "logs" / f"{jobs[0].run}.txt").read_text()
    assert "disturbed_step" in log
    assert slurm.ended(tmp_path / "store") == {}, "they said themselves what it was"


def test_cancelled_runs_save_themselves_and_the_others_stay(job, tmp_path, wait_until):
    """The last of an array is among them: it bears the number of the array."""
    first, other, last = jobs = [job(*LONG, f"seed={seed}") for seed in range(3)]
    store = tmp_path / "store"
    slurm.submit(jobs, store, chosen(sleep=0.2))
    wait_until(lambda: all(training(one) for one in jobs))
    said = slurm.cancel(store, {first.run, last.run})
    assert sorted(line.partition(":")[0] for line in said) == [first.title, last.title]
    wait_until(lambda: set(slurm.queued(store)) == {other.run})
    assert [outcomes(one) for one in jobs] == [["stopped"], [None], ["stopped"]]
    assert slurm.ended(store) == {first.run: "stopped", last.run: "stopped"}
    assert 0 < checkpoint.read(folder_of(last) / checkpoint.FILE)["step"] < 600
    assert len(slurm.cancel(store, {other.run})) == 1
    assert slurm.submit([last], store, chosen()).submitted == 1
    wait_until(lambda: idle(store))
    assert [outcomes(one) for one in jobs] == [["stopped"], ["stopped"], ["stopped", "done"]]
    assert_as_inline([last], tmp_path / "inline")


def test_a_broken_node_is_left_out(job, tmp_path, wait_until):
    one = job()
    slurm.submit([one], tmp_path / "store", chosen(node="n1"))
    wait_until(lambda: idle(tmp_path / "store"))
    first, second = history(folder_of(one), "train")
    assert (first["outcome"], first["owner"]["node"]) == ("node", "n1")
    assert (second["outcome"], second["owner"]["node"]) == ("done", "n2")
    assert state_in_slurm(one) == ["COMPLETED"]
    assert_as_inline([one], tmp_path / "inline")


def test_without_requeue_a_broken_node_is_an_end_like_any_other(job, tmp_path, wait_until):
    one = job()
    slurm.submit([one], tmp_path / "store", chosen("requeue=false", "constraint=n1", node="n1"))
    wait_until(lambda: idle(tmp_path / "store"))
    assert outcomes(one) == ["node"]
    assert state_in_slurm(one) == ["FAILED"]


def test_a_run_on_two_nodes_is_that_of_one_process(job, tmp_path, wait_until):
    """Even though it is preempted on its way."""
    one = job("optim.epochs=2.5", "optim.lr=0.0001", "optim.precision=fp32", "seed=1")
    slurm.submit([one], tmp_path / "store", chosen("nodes=2", sleep=0.5))
    wait_until(lambda: training(one))
    preempt("n1")
    wait_until(lambda: idle(tmp_path / "store"))
    assert {stage: outcomes(one, stage) for stage in stages(folder_of(one))} == {
        "train": ["preempted", "done"],
        next(stage for stage in stages(folder_of(one)) if stage != "train"): ["done"],
    }
    assert json.loads((folder_of(one) / "env.json").read_text())["processes"] == 2
    again = Job(one.title, with_runtime(one.config, store=str(tmp_path / "inline")), one.tasks)
    assert work([again])[0].done
    ours, theirs = remains(folder_of(again)), remains(folder_of(one))
    assert torch.equal(ours["bank.cached_own"], theirs["bank.cached_own"])
    for name in ours:
        if name.startswith(("backbone", "projector", "predictor", "bank.groups")) and "running" not in name:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-5)


def test_two_that_submit_at_once_submit_once(job, tmp_path):
    jobs, store = [job(f"seed={seed}") for seed in range(3)], tmp_path / "store"
    submit = functools.partial(slurm.submit, jobs, store)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(submit, [chosen()] * 2))
    assert sorted((one.submitted, one.queued) for one in both) == [(0, 3), (3, 0)]
    assert len(slurm.cancel(store, {one.run for one in jobs})) == 3


def test_a_resource_class_is_an_array_of_its_own(job, tmp_path):
    jobs, store = [job(f"method.num_groups={number}") for number in (4, 5, 6)], tmp_path / "store"
    settings = chosen("classes=[{where:{method.num_groups:5},hours:2,constraint:n2}]")
    assert len(slurm.submit(jobs, store, settings).arrays) == 2
    asked = ["squeue", "--me", "-h", "-r", "-o", "%j %l %f"]
    shown = [line.split() for line in subprocess.check_output(asked, text=True).splitlines()]
    [launch] = (path.stem for path in (store / "launches").glob("*.json"))
    ours = sorted([name[-1], *more] for name, *more in shown if launch in name)
    assert ours == [["0", "15:00", "(null)"], ["0", "15:00", "(null)"], ["1", "2:00:00", "n2"]]
    assert len(slurm.cancel(store, {one.run for one in jobs})) == 3


def test_what_slurm_refuses_is_one_line(job, tmp_path):
    with pytest.raises(UsageError, match=r"Slurm takes no job: .*invalid partition") as caught:
        slurm.submit([job()], tmp_path / "store", chosen("partition=gpu"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "store" / "launches").glob("*.json"))


def test_a_run_that_reaches_its_time_limit_goes_on(timed, tmp_path, wait_until):
    """The last one: its job was submitted before the first."""
    store = Path(timed.config.runtime.store)
    wait_until(lambda: idle(store), seconds=200)
    assert outcomes(timed) == ["timeout", "done"]
    assert_as_inline([timed], tmp_path / "inline")
