"""Fine-tuning of detectors on made scenes, by the torchvision engine: it learns, resumes with the same bits, and lands
in the store."""

import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smog import checkpoint
from smog.errors import RunError
from smog.pretrained import Pretrained, open_pretrained
from smog.records import read_lines
from smog.tasks import settings
from smog.training import train
from transfer.coco import main
from transfer.data import open_data
from transfer.detection import Training, fine_tune
from transfer.detector import build_detector
from transfer.engines.torchvision import Pyramid
from transfer.loader import Batches
from transfer.protocols import Detection

ROOT = Path(__file__).parents[1]
SMALL = (
    "made_train=16", "made_val=6", "made_size=48", "sizes=[48,56]", "test_size=48", "anchor=8", "channels=8", "batch=4",
    "images=100", "regions=16", "proposals=20", "warmup=8", "precise_bn=8", "precision=fp32", "log_every=1",
    "device=cpu",
)  # fmt: skip


def small(*more: str) -> Detection:
    return settings("coco", ["engine=torchvision", *SMALL, *more])


@pytest.fixture(scope="module")
def source() -> Pretrained:
    return open_pretrained("random", model="resnet10_tiny")


def trained(source: Pretrained, chosen: Detection, work: Path) -> dict[str, torch.Tensor]:
    fine_tune(source, chosen, work)
    return checkpoint.latest(work)["detector"]


