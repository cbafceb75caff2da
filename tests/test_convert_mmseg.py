import importlib.util

import pytest
import torch
from made_backbones import BACKBONES, KEEPS_CHANNELS, MEAN, STD, network

from smog.errors import RunError, UsageError
from transfer.convert import convert, main, transferred
from transfer.names import unfolded
from transfer.spec import spec_of

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmsegmentation is not installed"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),  # of mmcv's imports, as the next
    pytest.mark.filterwarnings("ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning"),
]


@pytest.fixture
def bodies():
    from transfer.bodies import mmseg

    return mmseg


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "wide"])
def test_mmsegmentation_gives_the_same_maps(name):
    body, state, rows = transferred(network(name), "mmseg", 64, MEAN, STD)
    assert all(row["max_abs"] <= 1e-5 * row["scale"] for row in rows)
    assert len(rows) == (3 if name == "vit" else 8)
    free = {key for key in body.state_dict() if key not in state}
    assert free == ({f"norm{n}.{part}" for n in range(4) for part in ("weight", "bias")} if name == "swin" else set())
    assert all(one.requires_grad for one in body.parameters())


def test_a_stage_may_stride_without_new_channels():
    transferred(network(KEEPS_CHANNELS), "mmseg", 32, MEAN, STD)


def test_wide_blocks_are_refused(bodies):
    with pytest.raises(UsageError, match="base width 128: mmsegmentation has no wide blocks"):
        bodies.build(spec_of(network("wide")))


def test_patches_merged_in_timms_order_are_found(bodies):
    source = network("swin")
    spec = spec_of(source)
    body, state, _ = transferred(source, "mmseg", 64, MEAN, STD)
    weight = body.stages[1].downsample.reduction.weight
    assert torch.equal(weight, unfolded(source.layers[2].downsample.reduction.weight))
    weight.data = source.layers[2].downsample.reduction.weight.data
    from transfer.parity import parity

    with pytest.raises(RunError, match="stage 3 differs"):
        parity(source, spec, lambda images: bodies.stages(body, images), 64, MEAN, STD)
    assert state.keys() == convert(source.state_dict(), spec, "mmseg").keys()


def test_the_index_of_positions_is_mmsegmentations_own(bodies):
    source = network("swin")
    own = bodies.build(spec_of(source)).state_dict()
    made = convert(source.state_dict(), spec_of(source), "mmseg")
    names = [name for name in made if name.endswith("relative_position_index")]
    assert len(names) == 8
    assert all(torch.equal(made[name], own[name]) for name in names)


def test_the_backbone_trains(bodies):
    body, _, _ = transferred(network("swin"), "mmseg", 64, MEAN, STD)
    body.train()
    sum(maps.square().mean() for maps in body(torch.randn(1, 3, 64, 64))).backward()
    assert all(one.grad is not None for one in body.parameters())


def test_what_the_stand_in_lacks_is_said_when_it_is_called(bodies):
    import sys

    operators = sys.modules["mmcv._ext"]
    if not isinstance(operators, bodies._Operators):
        pytest.skip("mmcv has its operators here")
    with pytest.raises(RunError, match=r"mmcv's compiled operator nms is missing: .* install mmcv"):
        operators.nms(1)


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "body.pth")
    assert main(["--ckpt", "random", "--model", "vit_small", "--to", "mmseg", "--out", out]) == 0
    assert "stage 4" in capsys.readouterr().out
    assert "cls_token" in torch.load(out, weights_only=True)
