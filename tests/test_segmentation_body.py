"""The backbone of a segmentor: its levels, its weights, what of it trains, and at which rates."""

from typing import Any

import pytest
import torch
from made_backbones import shaken
from made_trainings import MMSEG, assert_same, small
from mmengine.optim import build_optim_wrapper
from mmseg.engine.optimizers.layer_decay_optimizer_constructor import get_layer_id_for_vit
from mmseg.models.backbones import ResNet

from smog.errors import RunError, UsageError
from smog.models import build_backbone
from smog.pretrained import Pretrained, open_pretrained
from smog.schema import Backbone
from transfer.bodies import as_map
from transfer.convert import convert, load
from transfer.segmentation.body import Body
from transfer.segmentation.model import build_segmentor
from transfer.spec import spec_of

pytestmark = MMSEG

SMALL_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 12, "num_heads": 2, "img_size": 32}
SMALL_SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 2, "img_size": 64}
SMALL_RESNET = {"layers": [2, 2, 3, 2], "channels": [8, 16, 24, 32]}
NETWORKS = {
    "resnet": Backbone("resnet50", 0, SMALL_RESNET),
    "swin": Backbone("swin_tiny_patch4_window7_224", 0, SMALL_SWIN),
    "vit": Backbone("vit_small_patch16_224", 0, SMALL_VIT),
}
SIZES = {"resnet": 64, "swin": 64, "vit": 32}
RECIPES = {"resnet": (), "swin": ("recipe=swin",), "vit": ("recipe=vit", "sliding=false")}


def source_of(family: str, seed: int = 0) -> Pretrained:
    """A small network, all of whose weights are random."""
    backbone, size = NETWORKS[family], SIZES[family]
    network = shaken(build_backbone(backbone, size), seed)
    return Pretrained(network, backbone, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), {})


def body_of(backbone: Backbone, size: int, **more: Any) -> Body:
    settings = {"drop_path": 0.0, "dilated": False, "frozen": False, "normed": False, **more}
    return Body(backbone.name, backbone.stem_stride, dict(backbone.args), size, **settings)


def segmentor(family: str, *more: str) -> tuple[Any, Any, Any]:
    return build_segmentor(source_of(family), small(*RECIPES[family], *more), 5)


# ---- its levels ----


