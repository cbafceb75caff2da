"""A generated detection set: scenes of garments with exact boxes and masks, nothing to download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask

from smog.data import scenes
from smog.errors import UsageError
from smog.identity import digest
from transfer.coco_data import Annotated, Dataset

IMAGES = {"train": 1000, "val": 250}
SIZE = 128  # pixels a side: garments of 25 to 120
OBJECTS = (1, 5)  # garments a scene, before the hidden ones are left out


@dataclass(frozen=True)
class Scenes:
    """Draws a scene anew at every call: an image is its number and nothing else."""

    split: str
    size: int
    seed: int

    def scene(self, index: int) -> scenes.Scene:
        """Return scene number ``index`` with its boxes, masks and labels."""
        return scenes.scene(self.seed, index, self.size, OBJECTS, self.split)

    def pixels(self, image: Annotated) -> np.ndarray:
        """Draw an image, uint8 RGB [size, size, 3]."""
        return self.scene(image.id - 1).image

    def where(self, image: Annotated) -> str:
        """Name an image."""
        return image.file


def open_made(split: str, images: int = 0, size: int = SIZE, seed: int = 0) -> Dataset:
    """Return the first ``images`` scenes of ``train`` or ``val``, ``size`` pixels a side; 0 images takes ``IMAGES``.

    Masks are RLE and hold what can be seen of a garment; ids count from 1. Annotations are made here, a millisecond a
    scene, images when they are read. Raises UsageError for an unknown split, no images, or too small a size.
    """
    count = images or IMAGES.get(split, 1)
    if count < 0:
        raise UsageError(f"the made set has at least one image, not {images}")
    source = Scenes(split, size, seed)
    annotated = [_annotated(source, index) for index in range(count)]
    classes = list(scenes.CLASSES)
    key = digest(["made", scenes.VERSION, split, count, size, seed, list(OBJECTS)])
    return Dataset("made", classes, list(range(1, len(classes) + 1)), annotated, key, source)


def _annotated(source: Scenes, index: int) -> Annotated:
    scene = source.scene(index)
    encoded = mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), np.uint8))
    segments = [{"size": rle["size"], "counts": _text(rle["counts"])} for rle in encoded]
    areas = scene.masks.sum(axis=(1, 2)).astype(np.float32)
    name = f"made/{source.split}/{index}"
    crowd = np.zeros(len(areas), bool)
    return Annotated(index + 1, name, source.size, source.size, scene.boxes, scene.labels, crowd, areas, segments)


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
