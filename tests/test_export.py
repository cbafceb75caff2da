import json
import os
import socket

import made_checkpoints as made
import pytest
import timm
import torch
import yaml
from made_store import write_result
from safetensors.torch import load_file, save_file

from smog.__main__ import main
from smog.checkpoint import load_backbone
from smog.errors import UsageError
from smog.export import export
from smog.pretrained import open_pretrained

SMALL = ("data.size=32", "views.size=32", "optim.epochs=0")
NARROW = ("backbone=resnet18", "backbone.args.layers=[1,1,1,1]", "backbone.args.channels=[8,8,16,16]")
BACKBONES = {
    "resnet18": (*NARROW, "optim.epochs=1"),
    "vit_small": ("backbone=vit_small", "backbone.args.embed_dim=64", "backbone.args.depth=1"),
    "convnext_small": ("backbone=convnext_small",),
    "swin_tiny": ("backbone=swin_tiny", "backbone.args.depths=[1,1,1,1]", "backbone.args.embed_dim=12"),
}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A function from a backbone to a finished run with it."""
    from smog.config import with_runtime
    from smog.training import train

    store, made_already = tmp_path_factory.mktemp("store"), {}

    def run(*overrides):
        if overrides not in made_already:
            made_already[overrides] = train(with_runtime(tiny(*SMALL, *overrides), store=str(store)))
        return made_already[overrides]

    return run


@pytest.fixture
def offline(monkeypatch):
    """Any connection is an error."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", BACKBONES)
def test_timm_loads_an_export_offline_and_computes_the_same(trained, tmp_path, offline, name):
    folder = trained(*BACKBONES[name])
    out = export(folder, tmp_path / "out")
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    image = torch.randn(2, 3, 32, 32)
    own = load_backbone(folder)
    assert torch.equal(made.features(network, image), made.features(own, image))
    data = timm.data.resolve_model_data_config(network)
    assert list(data["input_size"]) == [3, 32, 32]
    assert list(data["mean"]) + list(data["std"]) == [0.485, 0.456, 0.406, 0.229, 0.224, 0.225]
    for ckpt in (out, out / "model.safetensors"):
        found = open_pretrained(ckpt)
        assert torch.equal(made.features(found.network, image), made.features(own, image))
    assert (found.size, found.backbone) == (32, open_pretrained(folder).backbone)
    assert (found.origin["kind"], found.origin["run_id"], found.origin["seed"]) == ("export", folder.name, 0)


def test_timms_own_loader_can_cut_the_stages_of_an_export(trained, tmp_path):
    out = export(trained(*BACKBONES["resnet18"]), tmp_path / "out")
    stages = timm.create_model(f"local-dir:{out}", pretrained=True, features_only=True)
    assert [stage.shape[1] for stage in stages(torch.zeros(1, 3, 64, 64))] == [64, 8, 8, 16, 16]


def test_the_card_says_what_it_is_and_every_number(trained, tmp_path):
    folder = trained(*BACKBONES["resnet18"])
    write_result(folder.parent, folder.name, 0, "knn", 41.25)
    out = export(folder, tmp_path / "out")
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("mit", "timm")
    environment = json.loads((folder / "env.json").read_text())
    for part in (
        f"`{folder.name}`, seed 0", "| recipe | smoke |", "| knn | `aaaaaaaa` | top1 | 41.25 |", "local-dir:",
        environment["commit"], f"timm {timm.__version__}", "16 images a step",
    ):  # fmt: skip
        assert part in text
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_same_run_gives_the_same_bytes(trained, tmp_path):
    first, second = (export(trained(*BACKBONES["resnet18"]), tmp_path / name) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


# ---- refused ----


def test_a_folder_that_holds_something_is_left_alone(trained, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already and not empty"):
        export(trained(*NARROW), tmp_path)
    with pytest.raises(UsageError, match="is there already and not empty"):
        export(trained(*NARROW), tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    assert (export(trained(*NARROW), tmp_path / "empty") / "config.json").exists()


def test_nothing_is_left_of_an_export_that_fails(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export(trained(*NARROW), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("backbone=resnet10_tiny",),
            r"backbone\.stem_stride=2: the 3x3 stem without pooling is ours, timm's resnet18",
        ),
        (("backbone=pixels",), "backbone pixels is no network"),
    ],
)
def test_what_timm_has_no_name_for_is_refused(trained, tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        export(trained(*overrides), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(trained, tmp_path):
    import shutil

    cut = shutil.copytree(trained(*NARROW), tmp_path / "run")
    (cut / "done").unlink()
    with pytest.raises(UsageError, match="run run is not finished"):
        export(cut, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet34"}, r"missing \d+: layer1\.1\.conv1\.weight"),
        ({"architecture": None}, r"config\.json is no configuration of timm's \(UsageError: architecture|name=None"),
        ({"pretrained_cfg": 3}, r"config\.json is no configuration of timm's \(TypeError"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5], "std": [1, 1, 1]}}, "not enough values"),
    ],
)
def test_an_export_whose_configuration_was_changed_is_refused(trained, tmp_path, change, message):
    out = export(trained(*NARROW), tmp_path / "out")
    values = json.loads((out / "config.json").read_text())
    values["model_args"] = {} if "architecture" in change else values["model_args"]
    (out / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UsageError, match=message):
        open_pretrained(out)


def test_an_export_whose_weights_were_changed_is_refused(trained, tmp_path):
    out = export(trained(*NARROW), tmp_path / "out")
    state = load_file(out / "model.safetensors")
    save_file({**state, "projector.0.weight": torch.zeros(3)}, out / "model.safetensors")
    with pytest.raises(UsageError, match=r"unknown 1: projector\.0\.weight"):
        open_pretrained(out)


# ---- the command ----


@pytest.mark.parametrize(
    "words", [["--format", "timm", "--out"], ["--format=timm", "--out="], ["format=timm", "out="]], ids=" ".join
)
def test_the_command_takes_both_spellings(trained, tmp_path, capsys, words):
    folder, out = trained(*NARROW), tmp_path / "out"
    last = [words[-1] + str(out)] if words[-1].endswith("=") else [words[-1], str(out)]
    assert main(["export", folder.name[:8], f"store={folder.parent}", *words[:-1], *last]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "detectron2", "--out", "x"], "python transfer/convert.py --ckpt "),
        (["--format", "onnx", "--out", "x"], "format='onnx'; known: detectron2, mmseg, timm, torchvision"),
        (["--format", "timm"], "smog export needs a run and a folder"),
        (["--fromat", "timm", "--out", "x"], "smog export needs a run and a folder"),
    ],
)
def test_wrong_use_is_one_line(trained, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained(*NARROW)), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
