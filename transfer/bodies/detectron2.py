"""Backbones of detectron2's blocks (its modeling/backbone), under its names. Nothing is frozen."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone import Backbone, ResNet, SwinTransformer, ViT
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn

from smog.errors import UsageError
from transfer.bodies import as_map, taps
from transfer.spec import Resnet, Spec, Stem, Swin, Vit

STAGES = ("res2", "res3", "res4", "res5")


def build(spec: Spec, last: str = "res5", norm: str = "BN", drop_path: float = 0.0) -> Backbone:
    """Return the backbone, freshly initialised; its ``output_shape()`` has the channels and the stride of every map.

    A ResNet gives the maps of its stages res2 to ``last`` and has none behind it (res4 for C4), with ``norm`` of
    detectron2's norms (BN, SyncBN, ...); a Swin gives p0 to p3, normalised; a ViT last_feat, without class token.
    ``drop_path`` is the stochastic depth of the last block of a Swin or ViT. Raises UsageError for what detectron2
    can't express.
    """
    if isinstance(spec, Resnet):
        if drop_path:
            raise UsageError(f"drop_path={drop_path:g}: detectron2's ResNet has no stochastic depth; take 0")
        names = STAGES[: STAGES.index(last) + 1]
        built = [_stage(spec, number, norm) for number in range(len(names))]
        return ResNet(_stem(spec.stem, norm), built, out_features=list(names), freeze_at=0)
    return _swin(spec, drop_path) if isinstance(spec, Swin) else _vit(spec, drop_path)


def last_stage(spec: Resnet, norm: str = "BN") -> nn.Sequential:
    """Return res5 alone, freshly initialised: the head of the regions in a C4 detector."""
    return nn.Sequential(*_stage(spec, len(STAGES) - 1, norm))


def stages(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the maps of the stages (a Swin's before its output norms), or of a ViT's blocks: [b, c, h, w] each."""
    if isinstance(body, SwinTransformer):
        return taps(body, list(body.layers), images, lambda given: as_map(given[0], given[1], given[2]))
    if isinstance(body, ViT):
        return taps(body, list(body.blocks), images, lambda tokens: tokens.permute(0, 3, 1, 2).contiguous())
    return list(body(images).values())


class SmallStem(CNNBlockBase):
    """A 3x3 convolution without pooling (SimCLR, appendix B.9), with the keys of BasicStem: images [b, 3, h, w] in."""

    def __init__(self, stem: Stem, norm: str) -> None:
        super().__init__(3, stem.width, stem.stride)
        after = get_norm(norm, stem.width)
        self.conv1 = Conv2d(3, stem.width, kernel_size=3, stride=stem.stride, padding=1, bias=False, norm=after)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as BasicStem

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [b, width, h / stride, w / stride]."""
        return F.relu_(self.conv1(images))


def _stem(stem: Stem, norm: str) -> CNNBlockBase:
    return BasicStem(3, stem.width, norm) if stem.pooled else SmallStem(stem, norm)


def _stage(spec: Resnet, number: int, norm: str) -> list[CNNBlockBase]:
    inputs = spec.outputs[number - 1] if number else spec.stem.width
    outputs, strides = spec.outputs[number], [2 if number else 1] + [1] * (spec.layers[number] - 1)
    if strides[0] > 1 and inputs == outputs:
        raise UsageError(
            f"layer{number + 1} keeps {inputs} channels at stride 2, and detectron2's blocks have a convolution in the "
            "shortcut only where channels change; torchvision's can"
        )
    kinds = {"in_channels": inputs, "out_channels": outputs, "stride_per_block": strides, "norm": norm}
    if spec.block == "basic":
        return ResNet.make_stage(BasicBlock, spec.layers[number], **kinds)
    # the stride in the 3x3, unlike detectron2's default: that of timm, torchvision and all who pretrain with them
    kinds |= {"bottleneck_channels": spec.widths[number], "num_groups": spec.groups, "stride_in_1x1": False}
    return ResNet.make_stage(BottleneckBlock, spec.layers[number], **kinds)


def _swin(spec: Swin, drop_path: float) -> Backbone:
    if spec.patch != 4:
        raise UsageError(f"patches of {spec.patch} px: the strides of detectron2's Swin hold for 4")
    body = SwinTransformer(
        patch_size=spec.patch,
        embed_dim=spec.dim,
        depths=spec.depths,
        num_heads=spec.heads,
        window_size=spec.window,
        mlp_ratio=spec.mlp_ratio,
        drop_path_rate=drop_path,
    )
    for layer, shifted in zip(body.layers, spec.shifted, strict=True):
        for block in layer.blocks if not shifted else ():
            block.shift_size = 0  # as pretrained: a window covered the whole map
    return body


def _vit(spec: Vit, drop_path: float) -> Backbone:
    if spec.hidden % spec.dim:
        raise UsageError(f"an MLP of {spec.hidden} channels for {spec.dim}: a whole multiple is expected")
    return ViT(
        img_size=spec.image,
        patch_size=spec.patch,
        embed_dim=spec.dim,
        depth=spec.depth,
        num_heads=spec.heads,
        mlp_ratio=spec.hidden / spec.dim,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=spec.eps),
        pretrain_img_size=spec.image,
        pretrain_use_cls_token=spec.token,
    )
