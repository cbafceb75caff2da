"""From the keys and shapes of a file, by timm's names, to the timm model that has them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from smog.errors import UsageError
from smog.schema import Backbone

State = Mapping[str, Tensor]
ASK = "say which timm model it is with model=NAME"
SIZE = 224  # pixels: what ImageNet's networks are trained on, where the weights do not tell
_Stages = tuple[int, ...]  # a number for every stage
# (blocks, groups, width of a group at 64 channels), by whether the blocks are bottlenecks
_RESNETS: dict[bool, dict[tuple[_Stages, int, int], str]] = {
    False: {((2, 2, 2, 2), 1, 64): "resnet18", ((3, 4, 6, 3), 1, 64): "resnet34"},
    True: {
        ((3, 4, 6, 3), 1, 64): "resnet50",
        ((3, 4, 23, 3), 1, 64): "resnet101",
        ((3, 8, 36, 3), 1, 64): "resnet152",
        ((3, 4, 6, 3), 1, 128): "wide_resnet50_2",
        ((3, 4, 23, 3), 1, 128): "wide_resnet101_2",
        ((3, 4, 6, 3), 32, 4): "resnext50_32x4d",
        ((3, 4, 23, 3), 32, 8): "resnext101_32x8d",
    },
}
# (width, blocks, heads, window)
_SWINS: dict[tuple[int, _Stages, _Stages, int], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large_patch4_window7_224",
}
# (width, depth, heads, patch)
_VITS = {
    (192, 12, 3, 16): "vit_tiny_patch16_224",
    (384, 12, 6, 16): "vit_small_patch16_224",
    (384, 12, 6, 8): "vit_small_patch8_224",
    (768, 12, 12, 16): "vit_base_patch16_224",
    (768, 12, 12, 8): "vit_base_patch8_224",
    (1024, 24, 16, 16): "vit_large_patch16_224",
}
_ANY_SIZE: dict[str, dict[str, Any]] = {  # equal at the size of training; a detector feeds other sizes
    "resnet": {},
    "vit": {"dynamic_img_size": True},
    "swin": {"strict_img_size": False},
}


def infer(state: State, heads: Mapping[int, int]) -> tuple[Backbone, int]:
    """Return the backbone that has these keys and shapes, and the side of its images in pixels.

    ``heads``: of a ViT by its width, where they are not one for every 64. Raises UsageError, which asks for a name,
    for another family or a stem whose stride and padding the weights do not tell.
    """
    family = _family(state)
    if not family:
        raise UsageError(f"no ResNet, ViT or Swin that is known here; {ASK}")
    name, args, size = _FAMILIES[family](state, heads)
    return Backbone(name, 0, {**args, **_ANY_SIZE[family]}), size


def named(model: str, state: State, heads: Mapping[int, int]) -> Backbone:
    """Return the backbone for a timm name that the user gave, with what the layout knows of it."""
    family = _family(state)
    args = dict(_ANY_SIZE.get(family, {}))
    if family == "vit" and (own := heads.get(_shape(state, "patch_embed.proj.weight", 4)[0])):
        args["num_heads"] = own
    return Backbone(model, 0, args)


def _family(state: State) -> str:
    if any(key.startswith("layer1.") for key in state):
        return "resnet"
    if any(key.endswith(".attn.relative_position_bias_table") and key.startswith("layers.") for key in state):
        return "swin"
    return "vit" if {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= state.keys() else ""


def _resnet(state: State, heads: Mapping[int, int]) -> tuple[str, dict[str, Any], int]:
    if "conv1.0.weight" in state:
        raise UsageError(f"a ResNet with a deep stem; {ASK}")
    stem = _shape(state, "conv1.weight", 4)
    if stem != (64, 3, 7, 7):
        raise UsageError(
            f"conv1.weight is {list(stem)}, not [64, 3, 7, 7]: the weights do not tell stride, padding and pooling of "
            "such a stem, and timm's ResNet has no other; pretrain with the standard stem"
        )
    deep = "layer1.0.conv3.weight" in state
    last, expansion = ("conv3", 4) if deep else ("conv2", 1)
    layers = tuple(_blocks(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    channels = [_shape(state, f"layer{stage}.0.{last}.weight", 4)[0] // expansion for stage in range(1, 5)]
    width, inner = _shape(state, "layer1.0.conv2.weight", 4)[:2]
    groups = max(1, width // inner)
    base = width * 64 // max(1, channels[0] * groups)
    plain = {"channels": channels} if channels != [64, 128, 256, 512] else {}
    if name := _RESNETS[deep].get((layers, groups, base)):
        return name, plain, SIZE
    other = {"layers": list(layers), "cardinality": groups, "base_width": base}
    usual = {"layers": [3, 4, 6, 3] if deep else [2, 2, 2, 2], "cardinality": 1, "base_width": 64}
    args = {key: value for key, value in other.items() if value != usual[key]}
    return "resnet50" if deep else "resnet18", {**args, **plain}, SIZE


def _vit(state: State, heads: Mapping[int, int]) -> tuple[str, dict[str, Any], int]:
    dim, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    patches = _shape(state, "pos_embed", 3)[1] - 1
    side = math.isqrt(max(0, patches))
    if side * side != patches or not side:
        raise UsageError(f"pos_embed has {patches} patches beside the class token, which is no square; {ASK}")
    if dim % 64 and dim not in heads:
        raise UsageError(f"a ViT of width {dim}: how many heads it has can't be read from the weights; {ASK}")
    count = heads.get(dim, dim // 64)
    depth, hidden = _blocks(state, r"blocks\.(\d+)\."), _shape(state, "blocks.0.mlp.fc1.weight", 2)[0]
    args: dict[str, Any] = {} if side * patch == SIZE else {"img_size": side * patch}
    if hidden != 4 * dim:
        args["mlp_ratio"] = hidden / dim
    if "blocks.0.attn.qkv.bias" not in state:
        args["qkv_bias"] = False
    if name := _VITS.get((dim, depth, count, patch)):
        return name, args, side * patch
    own = {"patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": count}
    return "vit_base_patch16_224", {**own, **args}, side * patch


def _swin(state: State, heads: Mapping[int, int]) -> tuple[str, dict[str, Any], int]:
    dim, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    stages = range(_blocks(state, r"layers\.(\d+)\."))
    depths = tuple(_blocks(state, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages)
    tables = [_shape(state, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in stages]
    counts, window = tuple(table[1] for table in tables), (math.isqrt(tables[0][0]) + 1) // 2
    size = patch * window * 2 ** (len(stages) - 1)  # the last stage is one window, as in the published ones
    if patch == 4 and (name := _SWINS.get((dim, depths, counts, window))):
        return name, {}, size
    own = {"patch_size": patch, "embed_dim": dim, "depths": list(depths), "num_heads": list(counts)}
    return "swin_tiny_patch4_window7_224", {**own, "window_size": window, "img_size": size}, size


_FAMILIES: dict[str, Callable[[State, Mapping[int, int]], tuple[str, dict[str, Any], int]]] = {
    "resnet": _resnet,
    "vit": _vit,
    "swin": _swin,
}


def _shape(state: State, key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise UsageError(f"missing 1: {key}, without which the architecture can't be told")
    shape = tuple(state[key].shape)
    if len(shape) != dimensions or not all(shape):
        raise UsageError(f"{key} is {list(shape)}: {dimensions} dimensions expected")
    return shape


def _blocks(state: State, pattern: str) -> int:
    """Return how many blocks there are; keys that lie are found when the weights are loaded."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
