"""The configuration is that of mmsegmentation's own files, but for what is meant to differ; further keys are put into
it, and wrong ones named."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmseg
import pytest
from made_trainings import MMSEG, small, trained
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from smog.errors import UsageError
from smog.pretrained import Pretrained, open_pretrained
from smog.schema import Backbone
from smog.tasks import settings
from transfer.segmentation.config import build_config
from transfer.segmentation.model import build_segmentor
from transfer.segmentation.protocol import Segmentation

pytestmark = MMSEG

FILES = Path(mmseg.__file__).parent / ".mim" / "configs"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET, SWIN, VIT = (256, 512, 1024, 2048), (96, 192, 384, 768), (768,) * 4
NAMES = {768: "vit_base_patch16_224", 96: "swin_tiny_patch4_window7_224", 256: "resnet50"}
CASES = {
    "swin": ("swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py", SWIN,
             ("recipe=swin", "head=upernet", "schedule=160k")),
    "mae": ("mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py", VIT,
            ("recipe=vit", "head=upernet", "schedule=160k")),
    "upernet": ("upernet/upernet_r50_4xb4-80k_ade20k-512x512.py", RESNET,
                ("recipe=resnet", "head=upernet", "schedule=80k")),
    "upernet 160k": ("upernet/upernet_r50_4xb4-160k_ade20k-512x512.py", RESNET,
                     ("recipe=resnet", "head=upernet", "schedule=160k")),
    "fcn": ("fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py", RESNET, ("recipe=resnet", "head=fcn", "schedule=80k")),
    "cityscapes": ("fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py", RESNET,
                   ("recipe=resnet", "head=fcn", "schedule=cityscapes_80k")),
    "cityscapes 40k": ("upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py", RESNET,
                       ("recipe=resnet", "head=upernet", "schedule=cityscapes_40k")),
    "voc 20k": ("upernet/upernet_r50_4xb4-20k_voc12aug-512x512.py", RESNET,
                ("recipe=resnet", "head=upernet", "schedule=20k")),
    "voc": ("fcn/fcn_r50-d8_4xb4-40k_voc12aug-512x512.py", RESNET,
            ("recipe=resnet", "head=fcn", "schedule=40k")),
}  # fmt: skip
CLASSES = {"cityscapes": 19, "voc": 21}


def chosen(*more: str, data: str = "made") -> Segmentation:
    """Settings as for real data, which are not there."""
    return replace(settings("ade20k", [*more, "data=made"]), data=data)


def ours(given: Segmentation, channels: tuple[int, ...] = RESNET, classes: int = 150) -> dict[str, Any]:
    source = Pretrained(nn.Identity(), Backbone(NAMES[channels[0]], 0, {}), 224, MEAN, STD, {})
    return build_config(given, source, channels, classes)


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, str]:
    """Our configuration and mmsegmentation's file, both as plain values, and the name of the case."""
    file, channels, asked = CASES[request.param]
    kind = request.param.partition(" ")[0]
    data = {"cityscapes": "cityscapes", "voc": "voc12aug"}.get(kind, "ade20k")
    own = ours(chosen(*asked, data=data), channels, CLASSES.get(kind, 150))
    return plain(own), plain(Config.fromfile(FILES / file).to_dict()), request.param


