"""A generated segmentation set: scenes of garments with exact labels, nothing to download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smog.data import scenes
from smog.errors import UsageError
from smog.identity import digest
from transfer.made import OBJECTS, Scenes
from transfer.segmentation.classes import distinct
from transfer.segmentation.data import Pair, Pairs

CLASSES = ("background", *scenes.CLASSES)
BACKGROUND = (0, 0, 0)


@dataclass(frozen=True)
class Painted:
    """Draws a scene and its labels anew at every call: a pair is its number and nothing else."""

    scenes: Scenes

    def pixels(self, pair: Pair) -> np.ndarray:
        """Draw an image, uint8 RGB [size, size, 3]."""
        return self.scenes.scene(int(pair.id)).image

    def labels(self, pair: Pair) -> np.ndarray:
        """Return the labels of what can be seen, uint8 [size, size]: 0 on the ground, from 1 on a garment."""
        return labels_of(self.scenes.scene(int(pair.id)))

    def where(self, pair: Pair) -> str:
        """Name an image."""
        return pair.file


def open_made(split: str, images: int, size: int, seed: int = 0) -> Pairs:
    """Return the first ``images`` scenes of ``train`` or ``val``, ``size`` pixels a side.

    Scenes are drawn once here, a millisecond each, to count their labels, and again when they are read. Raises
    UsageError for an unknown split, no images, or too small a size.
    """
    if images < 1:
        raise UsageError(f"the made set has at least one image, not {images}")
    source = Scenes(split, size, seed)
    drawn = (labels_of(source.scene(index)) for index in range(images))
    counts = np.array([np.bincount(labels.ravel(), minlength=len(CLASSES) + 1) for labels in drawn], np.int32)
    names = [f"made/{split}/{index}" for index in range(images)]
    pairs = [Pair(str(index), name, name, size, size) for index, name in enumerate(names)]
    key = digest(["made segmentation", scenes.VERSION, split, images, size, seed, list(OBJECTS)])
    colors = [BACKGROUND, *distinct(len(scenes.CLASSES))]
    return Pairs("made", list(CLASSES), colors, pairs, counts, key, Painted(source))


def labels_of(scene: scenes.Scene) -> np.ndarray:
    """Return the class of each pixel of a scene, uint8 [h, w]: 0 on the ground, from 1 on a garment."""
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for mask, label in zip(scene.masks, scene.labels.tolist(), strict=True):
        labels[mask] = label + 1
    return labels
