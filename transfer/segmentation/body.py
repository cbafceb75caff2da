"""The backbone of a segmentor: the timm network itself, or for a Swin mmsegmentation's own with its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.models.backbones import SwinTransformer
from mmseg.registry import MODELS
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smog.errors import UsageError
from smog.models import build_backbone
from smog.schema import Backbone
from transfer.bodies import mmseg
from transfer.convert import convert, load
from transfer.names import fresh
from transfer.spec import family_of, spec_of

LEVELS = 4


@MODELS.register_module()
class Body(BaseModule):
    """Images [b, 3, h, w] of any size to four levels [b, c, h', w'].

    Of a ResNet and a ViT the timm network itself is used: nothing is converted. Of a Swin mmsegmentation's own blocks
    are: timm's pad to whole windows in another order, and differ from the published code at most sizes (see
    transfer/parity.py); they come with a norm after each level, as Swin's segmentors do. ``init_weights`` does nothing,
    so that mmengine can't undo the weights. ``normed``: a ViT's last norm is applied to its levels, as linear heads
    take them (DINOv2); else they come as the blocks give them. Raises UsageError for another family.
    """

    def __init__(
        self,
        name: str,
        stem_stride: int,
        args: dict[str, Any],
        size: int,
        drop_path: float,
        dilated: bool,
        frozen: bool,
        normed: bool,
    ) -> None:
        super().__init__()
        backbone = Backbone(name, stem_stride, dict(args))
        self.family, self.frozen = family_of(_bare(backbone, size)), frozen
        if self.family == "swin":
            self.network = mmseg.build(spec_of(_bare(backbone, size)), drop_path)
        else:
            more: dict[str, Any] = {"output_stride": 8} if dilated else {}
            if self.family == "vit":
                more = {"dynamic_img_size": True, "dynamic_img_pad": True, "drop_path_rate": drop_path}
            self.network = build_backbone(replace(backbone, args={**backbone.args, **more}), size)
        self.indices = levels_of(self.network)
        self.normed = {"norm": True} if normed and self.family == "vit" else {}
        if frozen:
            self.network.requires_grad_(False)

    @property
    def channels(self) -> list[int]:
        """Return the channels of each level."""
        network: Any = self.network
        if isinstance(network, SwinTransformer):
            return list(network.num_features)
        if isinstance(network, VisionTransformer):
            return [network.embed_dim] * LEVELS
        return [network.feature_info[index]["num_chs"] for index in self.indices]

    def init_weights(self) -> None:
        """Leave the weights as they are."""

    def fill(self, source: nn.Module) -> None:
        """Take the weights of a timm network of the same shape, every one. Raises RunError that lists what differs."""
        if isinstance(self.network, SwinTransformer):
            spec = spec_of(source)
            load(self.network, convert(source.state_dict(), spec, "mmseg"), fresh(spec, "mmseg"))
        else:
            load(self.network, source.state_dict())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four levels."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if isinstance(self.network, SwinTransformer):
                return list(self.network(images))
            return self._levels(images, **self.normed)

    def _levels(self, images: Tensor, **settings: Any) -> list[Tensor]:
        network: Any = self.network
        return network.forward_intermediates(images, indices=self.indices, intermediates_only=True, **settings)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return what the source's maps are compared with: the levels before any norm behind them."""
        if isinstance(self.network, SwinTransformer):
            return mmseg.stages(self.network, images)
        return self._levels(images)

    def train(self, mode: bool = True) -> Body:
        """Set the mode; a frozen network stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def levels_of(network: nn.Module) -> list[int]:
    """Return which maps of ``forward_intermediates`` are the levels: the stages, or of a ViT the blocks after a third,
    a half, two thirds and all of them, 3, 5, 7 and 11 of 12 from 0 (BEiT, MAE)."""
    if isinstance(network, VisionTransformer):
        depth = len(network.blocks)
        if depth < LEVELS:
            raise UsageError(f"a vision transformer of {depth} blocks: four levels need at least {LEVELS}")
        return sorted({depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1}) if depth >= 6 else [0, 1, 2, 3]
    return [1, 2, 3, 4] if isinstance(network, ResNet) else [0, 1, 2, 3]


def _bare(backbone: Backbone, size: int) -> nn.Module:
    """Return the network without weights."""
    with torch.device("meta"):
        return build_backbone(backbone, size)
