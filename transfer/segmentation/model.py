"""A segmentor with the weights of a checkpoint, after the proof that its backbone gives the maps of the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from torch import Tensor, nn

from smog.errors import UsageError
from smog.pretrained import Pretrained
from transfer.parity import input_parity, parity
from transfer.segmentation import parts
from transfer.segmentation.config import Tree, build_config
from transfer.segmentation.protocol import Segmentation
from transfer.spec import Vit, family_of, spec_of

Rows = list[dict[str, Any]]


def build_segmentor(source: Pretrained, chosen: Segmentation, classes: int) -> tuple[Tree, Any, Rows]:
    """Return mmsegmentation's configuration, the network that it describes with the checkpoint's backbone in it, and
    the rows of the proof.

    Raises UsageError for a backbone of another family than the recipe's, or a key that mmsegmentation does not take;
    RunError where weights or maps differ.
    """
    family = family_of(source.network)
    if family != chosen.family:
        raise UsageError(
            f"recipe={chosen.family}, and the checkpoint holds {source.backbone.name}, a {family}; take recipe={family}"
        )
    _fits(source, chosen)
    channels = _body(source, chosen, dilated=False).channels
    config = build_config(chosen, source, channels, classes)
    torch.manual_seed(chosen.seed)  # of the new parts, so that they are the same whatever the checkpoint
    with named("mmseg.model"):
        model = MODELS.build(ConfigDict(config["model"]))
    model.backbone.fill(source.network)
    return config, model, _proof(source, chosen, model)


@contextmanager
def named(key: str) -> Iterator[None]:
    """Tell what mmsegmentation refuses as bad input, by the key that it builds."""
    try:
        yield
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise UsageError(f"{key}: {' '.join(str(error).split())}") from None


def _body(source: Pretrained, chosen: Segmentation, dilated: bool) -> parts.Body:
    own = source.backbone
    return parts.Body(own.name, own.stem_stride, own.args, source.size, chosen.drop_path, dilated, chosen.frozen, False)


def _proof(source: Pretrained, chosen: Segmentation, model: Any) -> Rows:
    body = model.backbone
    if chosen.dilated and chosen.decoder == "fcn":  # other maps are meant: those of the same weights without it
        body = _body(source, chosen, dilated=False)
        body.fill(source.network)
    spec, indices = None if chosen.family == "resnet" else spec_of(source.network), None
    if chosen.family != "swin":
        indices = body.indices
    given = input_parity(lambda images: _prepared(model, images), source.size, source.mean, source.std)
    return [given, *parity(source.network, spec, body.stages, source.size, source.mean, source.std, indices)]


def _prepared(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the backbone gets for RGB images [b, 3, h, w] of values 0 to 255."""
    prepare: Any = model.data_preprocessor
    return prepare({"inputs": [image.flip(0) for image in images]})["inputs"]


def _fits(source: Pretrained, chosen: Segmentation) -> None:
    """Refuse crops that a vision transformer can't cut into whole patches, and a single image for UPerNet."""
    if chosen.batch == 1 and chosen.decoder == "upernet":
        raise UsageError("batch=1: UPerNet has a batch norm with one value an image, which needs two; take batch=2")
    spec = spec_of(source.network) if chosen.family == "vit" else None
    if isinstance(spec, Vit) and any(side % spec.patch for side in chosen.crop):
        raise UsageError(f"crop={chosen.crop}: {source.backbone.name} has patches of {spec.patch} px; take multiples")
