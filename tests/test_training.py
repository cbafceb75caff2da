"""A run ends with the same bits however often it is killed; what can't go on says why."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from smog import checkpoint, compose, load_backbone, train
from smog.config import dump
from smog.errors import RunError, UsageError
from smog.optim import Clock, peak, rate
from smog.records import read_lines


def smoke(store: Path, *overrides: str) -> Path:
    return train(compose(["recipe=smoke", f"runtime.store={store}", *overrides]))


def bits(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the final state: weights, momentum branch, groups, cache, optimiser."""
    content = checkpoint.read(folder / checkpoint.FILE)
    momenta = {f"optimizer.{k}": v["momentum_buffer"] for k, v in content["optimizer"]["state"].items()}
    return {**content["method"], **momenta, "rng": content["rng"]}


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without the times, which no two runs share."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / "metrics.jsonl")]


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = bits(one), bits(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smoke(tmp_path_factory.mktemp("whole"), "optim.epochs=6")


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_five_times_it_ends_with_the_same_bits(whole: Path, tmp_path: Path, workers: int) -> None:
    overrides = ["optim.epochs=6", f"runtime.workers={workers}", "runtime.checkpoint_every=0.01"]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["smog.training"])
    chance = random.Random(workers)
    log = tmp_path / whole.name / "metrics.jsonl"
    for kill in range(5):
        process = server.Process(target=smoke, args=(tmp_path, *overrides))
        process.start()
        wait_for_step(process, log, 6 * (kill + 1))
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert_same_end(whole, smoke(tmp_path, *overrides))


def wait_for_step(process: multiprocessing.process.BaseProcess, log: Path, step: int) -> None:
    while process.is_alive() and not any(line["step"] >= step for line in read_lines(log)):
        time.sleep(0.002)


class CutError(Exception):
    """Ends a run in the middle of a step, after metrics were written and before the checkpoint."""


def cut(step: int, store: Path, *overrides: str) -> None:
    from smog.training import Run

    original = Run._one_step

    def one_step(self: Run, batch):
        if self.step == step:
            raise CutError
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_one_step", one_step)
        with pytest.raises(CutError):
            smoke(store, *overrides)


@pytest.mark.parametrize("step", range(0, 24, 5))
def test_cut_after_any_step_it_ends_with_the_same_bits(tmp_path: Path, step: int) -> None:
    cut(step, tmp_path / "cut", "runtime.checkpoint_every=0.2")
    assert_same_end(smoke(tmp_path / "whole"), smoke(tmp_path / "cut"))


def test_bad_images_are_counted_on_over_a_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for number in range(48):
            path = tmp_path / "images" / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((20, 20, 3), 5 * number, np.uint8))
    for number in (7, 20, 33):
        (tmp_path / "images" / "train" / f"class{number % 2}" / f"{number}.png").write_bytes(b"no image")
    overrides = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.train_images=48", "data.val_images=8"]
    overrides += ["runtime.keep_images=0", "runtime.checkpoint_every=0.0001", "optim.batch=12"]
    whole = smoke(tmp_path / "whole", *overrides)
    assert capsys.readouterr().err.count("the next one stands in for it") == 3
    assert lines(whole)[-1]["bad_images"] == 3
    cut(5, tmp_path / "cut", *overrides)
    assert_same_end(whole, smoke(tmp_path / "cut", *overrides))


def test_workers_do_not_change_a_bit(whole: Path, tmp_path: Path) -> None:
    assert_same_end(whole, smoke(tmp_path, "optim.epochs=6", "runtime.workers=2"))


def test_another_seed_changes_the_weights(tmp_path: Path) -> None:
    one, other = smoke(tmp_path, "seed=0"), smoke(tmp_path, "seed=1")
    assert not torch.equal(bits(one)["bank.groups"], bits(other)["bank.groups"])


