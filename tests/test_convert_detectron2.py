import pytest
import torch
from made_backbones import BACKBONES, DETECTRON2, KEEPS_CHANNELS, MEAN, STD, network
from torch import nn

from smog.errors import RunError, UsageError
from transfer.convert import convert, load, main, transferred, write
from transfer.names import fresh
from transfer.spec import spec_of

pytestmark = DETECTRON2


@pytest.fixture
def bodies():
    from transfer.bodies import detectron2

    return detectron2


@pytest.mark.parametrize("name", BACKBONES)
def test_detectron2_gives_the_same_maps(name):
    source = network(name)
    body, state, rows = transferred(source, "detectron2", 64, MEAN, STD)
    assert all(row["max_abs"] <= 1e-5 * row["scale"] for row in rows)
    assert len(rows) == (3 if name == "vit" else 8)
    free = {key for key in body.state_dict() if key not in state}
    assert free == ({f"norm{n}.{part}" for n in range(4) for part in ("weight", "bias")} if name == "swin" else set())
    assert all(one.requires_grad for one in body.parameters())


def test_a_stage_that_strides_without_new_channels_is_refused(bodies):
    with pytest.raises(UsageError, match="layer2 keeps 8 channels at stride 2"):
        bodies.build(spec_of(network(KEEPS_CHANNELS)))


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("bottleneck", [4, 8, 16, 32]),
        ("basic, small stem", [1, 2, 4, 8]),
        ("basic, small stem of stride 2", [2, 4, 8, 16]),
    ],
)
def test_output_shapes_are_true(bodies, name, strides):
    """detectron2 places anchors and pools regions by them."""
    body = bodies.build(spec_of(network(name)))
    images = torch.zeros(1, 3, 64, 96)
    shapes = body.output_shape()
    assert [shapes[key].stride for key in ("res2", "res3", "res4", "res5")] == strides
    for key, maps in body.eval()(images).items():
        assert maps.shape == (1, shapes[key].channels, 64 // shapes[key].stride, 96 // shapes[key].stride)


def test_c4_takes_the_network_in_two_parts(bodies):
    source = network("bottleneck")
    spec = spec_of(source)
    state = convert(source.state_dict(), spec, "detectron2")
    trunk, head = bodies.build(spec, last="res4"), bodies.last_stage(spec)
    own = {name.removeprefix("res5."): values for name, values in state.items() if name.startswith("res5.")}
    load(head, own)
    load(trunk, {name: values for name, values in state.items() if not name.startswith("res5.")})
    assert list(trunk.output_shape()) == ["res2", "res3", "res4"]
    images = torch.randn(1, 3, 64, 64)
    whole, _, _ = transferred(source, "detectron2", 64, MEAN, STD)
    with torch.no_grad():
        maps = bodies.stages(trunk.eval(), images)
        assert torch.equal(head.eval()(maps[-1]), whole(images)["res5"])


def test_another_norm_keeps_the_names(bodies):
    source = network("bottleneck")
    spec = spec_of(source)
    body = bodies.build(spec, norm="SyncBN")
    assert not any(type(part) is nn.BatchNorm2d for part in body.modules())
    load(body, convert(source.state_dict(), spec, "detectron2"))


def test_stride_in_the_1x1_is_not_the_default(bodies):
    body = bodies.build(spec_of(network("bottleneck")))
    assert body.res3[0].conv1.stride == (1, 1)
    assert body.res3[0].conv2.stride == (2, 2)


def test_output_norms_of_a_swin_start_as_the_identity(bodies):
    source = network("swin")
    spec = spec_of(source)
    body, state = bodies.build(spec), convert(source.state_dict(), spec, "detectron2")
    with pytest.raises(RunError, match=r"8 missing: norm0.weight"):
        load(body, state)
    load(body, state, fresh(spec, "detectron2"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain, normed = bodies.stages(body.eval(), images), body(images)
    for one, other in zip(plain, normed.values(), strict=True):
        wanted = nn.functional.layer_norm(one.permute(0, 2, 3, 1), one.shape[1:2]).permute(0, 3, 1, 2)
        assert torch.allclose(other, wanted, atol=1e-5)


def test_stochastic_depth_is_set_where_there_is_one(bodies):
    body = bodies.build(spec_of(network("swin")), drop_path=0.2)
    assert body.layers[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.2)
    with pytest.raises(UsageError, match="no stochastic depth"):
        bodies.build(spec_of(network("basic")), drop_path=0.2)


def test_detectron2s_checkpointer_reads_the_file(bodies, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    source = network("bottleneck")
    _, state, _ = transferred(source, "detectron2", 64, MEAN, STD)
    write(tmp_path / "body.pth", state, "detectron2")
    body = bodies.build(spec_of(source))
    found = DetectionCheckpointer(body).load(str(tmp_path / "body.pth"))
    assert "matching_heuristics" not in found
    assert all(torch.equal(values, state[name]) for name, values in body.state_dict().items())


def test_the_command(tmp_path, capsys):
    arguments = ["--ckpt", "random", "--model", "resnet10_small", "--to", "detectron2", "--out"]
    assert main([*arguments, str(tmp_path / "body.pth")]) == 0
    assert "stage 4" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "body.safetensors")]) == 2
    assert "for detectron2 a file that ends in .pth" in capsys.readouterr().err
