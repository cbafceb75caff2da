"""The tables: what timm's names are in another framework. Line by line to be checked by a reader; no torch needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smog.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from transfer.spec import Spec

STAGES = range(4)
INDEX = "relative_position_index"


@dataclass(frozen=True)
class Rule:
    """A name of timm as a pattern, and what it is there (nothing: it is left out); ``change`` reorders the values."""

    ours: str
    theirs: str
    change: Callable[[Tensor], Tensor] | None = None


def rules(spec: Spec, target: str) -> list[Rule]:
    """Return the table for a network of this family; UsageError for a target that is not known."""
    if (spec.family, target) not in TABLES:
        raise UsageError(f"{target!r}: no such framework{nearest(target, {name for _, name in TABLES})}")
    return TABLES[spec.family, target]()


def fresh(spec: Spec, target: str) -> tuple[str, ...]:
    """Return patterns of the names that the target has and the source can't have: they start as they are made.

    Swin's maps pass a norm a stage in detectron2 and mmsegmentation, which pretraining does not know (Swin's own
    detection code); a LayerNorm starts as the identity's scale and shift.
    """
    return (r"norm[0-3]\.(weight|bias)",) if (spec.family, target) in WITH_OUTPUT_NORMS else ()


WITH_OUTPUT_NORMS = {("swin", "detectron2"), ("swin", "mmseg")}

# ---- ResNet ----


def _resnet_detectron2() -> list[Rule]:
    # conversion of detectron2: tools/convert-torchvision-to-d2.py
    stem = [Rule(r"conv1\.weight", "stem.conv1.weight"), Rule(r"bn1\.(\w+)", r"stem.conv1.norm.\1")]
    return stem + [
        rule
        for stage in STAGES
        for rule in (
            Rule(rf"layer{stage + 1}\.(\d+)\.conv([123])\.weight", rf"res{stage + 2}.\1.conv\2.weight"),
            Rule(rf"layer{stage + 1}\.(\d+)\.bn([123])\.(\w+)", rf"res{stage + 2}.\1.conv\2.norm.\3"),
            Rule(rf"layer{stage + 1}\.(\d+)\.downsample\.0\.weight", rf"res{stage + 2}.\1.shortcut.weight"),
            Rule(rf"layer{stage + 1}\.(\d+)\.downsample\.1\.(\w+)", rf"res{stage + 2}.\1.shortcut.norm.\2"),
        )
    ]


def _resnet_same() -> list[Rule]:
    # torchvision's names are timm's and mmsegmentation's
    return [
        Rule(r"(conv1\.weight)", r"\1"),
        Rule(r"(bn1\.\w+)", r"\1"),
        Rule(r"(layer[1-4]\.\d+\.conv[123]\.weight)", r"\1"),
        Rule(r"(layer[1-4]\.\d+\.bn[123]\.\w+)", r"\1"),
        Rule(r"(layer[1-4]\.\d+\.downsample\.0\.weight)", r"\1"),
        Rule(r"(layer[1-4]\.\d+\.downsample\.1\.\w+)", r"\1"),
    ]


# ---- Swin: timm merges patches at the start of a stage, the others at the end of the one before ----


def _swin_detectron2() -> list[Rule]:
    merging = [
        Rule(rf"layers\.{stage}\.downsample\.(.+)", rf"layers.{stage - 1}.downsample.\1") for stage in STAGES[1:]
    ]
    return [
        Rule(r"patch_embed\.(proj|norm)\.(\w+)", r"patch_embed.\1.\2"),
        *merging,
        Rule(r"layers\.(\d)\.blocks\.(\d+)\.(norm[12]\.\w+)", r"layers.\1.blocks.\2.\3"),
        Rule(r"layers\.(\d)\.blocks\.(\d+)\.attn\.((qkv|proj)\.\w+)", r"layers.\1.blocks.\2.attn.\3"),
        Rule(
            r"layers\.(\d)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
            r"layers.\1.blocks.\2.attn.relative_position_bias_table",
        ),
        Rule(r"layers\.(\d)\.blocks\.(\d+)\.mlp\.(fc[12]\.\w+)", r"layers.\1.blocks.\2.mlp.\3"),
        Rule(r"norm\.(weight|bias)", ""),  # before the pooling; no map passes it
    ]


def _swin_torchvision() -> list[Rule]:
    # features: the patches, then a stage and its merging in turn
    found = [
        Rule(r"patch_embed\.proj\.(\w+)", r"features.0.0.\1"),
        Rule(r"patch_embed\.norm\.(\w+)", r"features.0.2.\1"),
    ]
    for stage in STAGES:
        ours, theirs = rf"layers\.{stage}\.blocks\.(\d+)", rf"features.{2 * stage + 1}.\1"
        found += [
            Rule(rf"layers\.{stage}\.downsample\.(.+)", rf"features.{2 * stage}.\1"),
            Rule(rf"{ours}\.(norm[12]\.\w+)", rf"{theirs}.\2"),
            Rule(rf"{ours}\.attn\.((qkv|proj)\.\w+)", rf"{theirs}.attn.\2"),
            Rule(rf"{ours}\.attn\.relative_position_bias_table", rf"{theirs}.attn.relative_position_bias_table"),
            Rule(rf"{ours}\.mlp\.fc1\.(\w+)", rf"{theirs}.mlp.0.\2"),
            Rule(rf"{ours}\.mlp\.fc2\.(\w+)", rf"{theirs}.mlp.3.\2"),
        ]
    return [*found, Rule(r"norm\.(weight|bias)", r"norm.\1")]


def _swin_mmseg() -> list[Rule]:
    found = [
        Rule(r"patch_embed\.proj\.(\w+)", r"patch_embed.projection.\1"),
        Rule(r"patch_embed\.norm\.(\w+)", r"patch_embed.norm.\1"),
    ]
    for stage in STAGES[1:]:
        ours, theirs = rf"layers\.{stage}\.downsample", f"stages.{stage - 1}.downsample"
        found += [
            Rule(rf"{ours}\.reduction\.weight", f"{theirs}.reduction.weight", unfolded),
            Rule(rf"{ours}\.norm\.(\w+)", rf"{theirs}.norm.\1", unfolded),
        ]
    ours, theirs = r"layers\.(\d)\.blocks\.(\d+)", r"stages.\1.blocks.\2"
    return [
        *found,
        Rule(rf"{ours}\.(norm[12]\.\w+)", rf"{theirs}.\3"),
        Rule(rf"{ours}\.attn\.((qkv|proj)\.\w+)", rf"{theirs}.attn.w_msa.\3"),
        Rule(rf"{ours}\.attn\.relative_position_bias_table", rf"{theirs}.attn.w_msa.relative_position_bias_table"),
        Rule(rf"{ours}\.mlp\.fc1\.(\w+)", rf"{theirs}.ffn.layers.0.0.\3"),
        Rule(rf"{ours}\.mlp\.fc2\.(\w+)", rf"{theirs}.ffn.layers.1.\3"),
        Rule(r"norm\.(weight|bias)", ""),  # before the pooling; no map passes it
    ]


def unfolded(values: Tensor) -> Tensor:
    """Return [..., 4 c] for channels that nn.Unfold has merged, which mmsegmentation does.

    timm's order is (column, row, channel) of the 2x2 pixels, that of Unfold (channel, row, column).
    """
    return values.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)


# ---- ViT ----


def _vit_detectron2() -> list[Rule]:
    return [
        Rule("cls_token", ""),  # detectron2's ViT has none: ViTDet drops it (arXiv 2203.16527)
        Rule("pos_embed", "pos_embed"),  # with the class token's, which is cut off there
        Rule(r"patch_embed\.proj\.(\w+)", r"patch_embed.proj.\1"),
        Rule(r"blocks\.(\d+)\.(norm[12]\.\w+)", r"blocks.\1.\2"),
        Rule(r"blocks\.(\d+)\.attn\.((qkv|proj)\.\w+)", r"blocks.\1.attn.\2"),
        Rule(r"blocks\.(\d+)\.mlp\.(fc[12]\.\w+)", r"blocks.\1.mlp.\2"),
        Rule(r"norm\.(weight|bias)", ""),  # the map is that of the last block
    ]


def _vit_torchvision() -> list[Rule]:
    ours, theirs = r"blocks\.(\d+)", r"encoder.layers.encoder_layer_\1"
    return [
        Rule("cls_token", "class_token"),
        Rule("pos_embed", "encoder.pos_embedding"),
        Rule(r"patch_embed\.proj\.(\w+)", r"conv_proj.\1"),
        Rule(rf"{ours}\.norm([12])\.(\w+)", rf"{theirs}.ln_\2.\3"),
        Rule(rf"{ours}\.attn\.qkv\.(weight|bias)", rf"{theirs}.self_attention.in_proj_\2"),
        Rule(rf"{ours}\.attn\.proj\.(\w+)", rf"{theirs}.self_attention.out_proj.\2"),
        Rule(rf"{ours}\.mlp\.fc1\.(\w+)", rf"{theirs}.mlp.0.\2"),
        Rule(rf"{ours}\.mlp\.fc2\.(\w+)", rf"{theirs}.mlp.3.\2"),
        Rule(r"norm\.(weight|bias)", r"encoder.ln.\1"),
    ]


def _vit_mmseg() -> list[Rule]:
    ours, theirs = r"blocks\.(\d+)", r"layers.\1"
    return [
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "pos_embed"),
        Rule(r"patch_embed\.proj\.(\w+)", r"patch_embed.projection.\1"),
        Rule(rf"{ours}\.norm([12])\.(\w+)", rf"{theirs}.ln\2.\3"),
        Rule(rf"{ours}\.attn\.qkv\.(weight|bias)", rf"{theirs}.attn.attn.in_proj_\2"),
        Rule(rf"{ours}\.attn\.proj\.(\w+)", rf"{theirs}.attn.attn.out_proj.\2"),
        Rule(rf"{ours}\.mlp\.fc1\.(\w+)", rf"{theirs}.ffn.layers.0.0.\2"),
        Rule(rf"{ours}\.mlp\.fc2\.(\w+)", rf"{theirs}.ffn.layers.1.\2"),
        Rule(r"norm\.(weight|bias)", ""),  # the map is that of the last block
    ]


TABLES: dict[tuple[str, str], Callable[[], list[Rule]]] = {
    ("resnet", "detectron2"): _resnet_detectron2,
    ("resnet", "torchvision"): _resnet_same,
    ("resnet", "mmseg"): _resnet_same,
    ("swin", "detectron2"): _swin_detectron2,
    ("swin", "torchvision"): _swin_torchvision,
    ("swin", "mmseg"): _swin_mmseg,
    ("vit", "detectron2"): _vit_detectron2,
    ("vit", "torchvision"): _vit_torchvision,
    ("vit", "mmseg"): _vit_mmseg,
}