def test_a_finished_run_is_not_touched(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    smoke(whole.parent, "optim.epochs=6")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_what_a_run_leaves(whole: Path) -> None:
    environment, done = (json.loads((whole / name).read_text()) for name in ("env.json", "done"))
    assert environment["run_id"] == whole.name
    assert environment["precision"] in ("bf16", "fp32")
    assert {"commit", "dirty", "versions", "machine", "threads"} <= environment.keys()
    assert done["steps"] == 48
    assert done["seconds"] > 0
    assert done["peak_memory"] > 2**20
    assert [line["step"] for line in lines(whole)] == [*range(1, 48, 2), 48]
    assert {"loss", "lr", "agreement", "group_entropy", "group_dead"} <= lines(whole)[0].keys()


def test_the_loss_falls(tmp_path: Path) -> None:
    folder = smoke(tmp_path, "optim.epochs=12", "method.regroup_interval=0", "method.encoder_momentum=0.9")
    losses = [line["loss"] for line in lines(folder)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_run_without_epochs_is_the_untrained_network(tmp_path: Path) -> None:
    folder = smoke(tmp_path, "optim.epochs=0")
    assert json.loads((folder / "done").read_text())["steps"] == 0
    assert load_backbone(folder)(torch.zeros(2, 3, 16, 16)).shape == (2, 16)


def test_load_backbone_takes_id_folder_and_file(whole: Path) -> None:
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = [
        load_backbone(whole.name[:6], whole.parent)(image),
        load_backbone(whole)(image),
        load_backbone(whole / "last.pt")(image),
    ]
    assert all(torch.equal(results[0], other) for other in results)
    assert not load_backbone(whole).training


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    overrides = ["optim.lr=1e30", "optim.precision=fp32", "runtime.checkpoint_every=0.0001"]
    with pytest.raises(RunError, match=r"the loss is (nan|inf).*last finite one was at step \d+ of 24") as caught:
        smoke(tmp_path, *overrides)
    [folder] = [path for path in tmp_path.iterdir() if path.name != "cache"]
    content = checkpoint.read(folder / "last.pt")
    assert 0 < content["step"] <= int(str(caught.value).split("at step ")[1].split(" ")[0])
    assert all(torch.isfinite(value).all() for value in content["method"].values() if value.is_floating_point())
    assert not (folder / "done").exists()


def test_gradients_that_overflow_fp16_stop_the_run(tmp_path: Path) -> None:
    overrides = ["optim.precision=fp16", "method.temperature=1e-9", "optim.epochs=6", "optim.lr=1e-9"]
    with pytest.raises(RunError, match=r"overflow fp16 even at a loss scale of .*optim\.precision=bf16"):
        smoke(tmp_path, *overrides)


def test_fp16_trains(tmp_path: Path) -> None:
    folder = smoke(tmp_path, "optim.precision=fp16", "optim.epochs=12", "method.regroup_interval=0")
    losses = [line["loss"] for line in lines(folder)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_an_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    folder = smoke(tmp_path)
    (folder / "done").unlink()
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"last\.pt is no checkpoint that can be read"):
        smoke(tmp_path)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"step": print}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="no checkpoint that can be read"):
        checkpoint.read(tmp_path / "last.pt")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    one, other = smoke(tmp_path, "seed=0"), smoke(tmp_path, "seed=1")
    (other / "last.pt").write_bytes((one / "last.pt").read_bytes())
    (other / "done").unlink()
    with pytest.raises(UsageError, match=f"belongs to run {one.name}, not to {other.name}"):
        smoke(tmp_path, "seed=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.batch=300"], "optim.batch=300 is above the 256 training images"),
        (["backbone.name=resnet81"], "timm has no such model; nearest: .*resnet"),
        (["backbone=vit_small", "backbone.stem_stride=1", "backbone.args.img_size=16"], "has no ResNet stem; take 0"),
        (["backbone.args.nonsense=1"], "nonsense"),
        (["runtime.device=tpu9"], "runtime.device='tpu9' is not known"),
        (["data=imagefolder"], "needs data.root=DIR"),
    ],
)
def test_wrong_use_is_said_before_anything_is_written(tmp_path: Path, overrides: list[str], message: str) -> None:
    store = tmp_path / "store"
    with pytest.raises(UsageError, match=message):
        smoke(store, *overrides)
    assert not store.exists()


def test_another_thread_count_on_resume_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = smoke(tmp_path)
    (folder / "done").unlink()
    smoke(tmp_path, "runtime.threads=2")
    torch.set_num_threads(1)
    assert "resumed with 2 threads after 1" in capsys.readouterr().err


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    config = compose(["optim.lr=0.2", "optim.batch=512", "optim.warmup_epochs=2", "optim.final_lr=0.01"]).optim
    rates = [rate(Clock(step, 100, 10), config) for step in range(101)]
    assert peak(config) == pytest.approx(0.4)
    assert rates[0] == pytest.approx(0.4 / 20)
    assert rates[20] == pytest.approx(0.4) == max(rates)
    assert rates[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_the_stored_configuration_is_the_run(whole: Path) -> None:
    from smog.config import load
    from smog.identity import run_id

    assert run_id(load(whole / "config.yaml")) == whole.name
    assert dump(load(whole / "config.yaml")) == (whole / "config.yaml").read_text()
