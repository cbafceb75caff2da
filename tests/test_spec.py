import pytest
import timm
import torch
from torch import nn

from smog.errors import UsageError
from smog.models import build_backbone
from smog.schema import Backbone
from transfer.spec import Resnet, Stem, Swin, Vit, spec_of


def made(name, **args):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **args)


STEM = Stem(7, 2, True, 64)
PLANES = (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (made("resnet18"), Resnet("basic", (2, 2, 2, 2), PLANES, 1, 64, STEM)),
        (made("resnet50", drop_path_rate=0.1), Resnet("bottleneck", (3, 4, 6, 3), PLANES, 1, 64, STEM)),
        (made("resnext50_32x4d"), Resnet("bottleneck", (3, 4, 6, 3), PLANES, 32, 4, STEM)),
        (made("wide_resnet50_2"), Resnet("bottleneck", (3, 4, 6, 3), PLANES, 1, 128, STEM)),
        (
            made("swin_tiny_patch4_window7_224"),
            Swin(4, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, (True, True, True, False), 4.0),
        ),
        (
            made("swin_tiny_patch4_window7_224", always_partition=True),
            Swin(4, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, (True, True, True, True), 4.0),
        ),
        (made("deit_small_patch16_224"), Vit(224, 16, 384, 12, 6, 1536, True, 1e-6)),
        (
            made("vit_small_patch16_224", class_token=False, global_pool="avg", fc_norm=False),
            Vit(224, 16, 384, 12, 6, 1536, False, 1e-6),
        ),
    ],
)
def test_what_a_network_consists_of(network, spec):
    assert spec_of(network) == spec


def test_a_small_stem():
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_type": "deep", "stem_width": 4}
    spec = spec_of(build_backbone(Backbone("resnet18", 2, args), 32))
    assert spec == Resnet("basic", (1, 1, 1, 1), (8, 8, 16, 16), 1, 64, Stem(3, 2, False, 8))


def test_channels_follow_from_the_planes():
    spec = spec_of(made("resnext50_32x4d"))
    assert spec.outputs == (256, 512, 1024, 2048)
    assert spec.widths == (128, 256, 512, 1024)


RESNETS = [
    ("resnet50c", {}, r"a stem of conv1 \(Conv2d, BatchNorm2d"),
    ("resnet50d", {}, r"downsample.0 \(AvgPool2d\)"),
    ("resnetaa50", {}, r"maxpool \(AvgPool2d\)"),
    ("resnetblur50", {}, r"BlurPool2d"),
    ("seresnet50", {}, r"layer1.0.se.gate"),
    ("resnet50_gn", {}, r"bn1 \(GroupNorm\), .* and 50 more"),
    ("resnet18", {"act_layer": "gelu"}, r"act1 \(GELU\)"),
    ("resnet18", {"output_stride": 16}, r"layer4.0"),
    ("resnet18", {"drop_block_rate": 0.1}, r"DropBlock2d"),
    ("resnet18", {"replace_stem_pool": True}, r"maxpool"),
    ("resnet18", {"block_reduce_first": 2}, r"layer1.0 of another shape"),
    ("resnet50", {"down_kernel_size": 3}, r"layer2.0.downsample.0"),
    ("resnetv2_50", {}, r"ResNetV2: a network of this family"),
    ("convnext_atto", {}, r"ConvNeXt: a network of this family"),
]
TRANSFORMERS = [
    ("swinv2_tiny_window8_256", {}, r"SwinTransformerV2: a network of this family"),
    ("swin_tiny_patch4_window7_224", {"img_size": 64}, r"windows of several sizes"),
    ("swin_tiny_patch4_window7_224", {"qkv_bias": False}, r"attn.qkv \(.*and"),
    ("swin_tiny_patch4_window7_224", {"mlp_ratio": (4, 4, 4, 2)}, r"layers.3.blocks.0.mlp.fc1"),
    ("swin_tiny_patch4_window7_224", {"head_dim": 16}, r"attn.qkv"),
    ("vit_small_patch14_dinov2", {}, r"blocks.0.ls1 \(LayerScale\), .* and 21 more"),
    ("vit_small_patch16_224", {"reg_tokens": 4}, r"register tokens"),
    ("vit_small_patch16_224", {"pos_embed": "none"}, r"no position embedding"),
    ("vit_small_patch16_224", {"no_embed_class": True}, r"no_embed_class"),
    ("vit_small_patch16_224", {"pre_norm": True}, r"norm_pre"),
    ("vit_small_patch16_224", {"global_pool": "avg"}, r"fc_norm"),
    ("vit_small_patch16_224", {"img_size": (224, 112)}, r"not square"),
    ("vit_small_patch16_224", {"dynamic_img_pad": True}, r"dynamic_img_pad"),
    ("vit_small_patch16_224", {"qk_norm": True}, r"blocks.0.attn.q_norm"),
    ("vit_small_patch16_224", {"qkv_bias": False}, r"blocks.0 without bias"),
    ("vit_small_patch16_224", {"scale_mlp_norm": True}, r"blocks.0.mlp.norm"),
    ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}, r"GELUTanh"),
    ("vit_small_patch16_224", {"norm_layer": "rmsnorm"}, r"RmsNorm"),
    ("deit_small_distilled_patch16_224", {}, r"VisionTransformerDistilled: a network of this family"),
]


@pytest.mark.parametrize(("name", "args", "message"), RESNETS + TRANSFORMERS)
def test_what_others_can_not_express_is_refused_by_name(name, args, message):
    with pytest.raises(UsageError, match=message) as caught:
        spec_of(made(name, **args))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net.layer2[0].conv2, "stride", (1, 1)), "layer2.0.conv2"),
        (lambda net: setattr(net.layer2[0].conv1, "stride", (2, 2)), "layer2.0.conv1"),
        (lambda net: setattr(net.conv1, "padding", (2, 2)), "conv1"),
        (lambda net: setattr(net.maxpool, "ceil_mode", True), "maxpool"),
        (lambda net: setattr(net, "maxpool", nn.Identity()), "and maxpool"),
        (lambda net: setattr(net.bn1, "eps", 1e-3), "bn1"),
        (lambda net: setattr(net.layer1[1], "downsample", nn.Sequential(nn.Identity())), "layer1.1 of another shape"),
    ],
)
def test_a_network_with_one_part_changed_is_refused(change, message):
    network = made("resnet50")
    change(network)
    with pytest.raises(UsageError, match=message):
        spec_of(network)


def test_what_is_no_timm_network_is_refused():
    with pytest.raises(UsageError, match="Pixels: a network of this family"):
        spec_of(build_backbone(Backbone("pixels", 0, {}), 8))
