"""The classes of the sets, their colours, and what the numbers in their label images mean."""

from __future__ import annotations

import colorsys
import functools
import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smog.errors import UsageError
from transfer.panels import COLORS
from transfer.problems import some
from transfer.voc import CLASSES as OBJECTS

IGNORE = 255  # a pixel that is not counted
MOST = 254  # classes that labels of 8 bits can tell apart: 0 and 255 are no classes in ADE20K's coding
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}  # fmt: skip (labelIds that are evaluated, in the order of the trainIds: Cityscapes' helpers/labels.py)
LABEL_IDS = 34  # of Cityscapes; -1, the number plate, is 255 in a byte
VOC = ("background", *OBJECTS)
PALETTES = {"ade20k": "ade20k", "cityscapes": "cityscapes", "voc12aug": "voc"}  # names in mmsegmentation

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Coding:
    """What a number in a label image means."""

    table: np.ndarray  # uint8 [256]: its class, or IGNORE
    known: np.ndarray  # bool [256]: whether it may be there
    span: str  # which may be there, for messages


def coding(kind: str, classes: int, path: str = "") -> Coding:
    """Return the coding of a set of ``classes`` classes; ``path`` tells Cityscapes' two kinds of label images apart."""
    return _of_kind(kind, classes, path.endswith("_labelTrainIds.png"))


@functools.cache
def _of_kind(kind: str, classes: int, trained: bool) -> Coding:
    if kind == "ade20k":
        return _coding({0: IGNORE, **{label + 1: label for label in range(classes)}}, f"0 (not counted) to {classes}")
    if kind == "cityscapes" and not trained:
        train_ids = {number: label for label, number in enumerate(CITYSCAPES)}
        return _coding({number: train_ids.get(number, IGNORE) for number in range(LABEL_IDS)}, f"0 to {LABEL_IDS - 1}")
    return _coding({label: label for label in range(classes)}, f"0 to {classes - 1}")


def class_names(kind: str, path: str = "") -> list[str]:
    """Return the names of a set's classes, in the order of their labels.

    ``path``: a text file, one name a line, for a set of its own in ADE20K's layout. Raises UsageError where it can't be
    read, names nothing, one class twice or more than ``MOST``, and for another kind.
    """
    if path and kind != "ade20k":
        raise UsageError(f"--classes is for sets in ADE20K's layout; the classes of {kind} are fixed: leave it out")
    if path:
        return _from_file(Path(path))
    if kind == "ade20k":
        return list(_mmseg().get_classes("ade20k"))
    return list({"cityscapes": CITYSCAPES.values(), "voc12aug": VOC}[kind])


def palette(kind: str) -> list[Color]:
    """Return the colours of a set's own classes, RGB."""
    return [tuple(color) for color in _mmseg().get_palette(PALETTES[kind])]


def distinct(count: int) -> list[Color]:
    """Return colours, RGB: first those that the colour-blind tell apart, then hues around the circle."""
    return [*COLORS[:count], *(_hue(number) for number in range(count - len(COLORS)))]


def _hue(number: int) -> Color:
    """Return a colour of a sequence: the golden ratio keeps the next hue far from all before."""
    saturation, value = ((0.65, 0.9), (0.4, 0.6), (0.9, 0.7))[number % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.1 + number * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _coding(classes: Mapping[int, int], span: str) -> Coding:
    table, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    for number, label in {**classes, IGNORE: IGNORE}.items():
        table[number], known[number] = label, True
    return Coding(table, known, span)


def _from_file(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise UsageError(f"the class file {path} can't be read as text ({error})") from None
    if names == [""]:
        raise UsageError(f"the class file {path} is empty: write the name of label 1 in line 1, and so on")
    if lines := [f"line {number}" for number, name in enumerate(names, 1) if not name or not name.isprintable()]:
        raise UsageError(f"the class file {path} needs a name and nothing else in each line: mend {some(lines)}")
    if twice := [repr(name) for name, often in Counter(names).items() if often > 1]:
        raise UsageError(f"the class file {path} names a class twice: {some(twice)}")
    if len(names) > MOST:
        raise UsageError(f"the class file {path} names {len(names)} classes; labels of 8 bits hold up to {MOST}")
    return names


def _mmseg() -> Any:
    """Import mmsegmentation's tables, which takes seconds, for who needs them."""
    importlib.import_module("transfer.bodies.mmseg")  # the stand-in without which mmseg does not import
    return importlib.import_module("mmseg.utils")
