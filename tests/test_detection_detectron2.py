"""The engine detectron2: R50-FPN and R50-C4 at 256 px, Swin-T and small networks: parity, training, resume."""

from pathlib import Path

import pytest
import torch
import yaml
from made_backbones import DETECTRON2
from test_detection import SMALL, losses

from smog import checkpoint
from smog.pretrained import open_pretrained
from smog.tasks import settings
from transfer.detection import fine_tune
from transfer.detector import build_detector

pytestmark = DETECTRON2

FULL = (
    "made_train=4", "made_val=2", "made_size=256", "sizes=[256]", "largest=256", "test_size=256", "batch=2", "images=4",
    "precise_bn=2", "precision=fp32", "log_every=1", "device=cpu",
)  # fmt: skip


def chosen(*more: str):
    return settings("coco", [*more])


def test_auto_takes_detectron2() -> None:
    assert chosen().engine == "detectron2"


@pytest.mark.parametrize("arch", ["r50_fpn", "r50_c4"])
def test_resnet50_trains_at_256_px(arch: str, tmp_path: Path) -> None:
    source = open_pretrained("random", model="resnet50")
    found = fine_tune(source, chosen(f"arch={arch}", *FULL), tmp_path / "work")
    assert found.more["engine"]["name"] == "detectron2"
    assert [row["stage"] for row in found.more["parity"]] == ["input", *[f"stage {n}" for n in (1, 2, 3, 4)] * 2]
    assert max(row["max_abs"] / row["scale"] for row in found.more["parity"]) < 1e-4
    assert all(0 <= found.metrics[name] <= 100 for name in ("box_ap", "mask_ap"))
    config = yaml.safe_load((tmp_path / "work" / "detectron2.yaml").read_text())
    assert config["INPUT"]["FORMAT"] == "RGB"
    assert config["MODEL"]["PIXEL_MEAN"] == pytest.approx([123.675, 116.28, 103.53])
    assert config["MODEL"]["PIXEL_STD"] == pytest.approx([58.395, 57.12, 57.375])
    assert config["MODEL"]["RESNETS"]["NORM"] == "SyncBN"
    assert not config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"]
    assert config["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0


def test_its_configuration_builds_the_same_network(tmp_path: Path) -> None:
    """detectron2 itself, from the file beside the result: every weight has the same name and shape."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    ours = build_detector(open_pretrained("random", model="resnet50"), chosen("arch=r50_fpn", *FULL), 10)
    ours.describe(tmp_path)
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "detectron2.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    theirs = build_model(cfg).state_dict()
    state = ours.net.state_dict()
    assert theirs.keys() == state.keys()
    assert all(theirs[name].shape == value.shape for name, value in state.items())


@pytest.mark.parametrize("arch", ["fpn", "c4"])
def test_small_networks_train_and_resume(arch: str, tmp_path: Path) -> None:
    source = open_pretrained("random", model="resnet10_small")
    small = chosen(f"arch={arch}", *SMALL, "images=24", "checkpoint_every=0")
    fine_tune(source, small, tmp_path / "whole")
    rows = losses(tmp_path / "whole")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transfer.detection.detect_all", cut)  # at the end of training
        with pytest.raises(KeyboardInterrupt):
            fine_tune(source, small, tmp_path / "cut")
    fine_tune(source, small, tmp_path / "cut")
    assert losses(tmp_path / "cut") == rows
    one, other = (checkpoint.latest(tmp_path / name)["detector"] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_swin_trains(tmp_path: Path) -> None:
    source = open_pretrained("random", model="swin_tiny_patch4_window7_224")
    more = ("images=4", "batch=2", "sizes=[64]", "test_size=64", "made_val=2")
    found = fine_tune(source, chosen("arch=swin_fpn", *SMALL, *more), tmp_path / "work")
    assert "box_ap" in found.metrics


def test_frozen_stages_stay() -> None:
    detector = build_detector(open_pretrained("random", model="resnet18"), chosen("freeze=2", *SMALL), 3)
    free = {name for name, weight in detector.named_parameters() if not weight.requires_grad}
    assert free
    assert all("stem" in name or "res2" in name for name in free)


def test_both_engines_see_the_same_maps() -> None:
    source = open_pretrained("random", model="resnet18")
    images = torch.randn(2, 3, 64, 96)
    maps = []
    for engine in ("torchvision", "detectron2"):
        detector = build_detector(source, chosen(f"engine={engine}", *SMALL), 3).eval()
        maps.append(detector.stages(images))
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
