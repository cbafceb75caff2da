import argparse
import hashlib
import json
import pickle
import re

import made_checkpoints as made
import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from smog.architectures import infer
from smog.checkpoint import load_backbone
from smog.config import CONF
from smog.errors import UsageError
from smog.models import build_backbone
from smog.pretrained import open_pretrained
from smog.schema import Backbone


@pytest.fixture
def file(tmp_path):
    """A function that writes a checkpoint and returns its path."""

    def write(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


# ---- which network ----

NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch8_224",
    "vit_base_patch16_224", "vit_base_patch8_224", "vit_large_patch16_224", "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224", "swin_base_patch4_window7_224", "swin_base_patch4_window12_384",
    "swin_large_patch4_window7_224",
)  # fmt: skip


def shapes(name, **args):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **args).state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_timms_models_are_told_from_their_keys_and_shapes(name):
    backbone, size = infer(shapes(name), {})
    assert backbone.name == name
    assert set(backbone.args) <= {"dynamic_img_size", "strict_img_size"}
    assert size == timm.get_pretrained_cfg(name).input_size[-1]


OTHERS = [
    ("resnet50", {"channels": [128, 256, 512, 1024]}),  # conf/backbone/resnet50w2.yaml
    ("resnet50", {"layers": [2, 3, 1, 2], "base_width": 128, "cardinality": 2, "channels": [32, 64, 64, 128]}),
    ("resnet34", {"channels": [16, 16, 16, 16]}),
    ("vit_base_patch16_224", {"img_size": 96, "patch_size": 16, "embed_dim": 128, "depth": 3, "num_heads": 2}),
    ("vit_base_patch16_224", {"embed_dim": 64, "depth": 1, "num_heads": 1, "mlp_ratio": 3, "qkv_bias": False}),
    ("vit_base_patch32_224", {}),
    ("deit_small_patch16_224", {}),
    ("swin_large_patch4_window12_384", {}),
    made.FAMILIES["swin"],
    ("swin_tiny_patch4_window7_224",
     {"embed_dim": 32, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "patch_size": 2, "window_size": 5, "img_size": 40}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args"), OTHERS)
def test_other_widths_and_depths_are_told_too(name, args):
    state = shapes(name, **args)
    backbone, size = infer(state, {})
    again = shapes(backbone.name, **backbone.args)
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}
    if "swin" in name or "vit" in name:
        assert size == args.get("img_size", 384 if "384" in name else 224)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet50d", {}, "a ResNet with a deep stem; say which timm model it is with model=NAME"),
        ("convnext_atto", {}, "no ResNet, ViT or Swin that is known here; say which"),
        ("vit_base_patch16_224", {"embed_dim": 96, "num_heads": 3}, "how many heads it has can't be read"),
        ("vit_base_patch16_224", {"img_size": (32, 64)}, "pos_embed has 8 patches beside the class token"),
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}, "no ResNet, ViT or Swin"),
    ],
)
def test_what_the_shapes_do_not_tell_is_asked_for(name, args, message):
    with pytest.raises(UsageError, match=message):
        infer(shapes(name, **args), {})


def test_a_stem_of_small_images_is_refused_since_its_padding_is_not_in_the_weights(file):
    network = build_backbone(Backbone("resnet18", 1, made.FAMILIES["resnet"][1]), 32)
    with pytest.raises(UsageError, match=r"conv1\.weight is \[64, 3, 3, 3\], not \[64, 3, 7, 7\]: .* stride, padding"):
        open_pretrained(file(network.state_dict()))


def test_a_named_model_is_loaded_where_the_shapes_do_not_tell(file):
    for name in ("convnext_atto", "resnet26d"):
        network = timm.create_model(name).eval()
        found = open_pretrained(file(network.state_dict()), model=name)
        network.reset_classifier(0)
        image = torch.randn(1, 3, 64, 64)
        assert torch.equal(made.features(found.network, image), made.features(network, image))


