"""Fine-tuning of a detector in two processes, over gloo on the loopback: each has its part of every step and of every
evaluation, both end with the same weights, and what is lost or stopped goes on to the same bits."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from test_detection import ROOT, command, losses, small, training
from test_distributed import in_ranks, loopback, start  # noqa: F401 (a fixture of the module)

from smog import checkpoint, train
from smog.attempts import history
from smog.config import with_runtime
from smog.distributed import rank
from smog.pretrained import open_pretrained
from smog.processes import joined
from smog.records import read_lines
from transfer.coco import main
from transfer.data import open_data
from transfer.inference import detect_all
from transfer.loader import Batches, Sample

pytestmark = pytest.mark.timeout(180)

EVEN = ("sizes=[48]",)  # of one size nothing is padded; what is would count in batch norm, by the part that it is in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """A finished pretraining of seconds, alone in its store."""
    return train(with_runtime(tiny("optim.epochs=1"), store=str(tmp_path_factory.mktemp("store"))))


# ---- the parts of a step and of an evaluation ----


def one_step(folder: Path, *more: str) -> dict[str, torch.Tensor]:
    """The detector after the first step."""
    source = open_pretrained("random", model="resnet10_tiny")
    found = training(source, small(*EVEN, *more), folder)
    found._one_step(found.batches[0])
    return found.detector.state_dict()


def detections(folder: Path, images: int) -> list[dict[str, Any]]:
    """What weights that never trained find: much, in every image."""
    source = open_pretrained("random", model="resnet10_tiny")
    found = training(source, small(*EVEN, f"made_val={images}"), folder)
    return detect_all(found.detector.eval(), found.val, found.chosen)


def without_positives(folder: Path, *more: str) -> dict[str, torch.Tensor]:
    """The detector after a step in which the last rank's images have no object, and so no positive region, but for one
    image of the first rank."""
    source = open_pretrained("random", model="resnet10_tiny")
    found = training(source, small(*EVEN, *more), folder)
    samples = found.batches[0]
    found._one_step([cleared(one) if rank() or place else one for place, one in enumerate(samples)])
    return found.detector.state_dict()


def cleared(sample: Sample) -> Sample:
    masks = None if sample.masks is None else sample.masks[:0]
    return Sample(sample.image, sample.boxes[:0], sample.labels[:0], masks)


def parts(folder: Path) -> dict[str, Any]:
    with joined("cpu"):
        return {
            "fpn": one_step(folder),
            "c4": one_step(folder, "arch=c4", "masks=false"),
            "micro": one_step(folder, "micro_batch=2"),
            "detections": {count: detections(folder, count) for count in (1, 5)},
            "without positives": [without_positives(folder, *more) for more in ((), ("masks=false",))],
        }


@pytest.fixture(scope="module")
def by_parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("parts")
    return in_ranks(folder / "ranks", parts, folder / "work")


def norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if ".backbone." in name and "running" in name}


@pytest.mark.parametrize(
    ("name", "more"), [("fpn", ()), ("c4", ("arch=c4", "masks=false")), ("micro", ("micro_batch=2",))]
)
def test_batch_norm_counts_over_both_ranks(
    by_parts: list[dict[str, Any]], tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    """After one step the statistics of the backbone, which sees images and no regions, are those of one process. The
    heads draw their regions with the numbers of their rank."""
    whole, (first, second) = one_step(tmp_path, *more), (one[name] for one in by_parts)
    expected = norms(whole)
    assert len(expected) > 10
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("images", [1, 5])
def test_every_image_is_evaluated_once(by_parts: list[dict[str, Any]], tmp_path: Path, images: int) -> None:
    """Five by two, and one, of which the second rank gets none."""
    whole = detections(tmp_path, images)
    assert {one["image_id"] for one in whole} == set(range(1, images + 1))
    for one in by_parts:
        assert one["detections"][images] == whole


def test_a_rank_without_positive_regions_goes_along(by_parts: list[dict[str, Any]]) -> None:
    for first, second in zip(*(one["without positives"] for one in by_parts), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert all(value.isfinite().all() for value in first.values())


@pytest.mark.parametrize("micro", [0, 4])
def test_the_shares_of_the_processes_are_the_batch(monkeypatch: pytest.MonkeyPatch, micro: int) -> None:
    chosen = small("batch=8", f"micro_batch={micro}")
    data = open_data(chosen, "train")
    whole = Batches(data, chosen).indices(3)
    monkeypatch.setattr("transfer.loader.world_size", lambda: 4)
    own = []
    for number in range(4):
        monkeypatch.setattr("transfer.loader.rank", lambda number=number: number)
        own.append(Batches(data, chosen).own(3).reshape(8 // (micro or 8), -1))
    assert torch.cat([torch.from_numpy(one) for one in own], dim=1).flatten().tolist() == whole.tolist()


# ---- the command ----

LONG = ("images=100", "checkpoint_every=0")  # 25 steps


def in_rank(run: Path, folder: Path, *more: str) -> int:
    """The command in one of several processes; what it says goes to a file."""
    os.dup2(os.open(folder / f"{os.environ['RANK']}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    return main([*command(run, "--engine", "torchvision", "--json"), *LONG, *more])


def copied(run: Path, store: Path) -> Path:
    """The run in a store of its own, without what came after it."""
    return Path(shutil.copytree(run, store / run.name, ignore=shutil.ignore_patterns("transfer", "results", "coco@*")))


def work_of(run: Path) -> Path:
    [work] = (run / "transfer").iterdir()
    return work


def wait_for(run: Path, step: int, processes: list[BaseProcess]) -> None:
    while not any(row["step"] >= step for path in run.glob("transfer/*/metrics.jsonl") for row in read_lines(path)):
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def answers(folder: Path, processes: list[BaseProcess]) -> list[int]:
    """The exit code of the command in every process that ended by itself."""
    for process in processes:
        process.join(120)
        assert not process.is_alive()
    return [pickle.loads(path.read_bytes()) for path in (folder / f"{number}" for number in (0, 1)) if path.exists()]


def by_torchrun(task: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """The command of a task in two processes that torchrun starts."""
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [*two, str(ROOT / "transfer" / f"{task}.py"), *words]
    return subprocess.run(asked, capture_output=True, text=True, timeout=170, check=False)


def assert_one_result(run: Path, task: str, done: subprocess.CompletedProcess[str], headline: str) -> None:
    """Of two processes one speaks: the last line is the result that is stored."""
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    [path] = (run / "results").glob(f"{task}@*.json")
    result = json.loads(path.read_text())
    assert json.loads(line) == result
    assert result["engine"]["processes"] == 2
    assert done.stderr.count(headline) == 1


@pytest.fixture(scope="module")
def torchrun(run: Path) -> subprocess.CompletedProcess[str]:
    """A fine-tuning by torchrun that nothing disturbs."""
    return by_torchrun("coco", [*command(run, "--engine", "torchvision", "--json"), *LONG])


def test_torchrun_ends_with_one_result(run: Path, torchrun: subprocess.CompletedProcess[str]) -> None:
    assert_one_result(run, "coco", torchrun, "step 25/25: box_ap")
    assert [row["step"] for row in losses(work_of(run))] == [*range(1, 26), 25]


def test_lost_and_stopped_it_goes_on_to_the_same_bits(
    run: Path, torchrun: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    mine = copied(run, tmp_path / "store")
    ranks = start(tmp_path, in_rank, mine, tmp_path)
    wait_for(mine, 6, ranks)
    ranks[1].kill()
    assert answers(tmp_path, ranks) == [1]
    assert "failed: rank 1 was lost; the same command goes on from the last checkpoint" in said(tmp_path, 0)

    before = checkpoint.latest(work_of(mine))["step"]
    ranks = start(tmp_path, in_rank, mine, tmp_path)
    wait_for(mine, before + 5, ranks)
    for process in ranks:
        process.terminate()
    assert answers(tmp_path, ranks) == [128 + signal.SIGTERM] * 2
    step = checkpoint.latest(work_of(mine))["step"]
    assert before < step < 25
    for number in (0, 1):
        assert f"saved at step {step} of 25; the same command goes on" in said(tmp_path, number)
    assert not list(mine.glob("results/coco@*"))

    assert answers(tmp_path, start(tmp_path, in_rank, mine, tmp_path)) == [0, 0]
    assert losses(work_of(mine)) == losses(work_of(run))
    ours, theirs = (checkpoint.latest(work_of(one))["detector"] for one in (mine, run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [one["outcome"] for one in history(mine, work_of(mine).name)] == ["node", "stopped", "done"]


def said(folder: Path, number: int) -> str:
    return (folder / f"{number}.err").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("batch=5", "batch=5 can't be shared evenly by 2 processes: take a multiple of 2"),
        ("micro_batch=1", "batch=4 in micro-batches of 1 can't be shared evenly by 2 processes: take a multiple of 2"),
    ],
)
def test_a_batch_that_can_not_be_shared_is_refused(run: Path, tmp_path: Path, more: str, message: str) -> None:
    before = sorted(run.parent.rglob("*"))
    assert in_ranks(tmp_path, in_rank, run, tmp_path, more) == [2, 2]
    for number in (0, 1):
        assert said(tmp_path, number) == f"error: {message}\n"
    assert sorted(run.parent.rglob("*")) == before
