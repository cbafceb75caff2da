"""Backbones of mmsegmentation's blocks, under its names. Nothing is frozen; of ResNet the plain stem, not that of V1c.

mmcv-lite, the mmcv that installs everywhere, lacks compiled operators, which mmsegmentation imports whether it needs
them or not; none of these backbones does. A stand-in for them lets it be imported: whoever calls one learns what is
missing.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from smog.errors import RunError, UsageError
from transfer.bodies import as_map, taps
from transfer.spec import Resnet, Spec, Swin, Vit


class _Operators(ModuleType):
    """Stands in for mmcv's compiled operators."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise RunError(f"mmcv's compiled operator {name} is missing: mmcv-lite has none; install mmcv")

        return missing


if importlib.util.find_spec("mmcv._ext") is None:
    sys.modules["mmcv._ext"] = _Operators("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)

from mmseg.models.backbones import ResNet, SwinTransformer, VisionTransformer  # noqa: E402 (after the stand-in)
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck  # noqa: E402
from mmseg.models.backbones.resnext import Bottleneck as GroupedBottleneck  # noqa: E402


def build(spec: Spec, drop_path: float = 0.0) -> nn.Module:
    """Return the backbone, freshly initialised: images [b, 3, h, w] to the maps of the stages, or of the last block.

    ``drop_path`` is the stochastic depth of the last block of a Swin or ViT. mmengine's ``init_weights()`` would
    initialise it anew: load afterwards. Raises UsageError for what mmsegmentation can't express.
    """
    if isinstance(spec, Resnet):
        if drop_path:
            raise UsageError(f"drop_path={drop_path:g}: mmsegmentation's ResNet has no stochastic depth; take 0")
        return PlainResNet(spec)
    return _swin(spec, drop_path) if isinstance(spec, Swin) else _vit(spec, drop_path)


def stages(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the maps of the stages (a Swin's before its output norms), or of a ViT's blocks: [b, c, h, w] each."""
    if isinstance(body, SwinTransformer):
        return taps(body, list(body.stages), images, lambda given: as_map(given[2], *given[3]))
    if isinstance(body, VisionTransformer):
        grid = [size // body.patch_size for size in images.shape[-2:]]
        return taps(body, list(body.layers), images, lambda tokens: as_map(tokens, grid[0], grid[1]))
    return list(body(images))


class PlainResNet(ResNet):
    """mmsegmentation's ResNet of any depth and width; with a small stem, a 3x3 convolution without pooling."""

    def __init__(self, spec: Resnet) -> None:
        if spec.groups == 1 and spec.base_width != 64:
            raise UsageError(f"base width {spec.base_width}: mmsegmentation has no wide blocks without groups")
        self.spec = spec
        block: Any = Bottleneck if spec.block == "bottleneck" else BasicBlock
        if spec.groups > 1:
            block = GroupedBottleneck
        self.arch_settings = {sum(spec.layers): (block, spec.layers)}
        super().__init__(sum(spec.layers), stem_channels=spec.stem.width, base_channels=spec.planes[0])
        self.feat_dim = spec.outputs[-1]
        if not spec.stem.pooled:
            self.conv1 = nn.Conv2d(3, spec.stem.width, 3, spec.stem.stride, padding=1, bias=False)
            self.maxpool = nn.Identity()

    def make_res_layer(self, **settings: Any) -> nn.Module:
        """Return the next stage, of its own width."""
        spec, number = self.spec, len(self.res_layers)
        settings["inplanes"] = spec.outputs[number - 1] if number else spec.stem.width
        settings["planes"] = spec.planes[number]
        if spec.groups > 1:
            settings |= {"groups": spec.groups, "base_width": spec.base_width}
        return super().make_res_layer(**settings)


def _swin(spec: Swin, drop_path: float) -> nn.Module:
    body = SwinTransformer(
        embed_dims=spec.dim,
        patch_size=spec.patch,
        strides=(spec.patch, 2, 2, 2),
        window_size=spec.window,
        mlp_ratio=spec.mlp_ratio,
        depths=spec.depths,
        num_heads=spec.heads,
        drop_path_rate=drop_path,
    )
    for stage, shifted in zip(body.stages, spec.shifted, strict=True):
        for block in stage.blocks if not shifted else ():
            block.attn.shift_size = 0  # as pretrained: a window covered the whole map
    return body


def _vit(spec: Vit, drop_path: float) -> nn.Module:
    if not spec.token:
        raise UsageError("mmsegmentation's vision transformer has a class token, and this network has none")
    if spec.hidden % spec.dim:
        raise UsageError(f"an MLP of {spec.hidden} channels for {spec.dim}: a whole multiple is expected")
    return VisionTransformer(
        img_size=spec.image,
        patch_size=spec.patch,
        embed_dims=spec.dim,
        num_layers=spec.depth,
        num_heads=spec.heads,
        mlp_ratio=spec.hidden // spec.dim,
        drop_path_rate=drop_path,
        norm_cfg={"type": "LN", "eps": spec.eps},
        patch_bias=True,
    )
