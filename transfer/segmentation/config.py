"""The configuration that mmsegmentation's Runner gets, as its own files would say it; and further keys put into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smog.errors import UsageError, nearest
from smog.pretrained import Pretrained
from transfer.segmentation.classes import IGNORE
from transfer.segmentation.protocol import Segmentation

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the multi-scale test: mmsegmentation's img_ratios

Tree = dict[str, Any]


def build_config(chosen: Segmentation, source: Pretrained, channels: Sequence[int], classes: int) -> Tree:
    """Return the configuration of a fine-tuning from a checkpoint, plain values throughout; of ``source`` its weights
    are not needed.

    ``channels``: those of the four levels of its backbone. Raises UsageError for a key of ``chosen.mmseg`` that there
    is not.
    """
    tree: Tree = {
        "default_scope": "mmseg",
        "custom_imports": {"imports": ["transfer.segmentation.parts"]},
        "model": _model(chosen, source, channels, classes),
        "train_pipeline": _training(chosen),
        "test_pipeline": [_resize(chosen), {"type": "PackSegInputs"}],
        "tta_pipeline": _multi_scale(chosen),
        "optim_wrapper": _optimizer(chosen),
        "param_scheduler": _schedule(chosen),
        "train_cfg": {"type": "Steps", "max_iters": chosen.steps},
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "Confusion", "classes": classes},
    }
    _merge(tree, chosen.mmseg)
    return tree


# ---- the network ----


def _model(chosen: Segmentation, source: Pretrained, channels: Sequence[int], classes: int) -> Tree:
    model: Tree = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * value for value in source.mean],
            "std": [255 * value for value in source.std],
            "bgr_to_rgb": True,  # images come as OpenCV reads them
            "pad_val": 0,
            "seg_pad_val": IGNORE,
            "size": list(chosen.crop),
        },
        "backbone": _backbone(chosen, source),
        "decode_head": {**_head(chosen, channels), **_common(classes)},
        "test_cfg": _testing(chosen),
    }
    if chosen.family == "vit" and chosen.decoder == "upernet":  # four levels of one resolution become a pyramid
        model["neck"] = {
            "type": "Feature2Pyramid",
            "embed_dim": channels[0],
            "rescales": [4, 2, 1, 0.5],
            "norm_cfg": {**BN},
        }
    if chosen.auxiliary:
        second = {"type": "FCNHead", "in_channels": channels[2], "in_index": 2, "channels": chosen.channels // 2}
        loss = {**CROSS_ENTROPY, "loss_weight": chosen.auxiliary}
        part = {"num_convs": 1, "concat_input": False, "dropout_ratio": 0.1, "loss_decode": loss}
        model["auxiliary_head"] = {**_common(classes), **second, **part}
    return model


BN: Tree = {"type": "BN", "requires_grad": True}  # over all processes, which transfer/segmentation/runner.py sees to
CROSS_ENTROPY: Tree = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}


def _backbone(chosen: Segmentation, source: Pretrained) -> Tree:
    backbone = source.backbone
    return {
        "type": "Body",
        "name": backbone.name,
        "stem_stride": backbone.stem_stride,
        "args": dict(backbone.args),
        "size": source.size,
        "drop_path": chosen.drop_path,
        "dilated": chosen.dilated and chosen.decoder == "fcn",
        "frozen": chosen.frozen,
        "normed": chosen.decoder == "linear",
    }


def _common(classes: int) -> Tree:
    loss = {"align_corners": False, "loss_decode": {**CROSS_ENTROPY}}  # copies: further keys go into one part alone
    return {"num_classes": classes, "norm_cfg": {**BN}, **loss}


def _head(chosen: Segmentation, channels: Sequence[int]) -> Tree:
    last = {"in_channels": channels[-1], "in_index": len(channels) - 1}
    if chosen.decoder == "linear":
        return {"type": "LinearHead", **last, "channels": channels[-1], "dropout_ratio": 0.0}
    if chosen.decoder == "fcn":
        convolutions = {"num_convs": 2, "concat_input": True}
        return {"type": "FCNHead", **last, "channels": chosen.channels, "dropout_ratio": 0.1, **convolutions}
    levels = {"in_channels": list(channels), "in_index": [0, 1, 2, 3], "pool_scales": [1, 2, 3, 6]}
    return {"type": "UPerHead", **levels, "channels": chosen.channels, "dropout_ratio": 0.1}


def _testing(chosen: Segmentation) -> Tree:
    if chosen.sliding:
        return {"mode": "slide", "crop_size": list(chosen.crop), "stride": chosen.stride}
    return {"mode": "whole"}


# ---- the images ----


def _resize(chosen: Segmentation) -> Tree:
    return {"type": "Resize", "scale": tuple(chosen.scale), "keep_ratio": True}


def _training(chosen: Segmentation) -> list[Tree]:
    """What follows the reading of an image and its labels; without loading, which is the data set's."""
    scale = {"scale": tuple(chosen.scale), "ratio_range": tuple(chosen.ratios), "keep_ratio": True}
    steps: list[Tree] = [
        {"type": "RandomResize", **scale},
        {"type": "RandomCrop", "crop_size": tuple(chosen.crop), "cat_max_ratio": chosen.largest_class},
        {"type": "RandomFlip", "prob": chosen.flip},
    ]
    distortion: list[Tree] = [{"type": "PhotoMetricDistortion"}] if chosen.distort else []
    # the files for VOC pad by black, before the normalisation; elsewhere what is missing is 0 after it
    padding: list[Tree] = [{"type": "Pad", "size": tuple(chosen.crop)}] if chosen.data == "voc12aug" else []
    return [*steps, *distortion, *padding, {"type": "PackSegInputs"}]


