"""What an engine makes of a checkpoint: a detector with losses in training and boxes in evaluation."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smog.errors import UsageError
from smog.models import build_backbone
from smog.pretrained import Pretrained
from smog.schema import Backbone
from transfer.loader import Sample
from transfer.parity import input_parity, parity
from transfer.protocols import Detection
from transfer.spec import Resnet, Spec, Swin, spec_of


@dataclass(frozen=True)
class Boxes:
    """What was found in an image: boxes float32 [n, 4] XYXY in its own pixels, scores [n], labels [n] from 0, and masks
    as RLE."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None


class Detector(nn.Module, ABC):
    """A detector of some framework. ``engine`` says which, ``parity`` holds the proof of the conversion."""

    engine: dict[str, str]
    parity: list[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.fixed = 0  # stem and stages that stay as they come

    @abstractmethod
    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of training images, scalars by name."""

    @abstractmethod
    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        """Return what is found in images, uint8 RGB [3, h, w] each, in pixels of ``sizes``, (height, width) each."""

    @abstractmethod
    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the backbone's stages for normalised images [b, 3, h, w], where the detector has them."""

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Return what the backbone gets for RGB images [b, 3, h, w] of values 0 to 255."""

    @abstractmethod
    def stem_and_stages(self) -> list[nn.Module]:
        """Return the stem and the stages of the backbone, for those that are to stay as they come."""

    def describe(self, work: Path) -> None:
        """Write the engine's own configuration beside the result, where it has one."""

    def freeze(self, count: int) -> None:
        """Let the first ``count`` of stem and stages stay as they come, statistics of batch norm included."""
        self.fixed = count
        for part in self.frozen():
            part.requires_grad_(False).eval()

    def frozen(self) -> list[nn.Module]:
        """Return what stays as it comes; looked up each time, since norms are replaced for several processes."""
        return self.stem_and_stages()[: self.fixed]

    def train(self, mode: bool = True) -> Detector:
        """Set the mode; what is frozen stays in evaluation."""
        super().train(mode)
        for part in self.frozen() if self.fixed else ():
            part.eval()
        return self

    @contextlib.contextmanager
    def precise_statistics(self, batches: Iterator[list[Sample]]) -> Iterator[None]:
        """Have the average statistics of these batches in all batch norms that are trained, in place of the moving
        ones, within the body (detectron2's PRECISE_BN)."""
        free = {id(part) for frozen in self.frozen() for part in frozen.modules()}
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm) and id(part) not in free]
        before = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
        momenta = [norm.momentum for norm in norms]
        try:
            if norms:
                self._average(norms, batches)
            yield
        finally:
            for norm, values, momentum in zip(norms, before, momenta, strict=True):
                norm.momentum = momentum
                for name, value in values.items():
                    getattr(norm, name).copy_(value)

    @torch.no_grad()
    def _average(self, norms: Sequence[_BatchNorm], batches: Iterator[list[Sample]]) -> None:
        self.train()
        for number, samples in enumerate(batches):
            if not number:  # with no batch at all the moving statistics stay
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a plain average of all batches
            self(samples)


def build_detector(source: Pretrained, chosen: Detection, classes: int) -> Detector:
    """Return the detector of the chosen engine with the weights of a checkpoint, after the proof that its backbone
    gives the feature maps of the source.

    Raises UsageError for a backbone that the protocol is not for; RunError where keys, shapes or maps differ.
    """
    spec = spec_of(source.network)
    _check(source, spec, chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what detectron2 imports is deprecated here and there; nobody here can mend it
        engine = importlib.import_module(f"transfer.engines.{chosen.engine}")
    detector: Detector = engine.build(source, spec, chosen, classes)
    given = input_parity(detector.prepare, source.size, source.mean, source.std)
    maps = parity(source.network, spec, detector.stages, source.size, source.mean, source.std)
    detector.parity = [given, *maps]
    detector.freeze(chosen.freeze)
    return detector


def _check(source: Pretrained, spec: Spec, chosen: Detection) -> None:
    if chosen.expects and spec != _promised(chosen.expects):
        raise UsageError(
            f"the protocol is for {chosen.expects}, and the checkpoint holds {source.backbone.name} of another shape; "
            f"take arch={chosen.head}, which takes the backbone as it is"
        )
    if not isinstance(spec, Resnet | Swin):
        raise UsageError(f"{source.backbone.name}: a ResNet or a Swin is expected, which have four stages")
    if chosen.head == "c4" and not isinstance(spec, Resnet):
        raise UsageError(
            f"arch=c4 needs a ResNet, whose last stage is the head, not {source.backbone.name}; take arch=fpn"
        )


def _promised(name: str) -> Spec:
    """Return the shape of a timm model by its name, without weights."""
    with torch.device("meta"):
        return spec_of(build_backbone(Backbone(name, 0, {}), 224))