def plain(value: Any) -> Any:
    """Lists for tuples; SyncBN is BN, which the Runner makes one over all processes."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return "BN" if value == "SyncBN" else value


def without_loading(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [step for step in pipeline if step["type"] not in ("LoadImageFromFile", "LoadAnnotations")]


def test_the_heads_are_those_of_the_file(pair: tuple[Any, Any, str]) -> None:
    mine, theirs, case = pair
    if case == "mae":  # meant: 512 channels for every backbone, as with Swin; the file of ViT-B has 768
        assert theirs["model"]["decode_head"]["channels"] == 768
        theirs["model"]["decode_head"]["channels"] = 512
    assert mine["model"]["decode_head"] == theirs["model"]["decode_head"]
    assert mine["model"]["auxiliary_head"] == theirs["model"]["auxiliary_head"]
    norm = {"norm_cfg": {"type": "BN", "requires_grad": True}}  # Feature2Pyramid's own is SyncBN
    neck = theirs["model"].get("neck")
    assert mine["model"].get("neck") == (neck and {**neck, **norm})
    assert mine["model"]["test_cfg"] == theirs["model"]["test_cfg"]
    assert theirs["model"]["train_cfg"] == {}


def test_the_image_is_prepared_as_in_the_file(pair: tuple[Any, Any, str]) -> None:
    mine, theirs = (one["model"]["data_preprocessor"] for one in pair[:2])
    for name in ("mean", "std"):
        assert mine.pop(name) == pytest.approx(theirs.pop(name))
    assert mine == theirs


def test_pipelines_are_those_of_the_file(pair: tuple[Any, Any, str]) -> None:
    mine, theirs, _ = pair
    assert mine["train_pipeline"] == without_loading(theirs["train_pipeline"])
    assert mine["test_pipeline"] == without_loading(theirs["test_pipeline"])
    [many], [expected] = mine["tta_pipeline"], without_loading(theirs["tta_pipeline"])
    sizes, flips, *rest = many["transforms"]
    their_sizes, their_flips, *their_rest = expected["transforms"]
    assert flips == their_flips
    assert rest == [steps for steps in map(without_loading, their_rest) if steps]
    # meant: the scales are of the size of the single test, as papers have them; theirs, of the image as it is on disk
    long, short = mine["test_pipeline"][0]["scale"]
    ratios = [one["scale_factor"] for one in their_sizes]
    assert [one["scale"] for one in sizes] == [[long * ratio, short * ratio] for ratio in ratios]
    assert all(one["keep_ratio"] and one["type"] == "Resize" for one in [*sizes, *their_sizes])


def test_the_optimiser_is_that_of_the_file(pair: tuple[Any, Any, str]) -> None:
    mine, theirs, case = pair
    own, expected = mine["optim_wrapper"], theirs["optim_wrapper"]
    assert own["optimizer"] == expected["optimizer"]
    assert expected.get("clip_grad") is None
    names = {"swin": "decay_norms", "mae": "layer_decay"}
    assert own.keys() - {"type", "optimizer", "constructor"} == ({"paramwise_cfg"} if case in names else set())
    if case == "swin":
        keys, expected_keys = (one["paramwise_cfg"]["custom_keys"] for one in (own, expected))
        assert expected_keys.pop("absolute_pos_embed") == keys.pop("pos_embed")  # Swin-T has none
        assert keys == expected_keys
    elif case == "mae":
        assert own["paramwise_cfg"] == {"layer_decay": expected["paramwise_cfg"]["layer_decay_rate"]}
        assert expected["paramwise_cfg"]["num_layers"] == 12  # ours counts them
    else:
        assert "paramwise_cfg" not in expected


def test_schedule_and_batch_are_those_of_the_file(pair: tuple[Any, Any, str]) -> None:
    mine, theirs, case = pair
    assert mine["param_scheduler"] == theirs["param_scheduler"]
    assert mine["train_cfg"]["max_iters"] == theirs["train_cfg"]["max_iters"]
    file, _, asked = CASES[case]
    gpus, each = (int(part) for part in file.split("xb")[0][-1:] + file.split("xb")[1].partition("-")[0])
    assert theirs["train_dataloader"]["batch_size"] == each
    assert chosen(*asked).batch == gpus * each


def test_the_backbone_differs_as_meant(pair: tuple[Any, Any, str]) -> None:
    """ResNet's stem is the plain one, not V1c's; the strides and the stochastic depth are the file's."""
    mine, theirs, case = pair
    own, expected = mine["model"]["backbone"], theirs["model"]["backbone"]
    assert own["drop_path"] == expected.get("drop_path_rate", 0.0)
    assert not own["frozen"]
    if expected["type"] == "ResNetV1c":
        assert own["dilated"] == (expected["dilations"] == [1, 1, 2, 4]) == ("fcn" in CASES[case][0])
        assert not expected["norm_eval"]
    assert set(mine["model"]) == set(theirs["model"]) - {"pretrained", "train_cfg"}


def test_the_linear_head_has_its_own_recipe_whatever_the_backbone() -> None:
    found = [ours(chosen(f"recipe={name}", "head=linear", "schedule=40k")) for name in ("resnet", "swin", "vit")]
    for one in found:
        assert one["optim_wrapper"] == found[0]["optim_wrapper"]
        assert one["optim_wrapper"]["optimizer"] == {
            "type": "AdamW", "lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4,
        }  # fmt: skip
        assert one["model"]["backbone"]["frozen"]
        assert not one["model"]["backbone"]["drop_path"]
        assert not {"auxiliary_head", "neck"} & one["model"].keys()


