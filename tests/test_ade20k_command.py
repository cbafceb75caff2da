"""``python transfer/ade20k.py`` from its arguments to its last line: what it computes once, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from made_segmentation import class_file, drawn, write_ade20k, write_cityscapes, write_grey, write_image, write_voc12aug
from made_trainings import SMALL

from smog.config import with_runtime
from smog.training import train
from transfer.ade20k import main
from transfer.segmentation import training

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(120)
RANDOM = ("--ckpt", "random", "--model", "resnet10_tiny")
ONE = (*SMALL, "steps=1", "warmup=0")
THEIRS = re.compile(r"mmengine|INFO|WARNING|Iter\(|Loads checkpoint")  # lines that mmengine prints


class Done(NamedTuple):
    """What a command left: its exit code and its lines."""

    code: int
    out: list[str]
    err: list[str]

    @property
    def result(self) -> dict:
        assert self.code == 0, self.err
        return json.loads(self.out[-1])


Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in a store of the test's own."""

    def run(*words: object) -> Done:
        code = main([str(word) for word in ("--store", tmp_path / "store", *words)])
        found = capfd.readouterr()
        return Done(code, found.out.splitlines(), found.err.splitlines())

    return run


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "store").rglob("*"))


def test_a_result_is_computed_once_and_shown_again(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*RANDOM, "--data", "made", "--set", *SMALL)
    one = command(*words)
    assert set(one.result["metrics"]) == {"miou", "macc", "aacc"}
    assert one.result["settings"]["family"] == "resnet"
    shown = "\n".join(one.out[:-1])
    assert "mIoU" in shown
    assert "ankle boot" in shown
    assert not THEIRS.search(shown)
    assert not THEIRS.search("\n".join(one.err))
    assert any(line.startswith("step 6/6: mIoU ") for line in one.err)

    def no_work(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(training, "fine_tune", no_work)
    again = command(*words)
    assert again.out == one.out
    assert again.err == []
    out = tmp_path / "out"
    alone = command(*words, "--json", "--out", out)
    assert alone.out == one.out[-1:]
    assert {path.name for path in out.iterdir()} == {
        "result.json", "metrics.jsonl", "predictions.png", "curves.png", "config.py",
    }  # fmt: skip
    assert json.loads((out / "result.json").read_text()) == one.result
    with pytest.raises(AssertionError, match="computed again"):
        command(*words, "steps=7")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished run, ``whole``, and one that was cut, ``cut``."""
    store = tmp_path_factory.mktemp("runs") / "store"
    for name, more in (("whole", ()), ("cut", ("seed=1",))):
        folder = train(with_runtime(tiny("optim.epochs=1", *more), store=str(store)))
        (store.parent / name).write_text(folder.name)
    (folder / "done").unlink()
    return store


def test_the_result_of_a_run_lies_with_it(runs: Path, command: Command) -> None:
    run = (runs.parent / "whole").read_text()
    done = command("--ckpt", run[:6], "--store", runs, "--data", "made", "--head", "linear", "--set", *ONE)
    [path] = (runs / run / "results").glob("ade20k@*.json")
    assert done.result == json.loads(path.read_text())
    assert (done.result["run_id"], done.result["checkpoint"]["kind"]) == (run, "run")
    assert done.result["settings"]["frozen"]
    assert [folder.name for folder in (runs / run / "transfer").iterdir()] == [path.stem]


def test_a_run_that_is_not_finished_is_refused(runs: Path, command: Command) -> None:
    run = (runs.parent / "cut").read_text()
    done = command("--ckpt", run, "--store", runs, "--data", "made", "--set", *ONE)
    assert (done.code, len(done.err)) == (2, 1)
    assert "is not finished" in done.err[0]
    assert not (runs / run / "transfer").exists()


@pytest.mark.parametrize(
    ("model", "family", "body", "optimizer"),
    [("vit_tiny_patch16_224", "vit", "timm", "adamw"), ("swin_tiny_patch4_window7_224", "swin", "mmseg", "adamw")],
)
def test_the_recipe_follows_the_checkpoint(
    command: Command, model: str, family: str, body: str, optimizer: str
) -> None:
    more = (*ONE, "batch=2", "made_val=2")
    done = command("--ckpt", "random", "--model", model, "--data", "made", "--set", *more)
    own, engine = done.result["settings"], done.result["engine"]
    assert (own["family"], own["optimizer"]) == (family, optimizer)
    assert (engine["body"], engine["backbone"]) == (body, model)


def test_keys_of_both_kinds_are_taken(tmp_path: Path, command: Command) -> None:
    keys = ("lr=0.02", "model.decode_head.dropout_ratio=0.25", "train_pipeline.2.prob=0.0", "--multi-scale")
    done = command(*RANDOM, "--data", "made", "--head", "fcn", "--set", *ONE, "made_val=2", *keys)
    assert done.result["settings"]["lr"] == 0.02
    assert done.result["settings"]["mmseg"]["model"] == {"decode_head": {"dropout_ratio": 0.25}}
    assert {"miou", "miou_ms"} < set(done.result["metrics"])
    [path] = (tmp_path / "store").rglob("config.py")
    assert "dropout_ratio=0.25" in path.read_text()


# ---- what is on disk ----


@pytest.mark.parametrize(
    ("layout", "classes"), [(write_ade20k, 10), (write_cityscapes, 19), (write_voc12aug, 21)], ids=lambda value: ""
)
def test_a_set_on_disk_is_trained_on(tmp_path: Path, command: Command, layout: Callable, classes: int) -> None:
    kind = layout.__name__.removeprefix("write_")
    more = ("--classes", class_file(tmp_path)) if kind == "ade20k" else ()
    done = command(*RANDOM, "--data", f"{kind}:{layout(tmp_path / 'set')}", *more, "--set", *ONE)
    assert len(done.result["inputs"]["classes"]) == classes
    assert (done.result["inputs"]["train"], done.result["inputs"]["val"]) == (6, 4)
    seen = [one["acc"] for one in done.result["per_class"].values()]
    assert 1 < len([value for value in seen if value is not None]) <= 11


def test_a_fraction_of_a_folder_without_a_prefix(tmp_path: Path, command: Command) -> None:
    root = write_ade20k(tmp_path / "set")
    done = command(*RANDOM, "--data", root, "--classes", class_file(tmp_path), "--fraction", "0.5", "--set", *ONE)
    assert done.result["inputs"]["train"] == 3


CAMVID = (
    "crop=[64,64]",
    "scale=[96,72]",
    "batch=4",
    "steps=4",
    "warmup=0",
    "channels=16",
    "precision=fp32",
    "device=cpu",
)


@pytest.mark.parametrize("head", ["linear", "fcn", "upernet"])
def test_real_photographs(tmp_path: Path, command: Command, camvid_zip: Path, head: str) -> None:
    """A part of CamVid, so that its check takes no long time."""
    root = tmp_path / "camvid"
    names = part_of(camvid_zip, root)
    done = command(*RANDOM, "--data", root, "--classes", root / "classes.txt", "--head", head, "--set", *CAMVID)
    assert done.result["inputs"]["classes"] == names
    assert len(names) == 11
    assert done.result["metrics"]["aacc"] > 0
    [rows] = (tmp_path / "store").rglob("metrics.jsonl")
    assert "NaN" not in rows.read_text()


def part_of(archive: Path, root: Path, count: int = 8) -> list[str]:
    """Take the first images of each split out of a zip; return the names of its classes."""
    import zipfile

    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".jpg")]
        for split in ("training", "validation"):
            for name in [name for name in names if f"/{split}/" in name][:count]:
                file.extract(name, root)
                file.extract(name.replace("images", "annotations").replace(".jpg", ".png"), root)
        file.extract("classes.txt", root)
    return (root / "classes.txt").read_text().split("\n")[:-1]


# ---- what is refused ----


def change(root: Path, split: str, number: int, labels: np.ndarray) -> None:
    write_grey(root / "annotations" / split / f"scene_{number:03}.png", labels)


def colored(root: Path) -> None:
    labels = drawn("train", 1)[1]
    change(root, "training", 1, cv2.cvtColor(labels, cv2.COLOR_GRAY2BGR))


def out_of_range(root: Path) -> None:
    labels = drawn("val", 2)[1]
    labels[0, 0] = 12
    change(root, "validation", 2, labels)


def without_labels(root: Path) -> None:
    write_image(root / "images" / "training" / "more.jpg", drawn("train", 1)[0])


def another_size(root: Path) -> None:
    change(root, "training", 0, drawn("train", 0)[1][1:])


def both(root: Path) -> None:
    colored(root)
    without_labels(root)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (colored, ("colour pictures, not class numbers", "annotations/training/scene_001.png")),
        (out_of_range, ("has 10 names, the largest label is 12", "annotations/validation/scene_002.png: 12")),
        (without_labels, ("1 images without labels", "images/training/more.jpg")),
        (another_size, ("another size than their labels", "images/training/scene_000.jpg")),
        (both, ("colour pictures", "images without labels")),
    ],
)
def test_a_spoilt_set_is_refused_in_one_line(
    tmp_path: Path, command: Command, spoil: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    root = write_ade20k(tmp_path / "set")
    spoil(root)
    done = command(*RANDOM, "--data", f"ade20k:{root}", "--classes", class_file(tmp_path), "--set", *ONE)
    assert (done.code, len(done.err), done.out) == (2, 1, [])
    for text in said:
        assert text in done.err[0]
    assert left(tmp_path) == []


def test_a_class_file_of_the_wrong_length_is_refused(tmp_path: Path, command: Command) -> None:
    root = write_ade20k(tmp_path / "set")
    done = command(*RANDOM, "--data", root, "--classes", class_file(tmp_path, 5), "--set", *ONE)
    assert (done.code, len(done.err)) == (2, 1)
    assert "the class file has 5 names, the largest label is 10" in done.err[0]
    assert left(tmp_path) == []


def test_a_set_in_another_layout_is_refused(tmp_path: Path, command: Command) -> None:
    root = write_ade20k(tmp_path / "set")
    for kind in ("cityscapes", "voc12aug"):
        done = command(*RANDOM, "--data", f"{kind}:{root}", "--set", *ONE)
        assert (done.code, len(done.err)) == (2, 1)
        assert f"no images in {kind}'s layout" in done.err[0]
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data made --classes names.txt", "data=made has its own classes"),
        ("--data made --head upernt", "nearest: upernet"),
        ("--data made --schedule 30k", "no schedule '30k'"),
        ("--data cityscapes:nowhere --schedule 20k", "no schedule 'cityscapes_20k'; nearest: cityscapes_"),
        ("--data made --haed fcn", "nearest: --head"),
        ("--data made --multi-scal", "nearest: --multi-scale"),
        ("--data nowhere", "nowhere is neither a folder nor a readable zip"),
        ("--data made --set lrr=1", "nearest: lr"),
        ("--data made --set recipe=swin", "take recipe=resnet"),
        ("--data made --set modle.decode_head.channels=8", "unknown key mmseg.modle; nearest: model"),
        ("--data made --set model.decode_hed.channels=8", "unexpected keyword argument 'decode_hed'"),
        ("--data made --set model.decode_head.chanels=8", "mmseg.model: "),
        ("--data made --set model.backbone.nam=resnet18", "mmseg.model: "),
        ("--data made --set model.test_cfg.mod=slide", "unknown key mmseg.model.test_cfg.mod; nearest: mode"),
        ("--data made --set train_pipeline.9.prob=1", "a number from 0 to"),
        ("--data made --set train_pipeline.2.type=Flop", "mmseg.train_pipeline: "),
        ("--data made --set optim_wrapper.optimizer.type=Sgd", "mmseg.optim_wrapper: "),
        ("--data made --set param_scheduler.0.type=Poly", "mmseg.param_scheduler: "),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(tmp_path: Path, command: Command, words: str, said: str) -> None:
    done = command(*RANDOM, *words.split(), *([] if "--set" in words else ["--set"]), *ONE)
    assert (done.code, done.out) == (2, [])
    assert said in done.err[-1]
    assert len(done.err) == 1
    assert left(tmp_path) == []


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, command: Command) -> None:
    stranger = tmp_path / "stranger.pth"
    torch.save({"layer.weight": torch.zeros(3, 3)}, stranger)
    crops = ("crop=[40,40]", "dilated=false")
    vit = ("--ckpt", "random", "--model", "vit_tiny_patch16_224")
    for ckpt, more, said in (
        (("--ckpt", stranger), (), "stranger.pth"),
        (("--ckpt", "nothing"), (), "nothing"),
        (("--ckpt", "random"), (), "model"),
        ((*RANDOM[:3], "pixels"), (), "a network of this family"),
        ((*RANDOM[:3], "convnext_atto"), (), "a network of this family"),
        (vit, crops, "has patches of 16 px; take multiples"),
    ):
        done = command(*ckpt, "--data", "made", "--set", *ONE, *more)
        assert (done.code, len(done.err)) == (2, 1), done.err
        assert said in done.err[0]
    assert left(tmp_path) == []


def test_help_is_light() -> None:
    """In processes of their own: no torch, no hydra; the least of three, since a machine may be busy."""
    code = (
        "import sys; from transfer.ade20k import main; main(['--help']); "
        "print([name for name in ('torch', 'hydra', 'mmengine', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--multi-scale" in done.stdout
    assert min(processor_seconds("transfer/ade20k.py", "--help") for _ in range(3)) < 0.5


def processor_seconds(*words: str) -> float:
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime
