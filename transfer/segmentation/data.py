"""Segmentation data: images and their labels, checked whole before training, all that is wrong in one report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from smog.errors import RunError, UsageError
from smog.identity import digest
from transfer.files import Files
from transfer.problems import Problems, some
from transfer.segmentation.check import check, doubts, notes
from transfer.segmentation.classes import Color, class_names, coding, distinct, palette
from transfer.segmentation.layouts import listing
from transfer.share import drawn


@dataclass(frozen=True)
class Pair:
    """One image and its labels."""

    id: str  # its name without ending, unique in the split
    file: str  # path of the image below the root, with /
    labels: str  # path of the label image
    height: int
    width: int


class Source(Protocol):
    """Where images and labels come from; both raise ValueError or OSError where they can't be read."""

    def pixels(self, pair: Pair) -> np.ndarray:
        """Return uint8 RGB [h, w, 3]."""

    def labels(self, pair: Pair) -> np.ndarray:
        """Return uint8 [h, w]: classes from 0, and IGNORE where a pixel is not counted."""

    def where(self, pair: Pair) -> str:
        """Return the path of the image, or what stands for one, for messages."""


@dataclass(frozen=True)
class Pairs:
    """One split: its classes, its images with their labels, and where these come from."""

    name: str
    classes: list[str]
    palette: list[Color]  # RGB, of each class
    images: list[Pair]
    counts: np.ndarray  # int32 [images, classes + 1]: pixels of each class, and in the last column those not counted
    fingerprint: str  # 12 hex digits over the classes and the names and sizes of all files
    source: Source
    notes: list[str] = field(default_factory=list)  # worth a line, and no error

    @property
    def pixels_of(self) -> np.ndarray:
        """Labelled pixels of each class, int64 [classes]."""
        return self.counts[:, :-1].sum(axis=0, dtype=np.int64)

    @property
    def ignored(self) -> int:
        """How many pixels are not counted."""
        return int(self.counts[:, -1].sum(dtype=np.int64))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image number ``index``, uint8 RGB [h, w, 3], and its labels, uint8 [h, w], IGNORE where not counted.

        Raises RunError (kind "data") where one can't be read, or has another size than at the opening.
        """
        pair = self.images[index]
        try:
            pixels, labels = self.source.pixels(pair), self.source.labels(pair)
        except (ValueError, OSError) as error:
            text = f"image or labels can't be read ({error}); mend them or take them out"
            raise RunError(f"{self.source.where(pair)}: {text}", kind="data") from None
        if not pixels.shape[:2] == labels.shape == (pair.height, pair.width):
            sizes = f"image {pixels.shape[1]} x {pixels.shape[0]}, labels {labels.shape[1]} x {labels.shape[0]}"
            text = f"{sizes}, not {pair.width} x {pair.height} pixels as before: the set was changed"
            raise RunError(f"{self.source.where(pair)}: {text}", kind="data")
        return pixels, labels


@dataclass(frozen=True)
class Labelled:
    """Images and labels in files, the numbers of the labels made classes."""

    files: Files
    kind: str
    classes: int

    def pixels(self, pair: Pair) -> np.ndarray:
        """Return the image, uint8 RGB [h, w, 3]."""
        return self.files.decode(pair.file)

    def labels(self, pair: Pair) -> np.ndarray:
        """Return the labels, uint8 [h, w]."""
        numbers = self.files.numbers(pair.labels)
        if numbers.max() > 255:
            raise ValueError(f"{pair.labels} has a label of {numbers.max()}")
        return cv2.LUT(numbers.astype(np.uint8, copy=False), coding(self.kind, self.classes, pair.labels).table)

    def where(self, pair: Pair) -> str:
        """Return the path of the image."""
        return self.files.where(pair)


def open_pairs(kind: str, root: Path, split: str, classes: str = "") -> Pairs:
    """Open ``train`` or ``val`` of a folder, or its zip, in the layout ``ade20k``, ``cityscapes`` or ``voc12aug``.

    ``classes``: a text file with a class a line, for a set of its own in ADE20K's layout. See
    transfer/segmentation/layouts.py. Raises UsageError with all that is wrong: see transfer/segmentation/check.py.
    """
    files, problems = Files(root), Problems(f"{root} {split}")
    listed, names = listing(kind, files, split, problems), class_names(kind, classes)
    counted = check(kind, files, listed.pairs, len(names), bool(classes), problems)
    problems.stop()
    if not counted.counts[:, :-1].any():
        raise UsageError(f"{root} has no labelled pixel in the split {split}: there is nothing to learn or to evaluate")
    images = [
        Pair(*pair, height, width) for pair, (height, width) in zip(listed.pairs, counted.extents.tolist(), strict=True)
    ]
    told = [*listed.notes, *notes(split, names, counted.counts)]
    if kind == "ade20k":
        told += doubts(split, counted, bool(classes))
    colors, key = distinct(len(names)) if classes else palette(kind), _key(kind, listed.key, classes)
    title = root.resolve().name.removesuffix(".zip")
    return Pairs(title, names, colors, images, counted.counts, key, Labelled(files, kind, len(names)), told)


def fingerprint(kind: str, root: Path, classes: str = "") -> str:
    """Return 12 hex digits over the classes and the names and sizes in bytes of both splits' files, unread."""
    files = Files(root)
    keys = [listing(kind, files, split, Problems(f"{root} {split}")).key for split in ("train", "val")]
    return _key(kind, keys, classes)


def _key(kind: str, keys: list[Any], classes: str) -> str:
    """Digest a listing. The names of a set's own classes are as fixed as its kind, and take seconds to import."""
    return digest([kind, class_names(kind, classes) if classes else [], keys])


def check_pair(train: Pairs, val: Pairs) -> None:
    """Refuse two splits with different classes: a label would mean one class in training and another after."""
    if train.classes == val.classes:
        return
    problems = Problems(f"{train.name}: train and val")
    for name, one, other in (("train", train, val), ("val", val, train)):
        for text in [text for text in one.classes if text not in other.classes]:
            problems.add(f"classes of {name} alone", repr(text))
    if not problems.kinds:
        problems.add("classes in another order", some([*train.classes]))
    problems.stop()


def unlearnable(train: Pairs, val: Pairs) -> list[str]:
    """Return a note where val has pixels of classes of which train has none: their IoU will be 0."""
    lost = (train.pixels_of == 0) & (val.pixels_of > 0)
    names = [name for name, gone in zip(train.classes, lost, strict=True) if gone]
    return [f"classes with pixels in val and none in train: {some(names)}: their IoU counts as 0"] if names else []


def fraction(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Return a random share of the images, 0 < share <= 1, in their order; the smaller shares of a seed lie within
    its larger ones. Raises UsageError for another share, or one that leaves nothing to learn from."""
    chosen = drawn(len(pairs.images), share, seed)
    if share == 1:
        return pairs
    images, counts = [pairs.images[place] for place in chosen], pairs.counts[chosen]
    if not counts[:, :-1].any():
        text = f"none of the {len(images)} images of the fraction {share} has a labelled pixel; take more"
        raise UsageError(f"{pairs.name}: {text}")
    key = digest([pairs.fingerprint, [image.id for image in images]])
    part = f"the fraction {share}"
    told = [
        f"{len(images)} of {len(pairs.images)} images (fraction {share}, seed {seed})",
        *notes(part, pairs.classes, counts),
    ]
    return replace(pairs, images=images, counts=counts, fingerprint=key, notes=[*pairs.notes, *told])