def _multi_scale(chosen: Segmentation) -> list[Tree]:
    long, short = chosen.scale
    sizes = [(int(long * ratio), int(short * ratio)) for ratio in RATIOS]
    return [
        {
            "type": "TestTimeAug",
            "transforms": [
                [{"type": "Resize", "scale": size, "keep_ratio": True} for size in sizes],
                [{"type": "RandomFlip", "prob": share, "direction": "horizontal"} for share in (0.0, 1.0)],
                [{"type": "PackSegInputs"}],
            ],
        }
    ]


# ---- the optimiser ----


def _optimizer(chosen: Segmentation) -> Tree:
    optimizer: Tree = {"type": "SGD", "lr": chosen.rate, "momentum": chosen.momentum}
    if chosen.optimizer == "adamw":
        optimizer = {"type": "AdamW", "lr": chosen.rate, "betas": (chosen.momentum, 0.999)}
    wrapper: Tree = {"type": "Precise", "optimizer": {**optimizer, "weight_decay": chosen.weight_decay}}
    if chosen.layer_decay < 1:
        return {**wrapper, "constructor": "LayerDecay", "paramwise_cfg": {"layer_decay": chosen.layer_decay}}
    if not chosen.decay_norms:
        kept: Tree = {name: {"decay_mult": 0.0} for name in ("pos_embed", "relative_position_bias_table", "norm")}
        return {**wrapper, "paramwise_cfg": {"custom_keys": kept}}
    return wrapper


def _schedule(chosen: Segmentation) -> list[Tree]:
    fall = {"type": "PolyLR", "eta_min": chosen.min_lr, "power": chosen.power, "by_epoch": False}
    if not chosen.warmup:
        return [{**fall, "begin": 0, "end": chosen.steps}]
    rise = {
        "type": "LinearLR",
        "start_factor": chosen.warmup_start,
        "by_epoch": False,
        "begin": 0,
        "end": chosen.warmup,
    }
    return [rise, {**fall, "begin": chosen.warmup, "end": chosen.steps}]


# ---- further keys ----


def _merge(node: Any, more: Tree, path: str = "mmseg") -> None:
    """Put further values into a tree. What has a ``type`` is built with its keys and names wrong ones itself; elsewhere
    a key must be there already, so that a typo is not passed over."""
    for part, value in more.items():
        name, known = f"{path}.{part}", True
        key: Any = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise UsageError(f"{name}: a number from 0 to {len(node) - 1} expected, not {part!r}")
            key = int(part)
        elif not isinstance(node, dict):
            raise UsageError(f"{name}: {path.removeprefix('mmseg.')} is {node!r}, and has no keys")
        else:
            known = part in node
            if not known and "type" not in node:
                raise UsageError(f"unknown key {name}{nearest(part, node)}")
        if isinstance(value, dict) and value and known:
            _merge(node[key], value, name)
        else:
            node[key] = _as_theirs(value)


def _as_theirs(value: Any) -> Any:
    """Return a value with tuples for lists of numbers: mmcv's transforms take no others."""
    if isinstance(value, dict):
        return {key: _as_theirs(one) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    numbers = value and all(isinstance(one, int | float) for one in value)
    return tuple(value) if numbers else [_as_theirs(one) for one in value]