# ---- further keys ----


def put(*more: str) -> dict[str, Any]:
    return ours(chosen("schedule=160k", *(f"mmseg.{one}" for one in more)))


def test_further_keys_are_put_in_and_nothing_else_changes() -> None:
    before = put()
    after = put(
        "model.decode_head.channels=64", "train_pipeline.1.crop_size=[48,64]", "optim_wrapper.optimizer.lr=0.5",
        "model.test_cfg.mode=slide", "optim_wrapper.clip_grad={max_norm:1.0}", "model.auxiliary_head.ignore_index=7",
        "param_scheduler.0.power=2.0", "model.neck.type=FPN", "model.neck.out_channels=3",
    )  # fmt: skip
    expected = copy.deepcopy(before)
    expected["model"]["decode_head"]["channels"] = 64
    expected["train_pipeline"][1]["crop_size"] = (48, 64)  # a tuple: mmcv's transforms take no list
    expected["optim_wrapper"]["optimizer"]["lr"] = 0.5
    expected["model"]["test_cfg"]["mode"] = "slide"
    expected["optim_wrapper"]["clip_grad"] = {"max_norm": 1.0}
    expected["model"]["auxiliary_head"]["ignore_index"] = 7
    expected["param_scheduler"][0]["power"] = 2.0
    expected["model"]["neck"] = {"type": "FPN", "out_channels": 3}
    assert after == expected
    assert put() == before


def test_a_list_is_replaced_whole() -> None:
    found = put("train_pipeline=[{type:Resize,scale:[48,64]},{type:PackSegInputs}]")["train_pipeline"]
    assert found == [{"type": "Resize", "scale": (48, 64)}, {"type": "PackSegInputs"}]


def test_a_key_of_one_part_is_that_parts_alone() -> None:
    """Parts of the same values, such as norms, are not the same part."""
    before = put()
    after = put("model.decode_head.norm_cfg.requires_grad=false", "model.decode_head.loss_decode.loss_weight=2.0")
    assert after["model"]["auxiliary_head"] == before["model"]["auxiliary_head"]
    assert not after["model"]["decode_head"]["norm_cfg"]["requires_grad"]
    assert put() == before


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("modell.decode_head.channels=3", r"unknown key mmseg\.modell; nearest: model"),
        ("model.test_cfg.more.mode=slide", r"unknown key mmseg\.model\.test_cfg\.more"),
        ("model.test_cfg.mod=slide", r"unknown key mmseg\.model\.test_cfg\.mod; nearest: mode"),
        ("model.decode_head.channels.more=3", r"mmseg\.model\.decode_head\.channels\.more: .*channels is 512"),
        ("train_pipeline.9.prob=0", r"mmseg\.train_pipeline\.9: a number from 0 to 4 expected, not '9'"),
        ("train_pipeline.first.prob=0", r"mmseg\.train_pipeline\.first: a number from 0 to 4"),
    ],
)
def test_a_wrong_key_is_named(key: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as found:
        put(key)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.decode_head.channls=3", r"mmseg\.model: .*channls"),
        ("model.decod_head.channels=3", r"mmseg\.model: .*decod_head"),
        ("model.decode_head.type=UPerHed", r"mmseg\.model: .*UPerHed"),
        ("model.backbone.frosen=true", r"mmseg\.model: .*frosen"),
        ("model.decode_head.in_index=7", r"mmseg\.model: "),
    ],
)
def test_mmsegmentation_refuses_what_it_does_not_know(key: str, said: str) -> None:
    """A part with a type is built with its keys."""
    with pytest.raises(UsageError, match=said) as found:
        build_segmentor(open_pretrained("random", model="resnet10_tiny"), small(f"mmseg.{key}"), 3)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("head", ["upernet", "fcn", "linear"])
def test_the_written_file_builds_the_same_network(head: str, tmp_path: Path) -> None:
    source = open_pretrained("random", model="resnet10_tiny")
    weights = trained(source, small(f"head={head}", "steps=1", "warmup=0", "channels=8"), tmp_path / "work")
    config = Config.fromfile(tmp_path / "work" / "config.py")
    found = MODELS.build(config.model).state_dict()
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in weights.items()}
