"""The fine-tuning of detectors and segmentors on a real Slurm: as a task of a job that is preempted on its way, and in
two processes that srun starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_trainings import SMALL as SMALL_SEGMENTOR
from test_detection import ROOT, SMALL, losses
from test_launches import folder_of, idle, outcomes, preempt

from ablations import slurm
from ablations.work import Job, work
from smog import checkpoint
from smog.config import with_runtime
from smog.data.sources import with_fingerprint
from smog.tasks import settings
from transfer import protocols

pytestmark = [pytest.mark.usefixtures("two_nodes"), pytest.mark.timeout(300)]

TASKS = {  # settings of 25 steps; what is called at each; the name of the weights in a checkpoint
    "coco": (("engine=torchvision", *SMALL, "images=100"), "transfer.detection", "_one_step", "detector"),
    "ade20k": ((*SMALL_SEGMENTOR, "steps=25"), "transfer.segmentation.training", "after", "model"),
}
SLOW = """
import os
import time

if "SLURM_STEP_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    from {module} import Training

    {called} = Training.{called}

    def slow(self, *given):
        time.sleep(0.5)
        return {called}(self, *given)

    Training.{called} = slow
"""


@pytest.fixture(params=TASKS)
def job(tiny, tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    config = with_runtime(with_fingerprint(tiny("optim.epochs=1")), store=str(tmp_path / "store"))
    return Job("transfer", config, {request.param: settings(request.param, TASKS[request.param][0])})


def task_of(job: Job) -> str:
    [task] = job.tasks
    return task


def work_of(job: Job) -> Path:
    return protocols.work_folder(folder_of(job), task_of(job), job.tasks[task_of(job)])


def remains(job: Job) -> dict[str, Any]:
    """All numbers of a fine-tuning but the times."""
    [path] = folder_of(job).glob(f"results/{task_of(job)}@*.json")
    result = json.loads(path.read_text())
    kept = {name: result[name] for name in ("metrics", "per_class", "parity", "inputs", "engine")}
    weights = checkpoint.latest(work_of(job))[TASKS[task_of(job)][3]]
    return {**weights, "rows": losses(work_of(job)), **kept}


def test_a_preempted_fine_tuning_goes_on_to_the_same_bits(job: Job, tmp_path: Path, wait_until) -> None:
    store = tmp_path / "store"
    (tmp_path / "slow").mkdir()
    _, module, called, _ = TASKS[task_of(job)]
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW.format(module=module, called=called))
    setup = f"setup=['export PYTHONPATH={tmp_path / 'slow'}']"
    settings_of_job = ["gpus=0", "cpus=1", "hours=0.25", "warn=10", "constraint=n1", setup]
    slurm.submit([job], store, slurm.slurm_settings(settings_of_job))
    wait_until(lambda: (work_of(job) / "metrics.jsonl").exists() and len(losses(work_of(job))) >= 3)
    preempt("n1")
    wait_until(lambda: idle(store))
    assert outcomes(job) == ["done"]
    assert outcomes(job, work_of(job).name) == ["preempted", "done"]

    again = Job(job.title, with_runtime(job.config, store=str(tmp_path / "inline")), job.tasks)
    assert work([again])[0].done
    ours, theirs = remains(again), remains(job)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        equal = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert equal, name


@pytest.mark.parametrize(("task", "short"), [("coco", "images=12"), ("ade20k", "steps=3")])
def test_srun_starts_it_in_two_processes(tmp_path: Path, task: str, short: str) -> None:
    asked = [sys.executable, str(ROOT / "transfer" / f"{task}.py"), "--ckpt", "random", "--model", "resnet10_tiny"]
    asked += ["--data", "made", "--store", str(tmp_path), "--json", "--set", *TASKS[task][0], short]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", *asked], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert json.loads(line)["engine"]["processes"] == 2