@pytest.mark.parametrize(
    ("model", "channels", "strides"),
    [
        ("resnet50", [256, 512, 1024, 2048], [4, 8, 16, 32]),
        ("resnet10_small", [32, 64, 128, 256], [2, 4, 8, 16]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768], [4, 8, 16, 32]),
        ("deit_small_patch16_224", [384] * 4, [16] * 4),
    ],
)
def test_four_levels_of_an_image_of_any_size(model: str, channels: list[int], strides: list[int]) -> None:
    """Neither square nor a multiple of patch or window: what is left over counts as a whole one."""
    source = open_pretrained("random", model=model)
    body = body_of(source.backbone, source.size).eval()
    body.fill(source.network)
    assert body.channels == channels
    with torch.no_grad():
        for height, width in ((70, 101), (64, 32)):
            expected = [(1, c, -(-height // s), -(-width // s)) for c, s in zip(channels, strides, strict=True)]
            assert [tuple(level.shape) for level in body(torch.randn(1, 3, height, width))] == expected


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_the_levels_are_timms_to_the_bit(family: str) -> None:
    source = source_of(family)
    body = body_of(NETWORKS[family], SIZES[family]).eval()
    body.fill(source.network)
    images = torch.randn(2, 3, SIZES[family], SIZES[family])
    indices = {"resnet": [1, 2, 3, 4], "vit": [3, 5, 7, 11]}[family]
    with torch.no_grad():
        expected = source.network.forward_intermediates(images, indices=indices, intermediates_only=True)
        assert all(torch.equal(one, other) for one, other in zip(body(images), expected, strict=True))


@pytest.mark.parametrize("family", NETWORKS)
def test_the_proof_is_of_every_level(family: str) -> None:
    """The rows that a training prints; a ResNet and a ViT are timm's own."""
    _, _, rows = segmentor(family)
    assert [row["stage"] for row in rows[:5]] == ["input", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert len(rows) == (5 if family == "vit" else 9)
    assert all(row["max_abs"] <= 1e-5 * row["scale"] for row in rows)
    if family != "swin":
        assert [row["max_abs"] for row in rows[1:]] == [0] * len(rows[1:])


def test_a_wrong_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = Body.fill

    def spoiled(body: Body, network: Any) -> None:
        filled(body, network)
        body.network.layer3[0].conv1.weight.data *= 1.01

    monkeypatch.setattr(Body, "fill", spoiled)
    with pytest.raises(RunError, match="stage 3 differs"):
        segmentor("resnet")


@pytest.mark.parametrize(
    ("depth", "indices"),
    [(4, [0, 1, 2, 3]), (5, [0, 1, 2, 3]), (6, [1, 2, 3, 5]), (12, [3, 5, 7, 11]), (24, [7, 11, 15, 23])],
)
def test_the_levels_of_a_vit_lie_at_thirds_and_halves(depth: int, indices: list[int]) -> None:
    body = body_of(Backbone("vit_small_patch16_224", 0, {**SMALL_VIT, "depth": depth}), 32)
    assert body.indices == indices
    assert len(set(indices)) == 4


def test_a_vit_of_three_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="3 blocks: four levels need at least 4"):
        body_of(Backbone("vit_small_patch16_224", 0, {**SMALL_VIT, "depth": 3}), 32)


# ---- dilation ----


def test_a_dilated_resnet_is_mmsegmentations_r50_d8() -> None:
    """Level by level; the first two are those of the plain network."""
    source = source_of("resnet")
    body = body_of(NETWORKS["resnet"], 64, dilated=True).eval()
    body.fill(source.network)
    layers = tuple(SMALL_RESNET["layers"])
    theirs = _OfLayers(layers, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))
    theirs.eval()  # which returns nothing
    load(theirs, convert(source.network.state_dict(), spec_of(source.network), "mmseg"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        plain = source.network.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        found, expected = body(images), theirs(images)
    assert [tuple(level.shape[2:]) for level in found] == [(16, 24), (8, 12), (8, 12), (8, 12)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert all(torch.equal(one, other) for one, other in zip(found[:2], plain[:2], strict=True))


class _OfLayers(ResNet):
    """mmsegmentation's ResNet of the widths of ``SMALL_RESNET``."""

    def __init__(self, layers: tuple[int, ...], **more: Any) -> None:
        block = ResNet.arch_settings[50][0]
        self.arch_settings = {0: (block, layers)}
        super().__init__(0, stem_channels=64, base_channels=8, contract_dilation=True, **more)

    def make_res_layer(self, **settings: Any) -> Any:
        number = len(self.res_layers)
        settings["inplanes"] = 4 * SMALL_RESNET["channels"][number - 1] if number else 64
        settings["planes"] = SMALL_RESNET["channels"][number]
        return super().make_res_layer(**settings)


@pytest.mark.parametrize(("head", "dilated"), [("fcn", True), ("upernet", False), ("linear", False)])
def test_only_an_fcn_has_a_dilated_backbone(head: str, dilated: bool) -> None:
    config, model, rows = segmentor("resnet", f"head={head}", "dilated=true")
    assert config["model"]["backbone"]["dilated"] == dilated
    assert model.backbone(torch.zeros(1, 3, 64, 64))[-1].shape[-1] == (8 if dilated else 2)
    assert [row["max_abs"] for row in rows[1:]] == [0] * 8


# ---- its weights ----


@pytest.mark.parametrize("family", NETWORKS)
def test_initialising_the_segmentor_leaves_the_weights(family: str) -> None:
    _, model, _ = segmentor(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    after = model.state_dict()
    own = [name for name in before if name.startswith("backbone.")]
    assert [name for name in own if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in before if name not in own)


@pytest.mark.parametrize("family", NETWORKS)
def test_other_shapes_are_refused_with_lists(family: str) -> None:
    """A stage more, and a stage less; nothing is loaded."""
    body = body_of(NETWORKS[family], SIZES[family])
    before = {name: value.clone() for name, value in body.state_dict().items()}
    depths = {"resnet": {"layers": [2, 2, 4, 2]}, "swin": {"depths": [2, 2, 4, 2]}, "vit": {"depth": 13}}[family]
    backbone = Backbone(NETWORKS[family].name, 0, {**NETWORKS[family].args, **depths})
    with pytest.raises(RunError, match=r"\d+ unknown: .*and \d+ more"):
        body.fill(build_backbone(backbone, SIZES[family]))
    wider = {"resnet": {"channels": [8, 16, 24, 48]}, "swin": {"embed_dim": 32}, "vit": {"embed_dim": 64}}[family]
    backbone = Backbone(NETWORKS[family].name, 0, {**NETWORKS[family].args, **wider})
    with pytest.raises(RunError, match=r"\d+ of another shape: .* instead of"):
        body.fill(build_backbone(backbone, SIZES[family]))
    assert_same(body.state_dict(), before)


def test_a_deep_stem_needs_no_conversion() -> None:
    """timm's own network takes what the converted ones can't."""
    source = open_pretrained("random", model="resnet18d")
    _, _, rows = build_segmentor(source, small(), 5)
    assert [row["max_abs"] for row in rows[1:]] == [0] * 8


def test_another_family_is_refused() -> None:
    with pytest.raises(UsageError, match="ConvNeXt: a network of this family has no recipe"):
        build_segmentor(open_pretrained("random", model="convnext_atto"), small(), 5)


@pytest.mark.parametrize("family", NETWORKS)
def test_what_is_frozen_has_no_gradient_and_stays_in_evaluation(family: str) -> None:
    _, model, _ = segmentor(family, "head=linear")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()
    assert not any(part.training for part in model.backbone.network.modules())
    assert model.decode_head.training
    levels = model.backbone(torch.randn(2, 3, 64, 64))
    assert not any(level.requires_grad for level in levels)
    assert not any(weight.requires_grad for weight in model.backbone.parameters())
    model.decode_head(levels).square().mean().backward()
    assert all(weight.grad is not None for weight in model.decode_head.norm.parameters())
    assert_same(model.backbone.state_dict(), before)


@pytest.mark.parametrize(("head", "normed"), [("linear", True), ("upernet", False)])
def test_a_linear_head_gets_what_the_last_norm_of_a_vit_gives(head: str, normed: bool) -> None:
    source, (_, model, _) = source_of("vit"), segmentor("vit", f"head={head}")
    network: Any = source.network.eval()
    images = torch.rand(2, 3, source.size, source.size)
    with torch.no_grad():
        level, tokens = model.eval().backbone(images)[-1], network.forward_features(images)
    assert torch.allclose(level, as_map(tokens, *network.patch_embed.grid_size), atol=1e-5) is normed


@pytest.mark.parametrize("family", NETWORKS)
def test_what_is_not_frozen_trains_whole(family: str) -> None:
    """But for the norm after a ViT's last block, which no level passes."""
    _, model, _ = segmentor(family)
    model.train()
    sum(level.square().mean() for level in model.backbone(torch.randn(2, 3, 64, 64))).backward()
    idle = {name for name, weight in model.backbone.named_parameters() if weight.grad is None}
    assert idle == ({"network.norm.weight", "network.norm.bias"} if family == "vit" else set())


# ---- the rates ----


def optimiser(model: Any, config: Any) -> Any:
    return build_optim_wrapper(model, dict(config["optim_wrapper"])).optimizer


def test_rates_fall_from_block_to_block_as_in_mmsegmentation() -> None:
    """By its own numbers of layers, 12 blocks and two more, the last of which is the head's. The norm after the last
    block, which no level passes, goes with that block in timm."""
    config, model, _ = segmentor("vit", "lr=1.0", "lr_factor=1.0")
    rates = {}
    for group in optimiser(model, config).param_groups:
        rates |= {id(weight): group["lr"] for weight in group["params"]}
    for name, weight in model.named_parameters():
        theirs = name.replace("backbone.network.blocks.", "backbone.layers.").replace("backbone.network", "backbone")
        expected = 0.65 ** (14 - get_layer_id_for_vit(theirs, 14) - 1) * (0.65 if ".network.norm." in name else 1)
        assert rates[id(weight)] == pytest.approx(expected, rel=1e-12), name
    assert len(set(rates.values())) == 14


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("head", ["upernet", "fcn", "linear"])
def test_every_trained_weight_is_in_one_group(family: str, head: str) -> None:
    config, model, _ = segmentor(family, f"head={head}")
    groups = optimiser(model, config).param_groups
    held = [id(weight) for group in groups for weight in group["params"] if weight.requires_grad]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in model.parameters() if weight.requires_grad}


def undecayed(family: str, *more: str) -> set[str]:
    config, model, _ = segmentor(family, *more)
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = optimiser(model, config).param_groups
    return {names[id(weight)] for group in groups if not group["weight_decay"] for weight in group["params"]}


def test_what_a_vit_does_not_decay() -> None:
    """Vectors, positions and the class token; mmsegmentation means the latter too, and looks for the wrong names."""
    _, model, _ = segmentor("vit")
    found = undecayed("vit")
    assert found == {
        name
        for name, weight in model.named_parameters()
        if weight.ndim == 1 or name.endswith((".pos_embed", ".cls_token"))
    }
    assert {f"backbone.network.{name}" for name in ("pos_embed", "cls_token", "blocks.0.norm1.weight")} <= found


def test_what_a_swin_does_not_decay() -> None:
    """Norms and tables of positions alone; biases of layers are, in its authors' recipe for segmentation here."""
    found = undecayed("swin")
    assert found == {name for name in names_of("swin") if "norm" in name or "relative_position_bias_table" in name}
    assert len(found) > 40


def test_a_resnet_decays_all() -> None:
    assert undecayed("resnet") == set()


def names_of(family: str) -> list[str]:
    return [name for name, _ in segmentor(family)[1].named_parameters()]