def losses(work: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "time"} for row in read_lines(work / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(source: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning that nothing cut."""
    work = tmp_path_factory.mktemp("whole") / "work"
    trained(source, small(), work)
    return work


@pytest.mark.parametrize("more", [(), ("arch=c4",), ("masks=false",), ("arch=c4", "masks=false"), ("micro_batch=2",)])
def test_it_trains_and_scores(source: Pretrained, tmp_path: Path, more: tuple[str, ...]) -> None:
    found = fine_tune(source, small("images=12", *more), tmp_path / "work")
    assert 0 <= found.metrics["box_ap"] <= 100
    assert ("mask_ap" in found.metrics) == ("masks=false" not in more)
    assert found.more["engine"]["name"] == "torchvision"
    assert len(found.more["parity"]) == 9  # what goes in, and four stages at two sizes
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        "last.pt", "metrics.jsonl", "predictions.png", "curves.png",
    }  # fmt: skip


def test_a_swin_trains(tmp_path: Path) -> None:
    swin = open_pretrained("random", model="swin_tiny_patch4_window7_224")
    chosen = small("arch=swin_fpn", "images=4", "batch=2", "sizes=[64]", "test_size=64", "made_val=2")
    found = fine_tune(swin, chosen, tmp_path / "work")
    assert "box_ap" in found.metrics
    assert chosen.optimizer == "adamw"


def test_it_learns(tmp_path: Path) -> None:
    """On eight images that it sees again and again: where objects are, and their shapes. (The sum of all losses says
    little: the better the proposals, the more of them have boxes and masks to learn.)"""
    source = open_pretrained("random", model="resnet10_small")
    fine_tune(source, small("images=400", "made_train=8", "lr=0.08", "channels=32"), tmp_path / "work")
    rows = [row for row in losses(tmp_path / "work") if "loss" in row]
    assert len(rows) == 100
    for name in ("loss_objectness", "loss_mask", "loss_classifier"):
        found = [row[name] for row in rows]
        assert statistics.mean(found[-20:]) < 0.75 * statistics.mean(found[:5]), name


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    source: Pretrained, whole: Path, tmp_path: Path, workers: int
) -> None:
    """kill -9, at a random moment of the loop, of the evaluation or of writing, again and again."""
    work, context = tmp_path / "work", multiprocessing.get_context("fork")
    chosen = small("checkpoint_every=0", f"workers={workers}")
    kills, moments = 0, random.Random(workers)
    while True:
        process = context.Process(target=fine_tune, args=(source, chosen, work))
        process.start()
        process.join(timeout=moments.uniform(0.1, 1.0) if kills < 5 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills
    assert losses(work) == losses(whole)
    expected, found = (checkpoint.latest(folder)["detector"] for folder in (whole, work))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_asked_to_stop_it_saves_and_says_so(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from test_detection import *; from smog.errors import exit_code; import sys; "
        "torch.set_num_threads(1); "
        f"sys.exit(exit_code(lambda: fine_tune(open_pretrained('random', model='resnet10_tiny'), small(), "
        f"Path({str(tmp_path / 'work')!r})) and 0))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    while len(losses(tmp_path / "work") if (tmp_path / "work" / "metrics.jsonl").exists() else []) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved at step" in said
    trained(source, small(), tmp_path / "work")
    assert losses(tmp_path / "work") == losses(whole)


def test_more_looks_on_the_way_change_nothing(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    trained(source, small("evaluations=3"), tmp_path / "work")
    rows = losses(tmp_path / "work")
    assert len([row for row in rows if "box_ap" in row]) == 3
    assert [row for row in rows if "loss" in row] == [row for row in losses(whole) if "loss" in row]
    assert rows[-1] == losses(whole)[-1]


def test_a_loss_that_is_not_finite_is_said_and_not_saved(source: Pretrained, tmp_path: Path) -> None:
    """Between two lines of the log as well."""
    with pytest.raises(RunError, match="the loss is"):
        fine_tune(source, small("lr=1e6", "checkpoint_every=0", "log_every=1000"), tmp_path / "work")
    state = checkpoint.latest(tmp_path / "work")["detector"]
    assert all(torch.isfinite(value).all() for value in state.values())


def training(source: Pretrained, chosen: Detection, work: Path) -> Training:
    return Training(source, chosen, open_data(chosen, "train"), open_data(chosen, "val"), work)


def test_what_is_frozen_stays(source: Pretrained, tmp_path: Path) -> None:
    found = training(source, small("freeze=2"), tmp_path)
    before = {name: value.clone() for name, value in found.detector.state_dict().items()}
    found._one_step(found.batches[0])
    moved = {name for name, value in found.detector.state_dict().items() if not torch.equal(value, before[name])}
    body = "net.backbone.body."
    assert not any(name.startswith((f"{body}conv1", f"{body}bn1", f"{body}layer1")) for name in moved)
    assert any(name.startswith(f"{body}layer2") for name in moved)
    assert any(name.startswith(f"{body}layer2") and "running_mean" in name for name in moved)


def test_precise_statistics_are_the_average_and_go_again(source: Pretrained, tmp_path: Path) -> None:
    """The first norm sees images alone, so that its statistics can be computed apart."""
    found = training(source, small(), tmp_path)
    norm, conv = found.detector.net.backbone.body.bn1, found.detector.net.backbone.body.conv1
    before = norm.running_mean.clone()
    batches = [found.batches[step] for step in range(3)]
    with torch.no_grad():
        means = []
        for samples in batches:
            images = [found.detector.net.transform.normalize(one.image.float() / 255) for one in samples]
            means.append(conv(found.detector.net.transform.batch_images(images, 32)).mean((0, 2, 3)))
    with found.detector.precise_statistics(iter(batches)):
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_mean, before)
    assert norm.momentum == 0.1


def test_precise_statistics_are_of_micro_batches(source: Pretrained, tmp_path: Path) -> None:
    """As those of training are, and in their memory."""
    found = training(source, small("micro_batch=2"), tmp_path)
    assert [len(part) for part in found._precise_batches()] == [2] * 4


def test_the_new_parts_start_alike_whatever_the_checkpoint(source: Pretrained) -> None:
    other = open_pretrained("random", model="resnet10_tiny", seed=1)
    found = []
    for one in (source, other):
        torch.manual_seed(0)
        found.append(build_detector(one, small(), 3).state_dict())
    new = [name for name in found[0] if "backbone.body" not in name]
    assert all(torch.equal(found[0][name], found[1][name]) for name in new)
    assert not torch.equal(*(state["net.backbone.body.conv1.weight"] for state in found))


def test_the_pyramid_of_a_swin_normalises_its_maps() -> None:
    swin = open_pretrained("random", model="swin_tiny_patch4_window7_224")
    pyramid = build_detector(swin, small("arch=swin_fpn"), 3).net.backbone
    assert isinstance(pyramid, Pyramid)
    assert [norm.weight.numel() for norm in pyramid.norms] == [96, 192, 384, 768]


# ---- the batches ----


def test_a_step_is_a_function_of_seed_and_step(source: Pretrained) -> None:
    chosen = small("made_train=21")
    one, other = (Batches(open_data(chosen, "train"), chosen) for _ in range(2))
    [other[step] for step in range(5)]
    for mine, theirs in zip(one[7], other[7], strict=True):
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.boxes, theirs.boxes)
        assert torch.equal(mine.masks, theirs.masks)
    assert one.per_epoch == 5
    for epoch in range(2):
        seen = [int(index) for step in range(5) for index in one.indices(5 * epoch + step)]
        assert len(set(seen)) == 20
    assert not (one.indices(0) == Batches(open_data(chosen, "train"), replace(chosen, seed=1)).indices(0)).all()


def test_boxes_lie_around_masks_at_any_size_and_mirrored() -> None:
    chosen = small("sizes=[33,48,100]", "flip=0.5")
    batches = Batches(open_data(chosen, "train"), chosen)
    mirrored = {False: 0, True: 0}
    for index in range(16):
        plain = Batches(batches.dataset, replace(chosen, flip=0.0)).sample(index, 0)
        sample = batches.sample(index, 0)
        mirrored[not torch.equal(sample.boxes, plain.boxes)] += 1
        assert sample.image.shape[1:] == sample.masks.shape[1:]
        for box, mask in zip(sample.boxes, sample.masks, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (box - around).abs().max() < 3.1  # pixels: at three times the size a pixel has three
    assert min(mirrored.values()) > 2


# ---- the command ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """A finished pretraining of seconds."""
    from smog.config import with_runtime

    store = tmp_path_factory.mktemp("store")
    return train(with_runtime(tiny("optim.epochs=1"), store=str(store)))


def command(run: Path, *more: str) -> list[str]:
    small_set = [*SMALL, "images=8"]
    return ["--ckpt", run.name, "--store", str(run.parent), "--data", "made", *more, "--set", *small_set]


def test_the_command_ends_with_the_result_and_does_no_work_twice(run: Path, tmp_path: Path, capsys) -> None:
    assert main(command(run, "--engine", "torchvision", "--out", str(tmp_path / "out"))) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert "box AP" in out
    assert result["run_id"] == run.name
    [path] = (run / "results").glob("coco@*.json")
    assert json.loads(path.read_text()) == result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (tmp_path / "out" / "predictions.png").exists()
    before = path.stat().st_mtime_ns
    assert main(command(run, "--engine", "torchvision", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert path.stat().st_mtime_ns == before


def test_a_strangers_file_has_a_folder_of_its_own(source: Pretrained, run: Path, tmp_path: Path, capsys) -> None:
    torch.save(open_pretrained(run).network.state_dict(), tmp_path / "stranger.pth")
    arguments = command(run, "--engine", "torchvision", "--json")
    arguments[1] = str(tmp_path / "stranger.pth")
    assert main(arguments) == 2  # its stem does not say how it is padded
    assert "stem" in capsys.readouterr().err
    torch.save(open_pretrained("random", model="resnet18").network.state_dict(), tmp_path / "stranger.pth")
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (run.parent / result["run_id"] / "results").is_dir()
    assert result["checkpoint"]["file"] == "stranger.pth"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arch", "r50_fpn"], "is for resnet50"),
        (["--arch", "swin_fpn"], "is for swin_tiny"),
        (["--arch", "r50_fpm"], "nearest: r50_fpn"),
        (["--data", "coco:nowhere"], "nowhere"),
        (["--ckpt", "nothing"], "nothing"),
        (["--fraction", "0.1"], "batch=4 is above the 2 training images"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(run: Path, more: list[str], said: str, capsys) -> None:
    before = sorted(run.parent.rglob("*"))
    arguments = command(run, "--engine", "torchvision")
    place = arguments.index("--set")
    code = main([*arguments[:place], *more, *arguments[place:]])
    assert code == 2
    assert said in capsys.readouterr().err
    assert sorted(run.parent.rglob("*")) == before


def test_an_unfinished_run_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    import shutil

    shutil.copytree(run, tmp_path / run.name)
    (tmp_path / run.name / "done").unlink()
    arguments = command(run, "--engine", "torchvision")
    arguments[3] = str(tmp_path)
    assert main(arguments) == 2
    assert "not finished" in capsys.readouterr().err