def test_a_name_that_is_wrong_is_answered_with_the_lists(file):
    path = file(made.network("resnet").state_dict())
    with pytest.raises(UsageError, match=r"as resnet18: missing \d+: layer1\.1\.conv1\.weight.*of another shape"):
        open_pretrained(path, model="resnet18")
    with pytest.raises(UsageError, match="timm has no such model; nearest: resnet18"):
        open_pretrained(path, model="resnet118")


# ---- strangers' files ----


def test_the_result_says_all_of_a_file(file):
    path = file(made.moco(made.network("resnet").state_dict(), "resnet"), "moco_800ep.pth.tar")
    found = open_pretrained(path)
    assert (found.size, found.mean, found.std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.backbone == Backbone("resnet18", 0, made.FAMILIES["resnet"][1])
    assert json.loads(json.dumps(found.origin)) == found.origin
    assert re.fullmatch(r"[0-9a-f]{12}", found.origin["id"])
    assert (found.origin["kind"], found.origin["file"], found.origin["seed"]) == ("file", "moco_800ep.pth.tar", None)
    assert found.origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    again = build_backbone(found.backbone, found.size)
    again.load_state_dict(found.network.state_dict())


def test_safetensors_half_precision_old_files_and_plain_arguments_open(file, tmp_path):
    network = made.network("resnet")
    state = network.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    file({"teacher": made.put("backbone.", state), "args": argparse.Namespace(arch="resnet18")}, "c.pth")
    file({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, "d.pth")
    for name in ("a.safetensors", "b.pt", "c.pth", "d.pth"):
        opened = load_backbone(tmp_path / name)
        assert torch.equal(made.features(opened, made.images("resnet")), made.features(network, made.images("resnet")))
    half = open_pretrained(file({key: v.half() if v.is_floating_point() else v for key, v in state.items()}))
    assert {value.dtype for value in half.network.parameters()} == {torch.float32}


class Code:
    """What a pickle can be: a call."""

    def __reduce__(self):
        return print, ("this must not be printed",)


def test_a_pickle_with_code_is_refused_and_not_run(file, capsys):
    path = file({"state_dict": made.network("resnet").state_dict(), "hyper_parameters": Code()})
    with pytest.raises(UsageError, match=r"checkpoint\.pth holds more than data \((builtins\.)?print\) and is not"):
        open_pretrained(path)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")  # mmengine's, of what it imports
def test_a_checkpoint_of_mmengine_is_read_without_what_it_logs(file):
    history = pytest.importorskip("mmengine.logging").HistoryBuffer([0.5], [1])
    network = made.network("resnet")
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    path = file({"state_dict": state, "message_hub": {"train/loss": history, "best": np.float64(2)}})
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(path, weights_only=True)
    opened = open_pretrained(path).network
    assert torch.equal(made.features(opened, made.images("resnet")), made.features(network, made.images("resnet")))


class Reached:
    """A way to a function past its own name."""

    def __reduce__(self):
        return getattr, (print, "__call__")


def test_what_is_read_past_is_not_called(file):
    content = torch.load(file({"value": Reached()}), weights_only=False)
    assert content["value"] is not None
    with pytest.raises(UsageError, match=r"more than data \((builtins\.)?print\)"):
        open_pretrained(file({"value": Reached()}))


def test_damaged_files_are_refused_in_one_line(file, tmp_path):
    whole = file(made.network("resnet").state_dict()).read_bytes()
    save_file(made.network("resnet").state_dict(), tmp_path / "whole.safetensors")
    for name, content in {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.ckpt": b"a page that says the file has moved",
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:5000],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f"{name} is no checkpoint that can be read: \\w") as caught:
            open_pretrained(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="holds one Tensor, not weights by name"):
        open_pretrained(file(torch.zeros(3)))
    with pytest.raises(UsageError, match=r"nowhere\.pth does not exist"):
        open_pretrained(tmp_path / "nowhere.pth")


def test_weights_that_are_not_finite_or_whole_numbers_are_refused(file):
    state = made.network("resnet").state_dict()
    state["layer1.0.conv1.weight"][0, 0] = float("nan")
    state["bn1.bias"] = state["bn1.bias"].long()
    with pytest.raises(
        UsageError, match=r"of another shape or type 1: bn1\.bias .*; not finite 1: layer1\.0\.conv1\.w"
    ):
        open_pretrained(file(state))


def test_a_vit_without_its_last_norm_is_refused(file):
    state = made.network("vit").state_dict()
    del state["norm.weight"], state["norm.bias"]
    with pytest.raises(UsageError, match=r"missing 2: norm\.weight, norm\.bias$"):
        open_pretrained(file(state))


def broken(state, key, how, number):
    value = state.pop(key)
    if how == "renamed":
        state[f"{key}{number}"] = value
    elif how == "cut":
        state[key] = value[..., :-1] if value.ndim else value[None]
    elif how == "nested":
        state[key] = value[None]
    elif how == "replaced":
        state[key] = number
    return state


@settings(max_examples=60)
@given(
    st.data(), st.sampled_from(list(made.FAMILIES)), st.sampled_from(["gone", "renamed", "cut", "nested", "replaced"])
)
def test_no_broken_key_is_loaded(tmp_path_factory, data, family, how):
    state = made.network(family).state_dict()
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    path = tmp_path_factory.getbasetemp() / "broken.pth"
    key, number = data.draw(st.sampled_from(keys)), data.draw(st.integers(0, 9))
    torch.save(broken(state, key, how, number), path)
    with pytest.raises(UsageError) as caught:
        open_pretrained(path)
    assert "\n" not in str(caught.value)


# ---- runs, and fresh weights ----


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of no steps."""
    from smog.config import with_runtime
    from smog.training import train

    return train(with_runtime(tiny("optim.epochs=0", "seed=3"), store=str(tmp_path_factory.mktemp("store"))))


def test_a_run_opens_by_id_folder_and_file(run):
    opened = [open_pretrained(run.name[:6], run.parent), open_pretrained(run), open_pretrained(run / "last.pt")]
    image = torch.randn(2, 3, 16, 16)
    for one in opened:
        assert torch.equal(made.features(one.network, image), made.features(opened[0].network, image))
        assert one.origin == opened[0].origin
    origin = opened[0].origin
    assert (origin["kind"], origin["id"], origin["seed"], origin["finished"]) == ("run", run.name, 3, True)
    assert {"projector.*", "predictor.*"} <= origin["left_out"].keys()
    assert (opened[0].size, opened[0].backbone.stem_stride) == (16, 2)


def test_a_run_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="no run 'abc' in "):
        open_pretrained("abc", tmp_path)


def test_a_model_for_a_run_is_refused(run):
    with pytest.raises(UsageError, match="model='resnet18' is for strangers' files and random"):
        open_pretrained(run, model="resnet18")


def test_random_weights_follow_from_the_seed_and_disturb_nothing():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = (open_pretrained("random", model="resnet10_tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert first.origin["id"] == same.origin["id"] != other.origin["id"]
    assert (first.origin["kind"], first.origin["seed"], first.backbone.stem_stride) == ("random", 1, 2)
    assert torch.equal(first.network.state_dict()["conv1.weight"], same.network.state_dict()["conv1.weight"])


def test_random_takes_timms_names_and_those_of_conf():
    assert open_pretrained("random", model="convnext_atto").backbone == Backbone("convnext_atto", 0, {})
    own = yaml.safe_load((CONF / "backbone" / "vit_small.yaml").read_text())
    found = open_pretrained("random", model="vit_small")
    assert (found.backbone, found.size) == (Backbone(**own), 32)
    with pytest.raises(UsageError, match="random needs model=NAME: a timm model, or one of convnext_small, "):
        open_pretrained("random")
