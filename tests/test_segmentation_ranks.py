"""Fine-tuning of a segmentor in two processes, over gloo on the loopback: they end as one process does, with the same
weights, and what is lost goes on to the same bits."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from made_trainings import MMSEG, SMALL, assert_same, fine_tune, rows_of, small
from test_detection_ranks import answers, assert_one_result, by_torchrun, copied, said, wait_for, work_of
from test_distributed import in_ranks, loopback, start  # noqa: F401 (a fixture of the module)

from smog import checkpoint, train
from smog.config import with_runtime
from smog.pretrained import open_pretrained
from smog.processes import joined
from transfer.ade20k import main

pytestmark = [*MMSEG, pytest.mark.timeout(180)]

# each process has dropout of its own; the rate is small, so that float errors do not grow from step to step
ALIKE = ("mmseg.model.decode_head.dropout_ratio=0", "mmseg.model.auxiliary_head.dropout_ratio=0", "lr=1e-3")
HEADS = {"upernet": ALIKE, "linear": ("head=linear",)}
LONG = ("steps=25", "checkpoint_every=0", "made_train=16")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Path:
    """A finished pretraining of seconds, alone in its store."""
    return train(with_runtime(tiny("optim.epochs=1"), store=str(tmp_path_factory.mktemp("store"))))


# ---- the same as one process ----


def tuned(folder: Path, *more: str) -> tuple[Any, list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What is found, the log and the weights after four steps."""
    source = open_pretrained("random", model="resnet10_tiny")
    found = fine_tune(source, small("steps=4", "made_val=3", "multi_scale=true", *more), folder)
    return found, rows_of(folder), checkpoint.latest(folder)["model"]


def tuned_in_rank(folder: Path) -> dict[str, Any]:
    os.dup2(os.open(folder / f"{os.environ['RANK']}.err", os.O_CREAT | os.O_WRONLY), 2)
    with joined("cpu"):
        return {name: tuned(folder / name, *more) for name, more in HEADS.items()}


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("work")
    return folder, in_ranks(folder / "ranks", tuned_in_rank, folder)


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_end_as_one(by_ranks: tuple[Path, list[dict[str, Any]]], name: str, tmp_path: Path) -> None:
    """Losses, statistics of batch norm over both halves, weights, and every validation image counted once: of three
    images one process has one."""
    expected, rows, weights = tuned(tmp_path / "work", *HEADS[name])
    for found, own_rows, own_weights in (one[name] for one in by_ranks[1]):
        assert found.metrics.keys() == expected.metrics.keys()
        assert found.metrics == pytest.approx(expected.metrics, abs=0.5)
        assert found.more["engine"]["processes"] == 2
        assert [row["step"] for row in own_rows] == [row["step"] for row in rows]
        for mine, theirs in zip(own_rows[:-1], rows[:-1], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert own_weights.keys() == weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(own_weights[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    first, second = (one[name] for one in by_ranks[1])
    assert first[0].metrics == second[0].metrics
    assert_same(first[2], second[2])


def test_nothing_is_warned_of(by_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """Such as parameters that are looked for and found used."""
    for number in (0, 1):
        assert "Warning" not in said(by_ranks[0], number)


# ---- the command ----


def command(run: Path) -> list[str]:
    asked = ["--ckpt", run.name, "--store", str(run.parent), "--data", "made", "--json"]
    return [*asked, "--set", *SMALL, *LONG]


def in_rank(run: Path, folder: Path, *more: str) -> int:
    """The command in one of several processes; what it says goes to a file."""
    os.dup2(os.open(folder / f"{os.environ['RANK']}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    return main([*command(run), *more])


@pytest.fixture(scope="module")
def torchrun(run: Path) -> subprocess.CompletedProcess[str]:
    """A fine-tuning by torchrun that nothing disturbs."""
    return by_torchrun("ade20k", command(run))


def test_torchrun_ends_with_one_result(run: Path, torchrun: subprocess.CompletedProcess[str]) -> None:
    assert_one_result(run, "ade20k", torchrun, "step 25/25: mIoU")
    assert "stage 4" in torchrun.stderr
    assert [row["step"] for row in rows_of(work_of(run))] == [*range(1, 26), 25]


def test_lost_and_stopped_it_goes_on_to_the_same_bits(
    run: Path, torchrun: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    mine = copied(run, tmp_path / "store")
    ranks = start(tmp_path, in_rank, mine, tmp_path)
    wait_for(mine, 6, ranks)
    ranks[1].kill()
    assert answers(tmp_path, ranks) == [1]
    assert "rank 1 was lost; the same command goes on from the last checkpoint" in said(tmp_path, 0)
    before = checkpoint.latest(work_of(mine))["step"]
    ranks = start(tmp_path, in_rank, mine, tmp_path)
    wait_for(mine, before + 5, ranks)
    for process in ranks:
        process.terminate()
    assert answers(tmp_path, ranks) == [128 + signal.SIGTERM] * 2
    assert 0 < before < checkpoint.latest(work_of(mine))["step"] < 25
    assert answers(tmp_path, start(tmp_path, in_rank, mine, tmp_path)) == [0, 0]
    assert rows_of(work_of(mine)) == rows_of(work_of(run))
    assert_same(*(checkpoint.latest(work_of(one))["model"] for one in (mine, run)))


def test_a_batch_that_can_not_be_shared_is_refused(run: Path, tmp_path: Path) -> None:
    before = sorted(run.parent.rglob("*"))
    assert in_ranks(tmp_path, in_rank, run, tmp_path, "batch=5") == [2, 2]
    for number in (0, 1):
        said_last = said(tmp_path, number).splitlines()[-1]
        assert said_last == "error: batch=5 can't be shared evenly by 2 processes: take a multiple of 2"
    assert sorted(run.parent.rglob("*")) == before
