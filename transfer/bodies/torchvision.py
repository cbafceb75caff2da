"""Backbones of torchvision's blocks, under the names of torchvision.models.

torchvision's own ResNet class has fixed widths; here its blocks are put together for any width and depth, with the same
keys.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet, swin_transformer, vision_transformer
from torchvision.ops import StochasticDepth

from smog.errors import UsageError
from transfer.bodies import as_map, taps
from transfer.spec import Resnet, Spec, Stem, Swin, Vit


def build(spec: Spec) -> nn.Module:
    """Return the backbone, freshly initialised: images [b, 3, h, w] in; see ``stages`` for what it gives.

    The keys are those of torchvision's models without their classifier. Raises UsageError for what torchvision can't
    express.
    """
    if isinstance(spec, Resnet):
        return _resnet(spec)
    return _swin(spec) if isinstance(spec, Swin) else _vit(spec)


def stages(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the maps of the stages that the body has, or of a ViT's blocks: [b, c, h, w] each."""
    if isinstance(body, vision_transformer.VisionTransformer):
        grid = body.image_size // body.patch_size
        return taps(body, list(body.encoder.layers), images, lambda tokens: as_map(tokens, grid, grid))
    stem, *layers = stem_and_stages(body)
    maps = [stem(images)]
    for layer in layers:
        maps.append(layer(maps[-1]))
    if isinstance(body, swin_transformer.SwinTransformer):
        maps = [one.permute(0, 3, 1, 2).contiguous() for one in maps]
    return maps[1:]


def stem_and_stages(body: nn.Module) -> list[nn.Module]:
    """Return the stem and the stages of a ResNet or Swin themselves: each takes what the one before gives.

    Swin's work on [b, h, w, c]; the merging of patches belongs to the stage that it opens, as in timm.
    """
    if isinstance(body, swin_transformer.SwinTransformer):
        stem, first, *others = body.features
        return [stem, first, *(nn.Sequential(*pair) for pair in zip(others[::2], others[1::2], strict=True))]
    if not isinstance(body, nn.Sequential):
        raise UsageError(f"{type(body).__name__} has no stages; a ResNet or a Swin has")
    names = [name for name, _ in body.named_children()]
    first = names.index("layer1")
    return [body[:first], *body[first:]]


def take_last_stage(body: nn.Module) -> nn.Module:
    """Cut the last stage off a ResNet and return it: the head of the regions in a C4 detector."""
    if not isinstance(body, nn.Sequential) or not hasattr(body, "layer4"):
        raise UsageError(f"{type(body).__name__} has no stage to take; a ResNet has")
    last = list(body)[-1]
    del body.layer4  # pop would number the others, whose names are torchvision's
    return last


def set_drop_path(body: nn.Module, rate: float) -> None:
    """Set stochastic depth, from 0 in the first block to ``rate`` in the last; UsageError where blocks have none."""
    layers = [part for part in body.modules() if isinstance(part, StochasticDepth)]
    if rate and not layers:
        raise UsageError(f"drop_path={rate:g}: torchvision's blocks of this backbone have no stochastic depth; take 0")
    for place, layer in enumerate(layers):
        layer.p = rate * place / max(len(layers) - 1, 1)


# ---- ResNet ----


def _resnet(spec: Resnet) -> nn.Sequential:
    parts = _stem(spec.stem)
    inputs = spec.stem.width
    for number, (layers, outputs) in enumerate(zip(spec.layers, spec.outputs, strict=True)):
        blocks = []
        for place in range(layers):
            blocks.append(_block(spec, number, inputs, stride=2 if number and not place else 1))
            inputs = outputs
        parts[f"layer{number + 1}"] = nn.Sequential(*blocks)
    body = nn.Sequential(parts)
    for part in body.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")  # torchvision's ResNet
    return body


def _stem(stem: Stem) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(3, stem.width, stem.kernel, stem.stride, stem.kernel // 2, bias=False)
    pool = nn.MaxPool2d(3, 2, 1) if stem.pooled else nn.Identity()
    parts = {"conv1": conv, "bn1": nn.BatchNorm2d(stem.width), "relu": nn.ReLU(inplace=True), "maxpool": pool}
    return OrderedDict(parts)


def _block(spec: Resnet, number: int, inputs: int, stride: int) -> nn.Module:
    outputs, downsample = spec.outputs[number], None
    if stride > 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    kind: Any = resnet.Bottleneck if spec.block == "bottleneck" else resnet.BasicBlock
    return kind(inputs, spec.planes[number], stride, downsample, spec.groups, spec.base_width)


# ---- transformers ----


def _swin(spec: Swin) -> nn.Module:
    body = swin_transformer.SwinTransformer(
        patch_size=[spec.patch, spec.patch],
        embed_dim=spec.dim,
        depths=list(spec.depths),
        num_heads=list(spec.heads),
        window_size=[spec.window, spec.window],
        mlp_ratio=spec.mlp_ratio,
        stochastic_depth_prob=0.0,
    )
    body.head = nn.Identity()
    body.norm.requires_grad_(False)  # no map passes it, and DistributedDataParallel would wait for its gradient
    for number, shifted in enumerate(spec.shifted):
        for block in body.features[2 * number + 1] if not shifted else ():
            block.attn.shift_size = [0, 0]  # as pretrained: a window covered the whole map
    return body


def _vit(spec: Vit) -> nn.Module:
    if not spec.token:
        raise UsageError("torchvision's vision transformer has a class token, and this network has none")
    body = vision_transformer.VisionTransformer(
        image_size=spec.image,
        patch_size=spec.patch,
        num_layers=spec.depth,
        num_heads=spec.heads,
        hidden_dim=spec.dim,
        mlp_dim=spec.hidden,
        norm_layer=partial(nn.LayerNorm, eps=spec.eps),
    )
    body.heads = nn.Identity()
    body.encoder.ln.requires_grad_(False)  # as Swin's
    return body
