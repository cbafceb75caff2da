import json
import re
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from made_backbones import BACKBONES, KEEPS_CHANNELS, MEAN, STD, network, shaken
from torch import nn

from smog.config import compose, options
from smog.errors import RunError, UsageError
from smog.models import build_backbone
from transfer.bodies import bodies_of
from transfer.bodies import torchvision as bodies
from transfer.convert import convert, load, main, transferred
from transfer.names import TABLES, fresh, rules, unfolded
from transfer.spec import spec_of

FAMILY = {"resnet": "wide", "swin": "swin", "vit": "vit"}


@pytest.mark.parametrize("name", BACKBONES)
def test_torchvision_gives_the_same_maps(name):
    source = network(name)
    _, state, rows = transferred(source, "torchvision", 64, MEAN, STD)
    assert all(row["max_abs"] <= 1e-5 * row["scale"] for row in rows)
    assert len(rows) == (3 if name == "vit" else 8)  # blocks; or four stages in two sizes
    if name != "swin":  # whose index of positions timm does not keep
        assert len(state) == len(source.state_dict())


def test_torchvision_takes_a_stage_that_strides_without_new_channels():
    transferred(network(KEEPS_CHANNELS), "torchvision", 32, MEAN, STD)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("resnext50_32x4d", "resnext50_32x4d"),
        ("wide_resnet50_2", "wide_resnet50_2"),
        ("swin_tiny_patch4_window7_224", "swin_t"),
        ("vit_base_patch16_224", "vit_b_16"),
    ],
)
def test_bodies_have_the_keys_of_torchvisions_own_models(ours, theirs):
    with torch.device("meta"):
        body = bodies.build(spec_of(timm.create_model(ours)))
        own = getattr(torchvision.models, theirs)()
    shapes = {name: values.shape for name, values in own.state_dict().items()}
    head = {name for name in shapes if name.startswith(("fc.", "head.", "heads."))}
    assert len(head) == 2
    assert {name: values.shape for name, values in body.state_dict().items()} == {
        name: shape for name, shape in shapes.items() if name not in head
    }


