"""What a backbone consists of: all that another framework needs to build the same network, read off a timm module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from timm.layers import Attention, DropPath, Mlp, PatchEmbed
from timm.models import resnet, swin_transformer, vision_transformer
from torch import nn

from smog.errors import UsageError

BN_EPS, LN_EPS = 1e-5, 1e-5  # of all batch norms there, and of Swin's layer norms
SHOWN = 3


@dataclass(frozen=True)
class Stem:
    """The first convolution of a ResNet, ``width`` channels: 7x7 of stride 2 with max pooling, or 3x3 without."""

    kernel: int
    stride: int
    pooled: bool
    width: int


@dataclass(frozen=True)
class Resnet:
    """A ResNet, ResNeXt or wide ResNet with its stride in the 3x3 convolution. Tuples hold a value a stage."""

    family: ClassVar[str] = "resnet"
    block: str  # basic, bottleneck
    layers: tuple[int, ...]  # blocks
    planes: tuple[int, ...]
    groups: int
    base_width: int  # of a group where planes are 64
    stem: Stem

    @property
    def outputs(self) -> tuple[int, ...]:
        """Return the channels of each stage's map."""
        return tuple(planes * (4 if self.block == "bottleneck" else 1) for planes in self.planes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of each stage's 3x3 convolutions."""
        return tuple(planes * self.base_width // 64 * self.groups for planes in self.planes)


@dataclass(frozen=True)
class Swin:
    """A Swin Transformer (arXiv 2103.14030) of four stages, each of twice the channels of the one before."""

    family: ClassVar[str] = "swin"
    patch: int
    dim: int  # channels of the first stage
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    shifted: tuple[bool, ...]  # whether every second block shifts; not where a window covered the whole map
    mlp_ratio: float


@dataclass(frozen=True)
class Vit:
    """A vision transformer (arXiv 2010.11929) with learned positions, for square images of ``image`` px."""

    family: ClassVar[str] = "vit"
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int  # of the MLP
    token: bool  # a class token
    eps: float  # of the layer norms


Spec = Resnet | Swin | Vit


def spec_of(network: nn.Module) -> Spec:
    """Return what a timm network consists of. Weights are not looked at: a network on the meta device will do.

    Raises UsageError, which lists the parts, for a network that detectron2, torchvision and mmsegmentation can't give
    the same maps with: another family, deep stems, squeeze-excitation, average-pool shortcuts, layer scale, ...
    """
    if type(network) is resnet.ResNet:
        return _resnet(network)
    if type(network) is swin_transformer.SwinTransformer:
        return _swin(network)
    if type(network) is vision_transformer.VisionTransformer:
        return _vit(network)
    raise UsageError(
        f"{type(network).__name__}: a network of this family does not convert; those of timm's ResNet, SwinTransformer "
        "and VisionTransformer do"
    )


def family_of(network: nn.Module) -> str:
    """Return resnet, swin or vit, for a timm network of any kind of these. Raises UsageError for another."""
    kinds = (resnet.ResNet, swin_transformer.SwinTransformer, vision_transformer.VisionTransformer)
    for family, kind in zip((Resnet.family, Swin.family, Vit.family), kinds, strict=True):
        if isinstance(network, kind):
            return family
    raise UsageError(
        f"{type(network).__name__}: a network of this family has no recipe here; those of timm's ResNet, "
        "SwinTransformer and VisionTransformer do"
    )


def listed(names: Collection[str]) -> str:
    """Return ``"a, b, c and 4 more"``."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _refuse(network: nn.Module, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise UsageError(f"this {type(network).__name__} does not convert, since it has {listed(found)}")


def _strange(network: nn.Module, known: tuple[type[nn.Module], ...], but: tuple[str, ...]) -> Iterator[str]:
    """Yield the innermost modules of other types than the known ones; the head (``but``) is left out."""
    for name, part in network.named_modules():
        if name.startswith(but):
            continue
        if not any(part.children()) and not isinstance(part, known):
            yield f"{name} ({type(part).__name__})"
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm) and not _plain(part):
            yield f"{name} ({part})"


def _said(part: nn.Module) -> str:
    """Return a layer as it prints itself; one of several parts would take lines."""
    return ", ".join(type(one).__name__ for one in part.children()) or str(part)


def _plain(norm: Any) -> bool:
    if isinstance(norm, nn.BatchNorm2d):  # a BatchNormAct2d of timm is one too, and has an activation in it
        return type(norm) is nn.BatchNorm2d and norm.eps == BN_EPS and norm.affine and norm.track_running_stats
    return norm.elementwise_affine and norm.bias is not None


# ---- ResNet ----


def _resnet(network: Any) -> Resnet:
    leaves = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Identity, DropPath)
    _refuse(network, _strange(network, leaves, ("global_pool", "fc")))
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    first = stages[0][0]
    block = "bottleneck" if type(first) is resnet.Bottleneck else "basic"
    widths = [stage[0].conv2.out_channels for stage in stages]
    planes = [stage[0].conv3.out_channels // 4 for stage in stages] if block == "bottleneck" else widths
    groups = first.conv2.groups
    spec = Resnet(
        block, tuple(map(len, stages)), tuple(planes), groups, _base_width(widths, planes, groups), _stem(network)
    )
    _refuse(network, _wrong_widths(spec, widths))
    _refuse(network, [problem for number in range(4) for problem in _wrong_blocks(stages[number], spec, number)])
    return spec


def _stem(network: Any) -> Stem:
    conv, pool = network.conv1, network.maxpool
    found = (_geometry(conv), _pooling(pool))
    for kernel, stride, pooled in ((7, 2, True), (3, 1, False), (3, 2, False)):
        wanted = (kernel, stride, kernel // 2, 1, 1, False), ((3, 2, 1, 1, False) if pooled else None)
        if found == wanted:
            return Stem(kernel, stride, pooled, conv.out_channels)
    _refuse(network, [f"a stem of conv1 ({_said(conv)}) and maxpool ({_said(pool)})"])
    raise AssertionError  # never reached


def _pooling(pool: nn.Module) -> tuple[Any, ...] | None:
    if not isinstance(pool, nn.MaxPool2d):
        return None
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode


def _base_width(widths: list[int], planes: list[int], groups: int) -> int:
    return round(64 * widths[0] / (groups * planes[0]))


def _wrong_widths(spec: Resnet, widths: list[int]) -> Iterator[str]:
    for number, (width, wanted) in enumerate(zip(widths, spec.widths, strict=True), 1):
        if width != wanted:
            yield f"layer{number} of {width} channels where ResNet's rule gives {wanted}"


def _wrong_blocks(stage: Any, spec: Resnet, number: int) -> Iterator[str]:
    """Yield the convolutions that differ from those of the plain block."""
    wanted_type = resnet.Bottleneck if spec.block == "bottleneck" else resnet.BasicBlock
    inputs = spec.outputs[number - 1] if number else spec.stem.width
    for place, block in enumerate(stage):
        name, stride = f"layer{number + 1}.{place}", 2 if number and not place else 1
        if type(block) is not wanted_type:
            yield f"{name} ({type(block).__name__})"
            continue
        projected = not place and (stride > 1 or inputs != spec.outputs[number])
        for part, geometry in _convolutions(spec, stride, projected).items():
            conv = dict(block.named_modules()).get(part)
            if _geometry(conv) != geometry:
                yield f"{name}.{part} ({conv})"
        if (block.downsample is not None) != projected or block.conv1.out_channels != block.conv2.out_channels:
            yield f"{name} of another shape"


def _convolutions(spec: Resnet, stride: int, projected: bool) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {"downsample.0": (1, stride, 0, 1, 1, False)} if projected else {}
    if spec.block == "basic":
        return found | {"conv1": (3, stride, 1, 1, 1, False), "conv2": (3, 1, 1, 1, 1, False)}
    single = (1, 1, 0, 1, 1, False)
    return found | {"conv1": single, "conv2": (3, stride, 1, 1, spec.groups, False), "conv3": single}


def _geometry(conv: Any) -> tuple[Any, ...]:
    """Return (kernel, stride, padding, dilation, groups, bias), or nothing where it is no square convolution."""
    if not isinstance(conv, nn.Conv2d):
        return ()
    pairs = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    if any(pair[0] != pair[-1] for pair in pairs):
        return ()
    return (*(pair[0] for pair in pairs), conv.groups, conv.bias is not None)


# ---- transformers ----

LEAVES = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Softmax, nn.Identity, DropPath)


def _swin(network: Any) -> Swin:
    _refuse(network, _strange(network, LEAVES, ("head",)))
    _refuse(network, _wrong_swin(network))
    stages, embed = network.layers, network.patch_embed
    first = stages[0].blocks[0]
    return Swin(
        patch=embed.patch_size[0],
        dim=embed.proj.out_channels,
        depths=tuple(len(stage.blocks) for stage in stages),
        heads=tuple(stage.blocks[0].attn.num_heads for stage in stages),
        window=first.window_size[0],
        shifted=tuple(any(block.shift_size[0] for block in stage.blocks) for stage in stages),
        mlp_ratio=first.mlp.fc1.out_features / first.dim,
    )


def _wrong_swin(network: Any) -> Iterator[str]:
    embed, dim = network.patch_embed, network.patch_embed.proj.out_channels
    if len(network.layers) != 4:
        yield f"{len(network.layers)} stages"
    windows = [block.window_size for stage in network.layers for block in stage.blocks]
    if len({size for window in windows for size in window}) > 1:
        yield f"windows of several sizes ({', '.join(map(str, sorted(set(windows))))})"
    if not isinstance(embed.norm, nn.LayerNorm) or _geometry(embed.proj)[:3] != (*embed.patch_size, 0):
        yield f"patch_embed ({_said(embed)})"
    first = network.layers[0].blocks[0]
    for number, stage in enumerate(network.layers):
        for place, block in enumerate(stage.blocks):
            name, width = f"layers.{number}.blocks.{place}", dim * 2**number
            shift = block.window_size[0] // 2 if place % 2 and any(stage.blocks[1].shift_size) else 0
            if type(block) is not swin_transformer.SwinTransformerBlock or block.shift_size != (shift, shift):
                yield f"{name} of another kind or shift"
            if block.attn.qkv.bias is None or (block.dim, block.attn.qkv.out_features) != (width, 3 * width):
                yield f"{name}.attn.qkv ({block.attn.qkv})"
            if block.mlp.fc1.out_features * first.dim != first.mlp.fc1.out_features * width:
                yield f"{name}.mlp.fc1 ({block.mlp.fc1})"
    for name, part in network.named_modules():
        if isinstance(part, nn.LayerNorm) and part.eps != LN_EPS:
            yield f"{name} ({part})"


def _vit(network: Any) -> Vit:
    _refuse(network, _strange(network, LEAVES, ("head", "fc_norm")))
    _refuse(network, _wrong_vit(network))
    embed, first = network.patch_embed, network.blocks[0]
    return Vit(
        image=embed.img_size[0],
        patch=embed.patch_size[0],
        dim=network.embed_dim,
        depth=len(network.blocks),
        heads=first.attn.num_heads,
        hidden=first.mlp.fc1.out_features,
        token=network.cls_token is not None,
        eps=first.norm1.eps,
    )


def _wrong_vit(network: Any) -> Iterator[str]:
    embed = network.patch_embed
    absent = {
        "register tokens": network.reg_token is not None,
        "no position embedding": network.pos_embed is None,
        "a class token without position (no_embed_class)": network.no_embed_class and network.cls_token is not None,
        "a norm before the blocks (norm_pre)": not isinstance(network.norm_pre, nn.Identity),
        "no norm after the blocks, as with average pooling (fc_norm)": not isinstance(network.norm, nn.LayerNorm),
        "images or patches that are not square": embed.grid_size[0] != embed.grid_size[1]
        or embed.patch_size[0] != embed.patch_size[1],
        "patches padded at the edges (dynamic_img_pad)": embed.dynamic_img_pad,
        f"patch_embed ({_said(embed)})": type(embed) is not PatchEmbed
        or not isinstance(embed.norm, nn.Identity)
        or embed.proj.bias is None,
    }
    yield from (name for name, found in absent.items() if found)
    yield from _wrong_vit_blocks(network)


def _wrong_vit_blocks(network: Any) -> Iterator[str]:
    for place, block in enumerate(network.blocks):
        kinds = (type(block), type(block.attn), type(block.mlp))
        if kinds != (vision_transformer.Block, Attention, Mlp) or block.attn.gate is not None:
            yield f"blocks.{place} of another kind"
            continue
        named = {"ls1": block.ls1, "ls2": block.ls2, "attn.q_norm": block.attn.q_norm, "attn.norm": block.attn.norm}
        for name, part in {**named, "mlp.norm": block.mlp.norm}.items():
            if not isinstance(part, nn.Identity):
                yield f"blocks.{place}.{name} ({type(part).__name__})"
        if block.attn.qkv.bias is None or block.attn.proj.bias is None or block.mlp.fc1.bias is None:
            yield f"blocks.{place} without bias"
        if block.norm1.eps != network.blocks[0].norm1.eps or block.norm2.eps != network.blocks[0].norm1.eps:
            yield f"blocks.{place} with another epsilon"
