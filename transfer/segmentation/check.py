"""What must hold of images and labels before anything is trained on them. All that is wrong is told at once.

Refused: files that can't be read, label images in colours, numbers that the set does not have, labels of another size
than their image. Every label image is decoded, and of the images their heads: minutes of work on a full set for one
core, which threads share (decoders let go of Python's lock).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from smog.environment import cores
from transfer.files import ColorError, Files
from transfer.problems import Problems, some
from transfer.segmentation.classes import IGNORE, Coding, coding
from transfer.segmentation.layouts import Listed

SAMPLE = 100  # images that are decoded whole, spread evenly: all of a small set, a second of a large one
BLOCK = 2**24  # pixels that are counted at once: OpenCV's counts are float32, exact up to here
SHOWN = 5  # numbers of one label image, in messages
COLORED = {
    "ade20k": "ADE20K's full release colours them; take its SceneParsing release ADEChallengeData2016, or convert them",
    "cityscapes": "*_color.png are pictures of the labels; take *_labelIds.png",
    "voc12aug": "VOC's own are PNGs with a palette; fetch them again, or convert them with it",
}


@dataclass(frozen=True)
class Counted:
    """Checked pairs in columns."""

    extents: np.ndarray  # int64 [n, 2], height and width
    counts: np.ndarray  # int32 [n, classes + 1], pixels of each class; in the last column those that are not counted
    outside: int  # label images that hold 255


@dataclass(frozen=True)
class _Seen:
    """What one pair was found to be."""

    extent: tuple[int, int]
    pixels: np.ndarray  # int64 [256], by the number in the label image
    wrong: tuple[str, str] | None = None  # the kind of what is wrong, and this example of it
    unknown: tuple[int, ...] = ()  # numbers that the set does not have


def check(kind: str, files: Files, pairs: Sequence[Listed], classes: int, named: bool, problems: Problems) -> Counted:
    """Look at every pair; what is wrong goes to ``problems``. Linear in the files.

    ``classes``: how many the set has; ``named``: whether they are those of a class file.
    """
    whole = set(np.linspace(0, len(pairs) - 1, min(SAMPLE, len(pairs))).astype(int).tolist())
    look = partial(_look, kind, files, classes)
    with ThreadPoolExecutor(cores()) as threads:
        seen = list(threads.map(look, pairs, [place in whole for place in range(len(pairs))]))
    for one in seen:
        if one.wrong:
            problems.add(*one.wrong)
    _range(kind, pairs, seen, classes, named, problems)
    extents = np.array([one.extent for one in seen], np.int64).reshape(-1, 2)
    counts = np.zeros((len(seen), classes + 1), np.int32)
    for row, one, pair in zip(counts, seen, pairs, strict=True):
        table = np.minimum(coding(kind, classes, pair.labels).table, classes)
        row += np.bincount(table, one.pixels, classes + 1).astype(np.int32)
    return Counted(extents, counts, sum(one.pixels[IGNORE] > 0 for one in seen))


def notes(split: str, classes: Sequence[str], counts: np.ndarray) -> list[str]:
    """Return what is worth a line: classes without a pixel, images in which nothing is counted.

    ``counts``: [n, classes + 1], as in Counted.
    """
    found = []
    if absent := [name for name, most in zip(classes, counts[:, :-1].max(axis=0).tolist(), strict=True) if not most]:
        found.append(f"classes without a pixel in {split}: {some(absent)} ({len(absent)} of {len(classes)})")
    if empty := int((~counts[:, :-1].any(axis=1)).sum()):
        found.append(f"{empty} images of {split} have no labelled pixel")
    return found


def doubts(split: str, counted: Counted, named: bool) -> list[str]:
    """Return notes on a set in ADE20K's layout that may mean other things by its numbers."""
    found = []
    present = np.flatnonzero(counted.counts[:, :-1].max(axis=0))
    classes = counted.counts.shape[1] - 1
    if not named and 2 * len(present) < classes:
        hint = "if this is another set, name its classes by --classes FILE"
        found.append(f"labels of {split} go up to {present.max() + 1}, ADE20K's to {classes}: {hint}")
    if counted.outside:
        hint = "where a set counts its classes from 0, add 1 to its numbers"
        found.append(f"{counted.outside} label images of {split} hold 255, which is not counted, nor is 0: {hint}")
    return found


def _look(kind: str, files: Files, classes: int, pair: Listed, whole: bool) -> _Seen:
    nothing = (0, 0), np.zeros(256, np.int64)
    try:
        numbers = files.numbers(pair.labels)
    except ColorError as error:
        text = f"label images that are colour pictures, not class numbers: {COLORED[kind]}"
        return _Seen(*nothing, (text, f"{pair.labels}: {error}"))
    except (ValueError, OSError) as error:
        return _Seen(*nothing, ("label images that can't be read", f"{pair.labels}: {error}"))
    try:
        extent = files.decode(pair.file).shape[:2] if whole else files.extent(pair.file)
    except (ValueError, OSError) as error:
        return _Seen(*nothing, ("images that can't be read", f"{pair.file}: {error}"))
    height, width = numbers.shape
    pixels, unknown = _numbers(numbers, coding(kind, classes, pair.labels))
    if extent == (height, width):
        return _Seen(extent, pixels, None, unknown)
    text = f"{pair.file}: {extent[1]} x {extent[0]}, its labels {width} x {height}"
    return _Seen(extent, pixels, ("images of another size than their labels", text), unknown)


def _numbers(numbers: np.ndarray, code: Coding) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return how often each number up to 255 is there, int64 [256], and which are there that the set does not have."""
    high: tuple[int, ...] = ()
    if numbers.dtype != np.uint8:
        high = tuple(np.unique(numbers[numbers > 255]).tolist())
        numbers = numbers[numbers <= 255].astype(np.uint8)
    pixels = np.zeros(256, np.int64)
    flat = np.ascontiguousarray(numbers).reshape(-1)
    for start in range(0, len(flat), BLOCK):
        pixels += cv2.calcHist([flat[start : start + BLOCK]], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return pixels, (*np.flatnonzero(pixels.astype(bool) & ~code.known).tolist(), *high)


def _range(
    kind: str, pairs: Sequence[Listed], seen: Sequence[_Seen], classes: int, named: bool, problems: Problems
) -> None:
    """Tell of numbers out of range, with the largest of all of them."""
    largest = max((number for one in seen for number in one.unknown), default=0)
    hint = ""
    if named:
        hint = (
            f"; the class file has {classes} names, the largest label is {largest}: line N names label N, 0 has no name"
        )
    elif kind == "ade20k":
        hint = f"; these are ADE20K's, the largest here is {largest}: --classes FILE names the classes of another set"
    for pair, one in zip(pairs, seen, strict=True):
        if one.unknown:
            span = coding(kind, classes, pair.labels).span
            shown = ", ".join(map(str, one.unknown[:SHOWN])) + (" ..." if len(one.unknown) > SHOWN else "")
            problems.add(f"label images with numbers other than {span} and 255{hint}", f"{pair.labels}: {shown}")