def test_torchvisions_own_model_computes_the_same():
    """The converted weights in torchvision's class, not in our assembly of its blocks."""
    source = shaken(timm.create_model("resnet18", num_classes=0))
    own = torchvision.models.resnet18()
    own.fc = nn.Identity()
    load(own, convert(source.state_dict(), spec_of(source), "torchvision"))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(own.eval()(images), source(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family, target", TABLES)  # noqa: PT006
def test_tables_take_every_key_once_and_have_no_line_too_many(family, target):
    source = network(FAMILY[family])
    spec, state = spec_of(source), source.state_dict()
    table = rules(spec, target)
    for name in state:
        assert sum(bool(re.fullmatch(rule.ours, name)) for rule in table) == 1, name
    for rule in table:
        stage = re.match(r"layers?\\?\.?0", rule.ours)
        assert stage or any(re.fullmatch(rule.ours, name) for name in state), rule
    left_out = {name for name in state for rule in table if not rule.theirs and re.fullmatch(rule.ours, name)}
    assert left_out <= {"cls_token", "norm.weight", "norm.bias"}


def test_names_of_detectron2():
    """By hand, since detectron2 is not everywhere."""
    found = {}
    for name in ("bottleneck", "swin", "vit"):
        source = network(name)
        marked = {
            key: torch.full(values.shape, number) for number, (key, values) in enumerate(source.state_dict().items())
        }
        place = {float(values.flatten()[0]): key for key, values in marked.items()}
        for key, values in convert(marked, spec_of(source), "detectron2").items():
            found[key] = place.get(float(values.flatten()[0])) if "index" not in key else None
    assert found["stem.conv1.norm.running_mean"] == "bn1.running_mean"
    assert found["res2.0.shortcut.weight"] == "layer1.0.downsample.0.weight"
    assert found["res5.0.shortcut.norm.bias"] == "layer4.0.downsample.1.bias"
    assert found["res3.1.conv3.norm.weight"] == "layer2.1.bn3.weight"
    assert found["layers.0.downsample.reduction.weight"] == "layers.1.downsample.reduction.weight"
    assert found["layers.2.blocks.1.mlp.fc2.bias"] == "layers.2.blocks.1.mlp.fc2.bias"
    assert found["blocks.2.attn.qkv.bias"] == "blocks.2.attn.qkv.bias"


def test_unfolded_is_the_order_of_unfold():
    pixels = torch.arange(2 * 2 * 3).float().view(1, 3, 2, 2)  # b, c, h, w
    ours = pixels.permute(0, 3, 2, 1).flatten(1)  # timm: column, row, channel
    assert torch.equal(unfolded(ours), nn.functional.unfold(pixels, 2)[:, :, 0])


def test_a_key_that_is_not_the_backbones_is_refused():
    source = network("vit")
    state = source.state_dict() | {f"projector.{number}.weight": torch.zeros(1) for number in range(6)}
    message = r"6 not part of the backbone: projector.0.weight, projector.1.weight, .* and 2 more"
    with pytest.raises(RunError, match=message):
        convert(state, spec_of(source), "torchvision")


def test_loading_lists_what_does_not_fit_and_loads_nothing():
    source = network("bottleneck")
    state = convert(source.state_dict(), spec_of(source), "torchvision")
    body = bodies.build(spec_of(source))
    before = {name: values.clone() for name, values in body.state_dict().items()}
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["layer9.0.conv1.weight"] = state.pop("layer3.0.conv1.weight")
    with pytest.raises(RunError) as caught:
        load(body, state)
    assert "1 missing: layer3.0.conv1.weight" in str(caught.value)
    assert "1 unknown: layer9.0.conv1.weight" in str(caught.value)
    assert "conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)" in str(caught.value)
    assert all(torch.equal(values, before[name]) for name, values in body.state_dict().items())


def test_only_what_is_declared_may_stay_fresh():
    source = network("swin")
    assert fresh(spec_of(source), "torchvision") == ()
    state = convert(source.state_dict(), spec_of(source), "torchvision")
    del state["norm.weight"], state["norm.bias"]
    body = bodies.build(spec_of(source))
    with pytest.raises(RunError, match=r"2 missing: norm.weight, norm.bias"):
        load(body, state, fresh=[r"norm\d\.(weight|bias)"])
    load(body, state, fresh=[r"norm\.(weight|bias)"])
    assert torch.equal(body.norm.weight, torch.ones_like(body.norm.weight))


def test_parts_of_a_torchvision_body():
    source = network("bottleneck")
    body, _, _ = transferred(source, "torchvision", 64, MEAN, STD)
    images = torch.randn(1, 3, 64, 64)
    whole = bodies.stages(body, images)
    assert [part.shape[1] for part in whole] == [32, 64, 96, 128]
    assert len(bodies.stem_and_stages(body)) == 5
    last = bodies.take_last_stage(body)
    trunk = bodies.stages(body, images)
    assert len(trunk) == 3
    assert torch.equal(last(trunk[-1]), whole[-1])
    assert [name for name, _ in body.named_children()][-1] == "layer3"
    bodies.set_drop_path(body, 0.0)
    with pytest.raises(UsageError, match="no stochastic depth"):
        bodies.set_drop_path(body, 0.1)


def test_stochastic_depth_grows_with_the_blocks():
    body = bodies.build(spec_of(network("swin")))
    bodies.set_drop_path(body, 0.7)
    found = [part.p for part in body.modules() if isinstance(part, torchvision.ops.StochasticDepth)]
    assert found == pytest.approx([place / 10 for place in range(8)])


@pytest.mark.parametrize("name", ["bottleneck", "swin"])
def test_every_trained_parameter_of_a_torchvision_body_gets_a_gradient(name):
    """What gets none would stop DistributedDataParallel."""
    body = bodies.build(spec_of(network(name)))
    sum(one.square().mean() for one in bodies.stages(body, torch.randn(2, 3, 64, 64))).backward()
    assert [key for key, one in body.named_parameters() if one.requires_grad and one.grad is None] == []


def test_the_backbones_of_the_suite():
    """Every file of conf/backbone converts, or is refused because of its family."""
    refused = set()
    for name in options("backbone"):
        config = compose([f"backbone={name}", "recipe=smoke"]).backbone
        with torch.device("meta"):
            made = build_backbone(config, 32 if name.startswith("vit") else 224)
            try:
                bodies.build(spec_of(made))
            except UsageError:
                refused.add(name)
    assert refused == {"convnext_small", "pixels"}


@pytest.mark.parametrize("target", ["detectron2", "mmseg"])
def test_a_framework_that_is_not_installed(monkeypatch, target):
    monkeypatch.delitem(sys.modules, f"transfer.bodies.{target}", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # importing it raises now
    monkeypatch.setitem(sys.modules, "mmcv", None)
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)  # of another test
    with pytest.raises(UsageError, match=rf"{target} is not installed \(no module (detectron2|mmcv).*\): (http|pip)"):
        bodies_of(target)


def test_frameworks_that_are_not_there():
    with pytest.raises(UsageError, match="'detectron': no such framework; nearest: detectron2"):
        bodies_of("detectron")
    with pytest.raises(UsageError, match="'mmdet': no such framework"):
        rules(spec_of(network("vit")), "mmdet")


# ---- the command ----


def test_the_command_writes_and_proves(tmp_path, capsys):
    out = tmp_path / "body.safetensors"
    arguments = ["--ckpt", "random", "--model", "resnet10_tiny", "--to", "torchvision", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    state = safetensors.torch.load_file(out)
    assert result["keys"] == len(state)
    assert len(result["parity"]) == 8
    assert len(printed) == 8 + 2
    assert result["mean"] == list(MEAN)
    assert state["layer1.0.conv1.weight"].shape == (8, 8, 3, 3)
    assert main([*arguments[:-1], str(tmp_path / "body.pth")]) == 0
    read = torch.load(tmp_path / "body.pth", weights_only=True)
    assert all(torch.equal(read[name], values) for name, values in state.items())


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    common = ["--ckpt", "random", "--to", "torchvision", "--out"]
    assert main([*common, str(tmp_path / "a.pkl"), "--model", "resnet18"]) == 2
    assert "ends in .safetensors or .pth" in capsys.readouterr().err
    assert main([*common, str(tmp_path / "a.pth"), "--model", "convnext_small"]) == 2
    assert "does not convert" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_does_not_wait_for_torch(repository):
    code = "import sys; import transfer.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0
