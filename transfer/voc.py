"""PASCAL VOC 07+12: trainval of both years to train, test of 2007 to evaluate, and its 11-point AP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from smog.errors import UsageError, nearest
from smog.identity import digest
from transfer.coco_check import SIDE, TOLERANCE, Problems
from transfer.coco_data import Annotated, Dataset
from transfer.evaluation import Detections, Scores
from transfer.files import Files

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PARTS = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "val": (("VOC2007", "test"),)}
THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # of the overlap, which must be above
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def open_voc(root: Path, split: str) -> Dataset:
    """Open ``train`` or ``val`` of a folder, or its zip, that holds VOC2007/ and VOC2012/, or VOCdevkit/ with them.

    Boxes become XYXY from 0 as in detectron2: the pixels xmin to xmax, counted from 1 and inclusive, are xmin - 1 to
    xmax. An object marked difficult is a crowd here: neither a target nor a mistake. Of train one year is enough; a
    note names the one that is missing. Raises UsageError with all that is wrong.
    """
    files, parts, notes = _parts(root, split)
    problems = Problems(f"{root} {split}")
    listed = list(_listed(files, parts, problems))
    found = [_image(content, number, file, problems) for number, (file, _, content) in enumerate(listed, 1)]
    problems.stop()
    images = [image for image in found if image is not None]
    if not any((~image.crowd).any() for image in images):
        raise UsageError(f"{root} has no objects in the split {split}: there is nothing to learn or to evaluate")
    return Dataset("voc", list(CLASSES), list(range(1, len(CLASSES) + 1)), images, _key(listed), files, notes)


def fingerprint(root: Path) -> str:
    """Return 12 hex digits over the annotations of both splits and the names and sizes of their images, unchecked."""
    keys = []
    for split in PARTS:
        files, parts, _ = _parts(root, split)
        keys.append(_key(_listed(files, parts, Problems(str(root)))))
    return digest(keys)


def voc_ap(dataset: Dataset, detections: Detections) -> Scores:
    """Return box_ap50, box_ap75 and box_ap (the mean over overlaps of .5 to .95), in percent, and box_ap per class.

    VOC's rules, as in the development kit and detectron2's PascalVOCDetectionEvaluator: a detection is matched to the
    object of its class that it overlaps most, and to no other; the best-scored one counts; difficult objects count
    neither way; boxes hold their last pixel; AP is the mean of 11 points. A class without objects is left out.
    Unlike detectron2, boxes and scores are not rounded before.

    ``detections``: COCO results {image_id, category_id, bbox [x, y, w, h] in pixels, score}.
    """
    rows = {number: _class_ap(dataset, detections, label) for label, number in enumerate(dataset.category_ids)}
    found = {dataset.classes[label]: ap for label, ap in enumerate(rows.values()) if ap is not None}
    table = 100 * np.array(list(found.values()))  # [class, threshold]
    means = table.mean(axis=0)
    metrics = {"box_ap": means.mean(), "box_ap50": means[0], "box_ap75": means[THRESHOLDS.index(0.75)]}
    per_class = {name: {"box_ap": float(row.mean())} for name, row in zip(found, table, strict=True)}
    return Scores({name: float(value) for name, value in metrics.items()}, per_class)


def _class_ap(dataset: Dataset, detections: Detections, label: int) -> np.ndarray | None:
    """Return the AP of one class at each threshold, float64 [10] in 0 to 1; None where it has no object."""
    truths, start = {}, 0
    for image in dataset.images:
        own = image.labels == label
        truths[image.id] = (image.boxes[own].astype(np.float64), start)
        start += int(own.sum())
    difficult = np.concatenate([image.crowd[image.labels == label] for image in dataset.images])
    number = dataset.category_ids[label]
    found = [entry for entry in detections if entry["category_id"] == number]
    order = np.argsort([-entry["score"] for entry in found], kind="stable")
    if difficult.all():
        return None
    matches = [_best(found[place]["bbox"], *truths[found[place]["image_id"]]) for place in order.tolist()]
    overlap = np.array([part for part, _ in matches])
    target = np.array([place for _, place in matches], np.int64)
    return np.array([_ap(overlap > least, target, difficult) for least in THRESHOLDS])


def _best(box: list[float], truths: np.ndarray, start: int) -> tuple[float, int]:
    """Return the largest overlap of a box XYWH with truths, float64 [n, 4] XYXY, and the number of that truth."""
    if not len(truths):
        return -1.0, 0
    x, y, width, height = box
    mine = np.array([x, y, x + width, y + height])
    # A width is x2 - x1 + 1 in VOC's count of pixels from 1, where x1 is ours plus 1 and x2 is ours.
    low, high = np.maximum(mine[:2], truths[:, :2]), np.minimum(mine[2:], truths[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    union = width * height + (truths[:, 2:] - truths[:, :2]).prod(axis=1) - common
    overlaps = common / union
    best = int(overlaps.argmax())
    return float(overlaps[best]), start + best


def _ap(matched: np.ndarray, target: np.ndarray, difficult: np.ndarray) -> float:
    """Return the 11-point AP of detections in falling order of their scores.

    ``matched`` bool [n]: overlaps its target enough; ``target`` int64 [n]; ``difficult`` bool [objects].
    """
    right = np.zeros(len(matched), bool)
    hits = np.flatnonzero(matched)
    real = hits[~difficult[target[hits]]]
    right[real[np.unique(target[real], return_index=True)[1]]] = True  # the first of each target
    wrong = ~right
    wrong[hits[difficult[target[hits]]]] = False
    good, bad = np.cumsum(right), np.cumsum(wrong)
    recall = good / (~difficult).sum()
    precision = good / np.maximum(good + bad, np.finfo(np.float64).eps)
    points = np.arange(0.0, 1.1, 0.1)  # with its rounding errors, which the development kit's successors share
    return float(np.mean([precision[recall >= point].max(initial=0) for point in points]))


def _parts(root: Path, split: str) -> tuple[Files, list[tuple[str, str]], list[str]]:
    """Return the (folder, list) pairs of a split that are there, and a note on those that are not."""
    if split not in PARTS:
        raise UsageError(f"VOC has the splits {' and '.join(PARTS)} here, not {split!r}")
    files = Files(root)
    for prefix in ("", "VOCdevkit/"):
        there = {
            (year, subset): f"{subset}.txt" in files.sizes(f"{prefix}{year}/ImageSets/Main")
            for year, subset in PARTS[split]
        }
        if any(there.values()):
            lacking = [f"{split} lacks {subset} of {year}" for (year, subset), found in there.items() if not found]
            return files, [(f"{prefix}{year}", subset) for (year, subset), found in there.items() if found], lacking
    expected = " and ".join(f"{year}/ImageSets/Main/{subset}.txt" for year, subset in PARTS[split])
    raise UsageError(f"{root} has no split {split} of VOC: expected {expected}, there or in VOCdevkit/")


def _listed(files: Files, parts: list[tuple[str, str]], problems: Problems) -> Iterator[tuple[str, int, bytes]]:
    """Yield the file of each image, its size in bytes and its annotations, where both are there."""
    for folder, subset in parts:
        pictures = files.sizes(f"{folder}/JPEGImages")
        seen: set[str] = set()
        for name in _names(files, f"{folder}/ImageSets/Main/{subset}.txt"):
            file = f"{folder}/JPEGImages/{name}.jpg"
            if name in seen:
                problems.add("images that are listed twice", file)
            elif f"{name}.jpg" not in pictures:
                problems.add("images without a file", file)
            else:
                try:
                    yield file, pictures[f"{name}.jpg"], files.read(f"{folder}/Annotations/{name}.xml")
                except (OSError, ValueError) as error:
                    problems.add("annotations that can't be read", f"{folder}/Annotations/{name}.xml: {error}")
            seen.add(name)


def _names(files: Files, path: str) -> list[str]:
    try:
        return [line.split()[0] for line in files.read(path).decode().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{files.root}/{path} can't be read ({error})") from None


def _key(listed: Iterable[tuple[str, int, bytes]]) -> str:
    return digest([[file, size, hashlib.sha256(content).hexdigest()] for file, size, content in listed])


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree, and refuses a DOCTYPE: no file of VOC has one, and its entities can fill the memory."""

    def doctype(self, *_: Any) -> None:
        raise ValueError("it has a DOCTYPE")


def _image(content: bytes, number: int, file: str, problems: Problems) -> Annotated | None:
    """Return an image with its objects, or None where something is wrong, which goes to ``problems``."""
    place = file.replace("JPEGImages", "Annotations").replace(".jpg", ".xml")
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder()))
        height, width = (int(_value(root, f"size/{name}")) for name in ("height", "width"))
        objects = root.findall("object")
        labels = [_label(entry) for entry in objects]
        crowd = [bool(int(entry.findtext("difficult") or 0)) for entry in objects]
        sides = [[_value(entry, f"bndbox/{side}") for side in _SIDES] for entry in objects]
    except (ElementTree.ParseError, ValueError) as error:
        problems.add("annotations that are not VOC's", f"{place}: {error}")
        return None
    boxes = np.array(sides, np.float64).reshape(-1, 4) - (1, 1, 0, 0)
    limits = np.array([width, height, width, height])
    cut = np.clip(boxes, 0, limits).astype(np.float32)
    if (abs(cut - boxes) > TOLERANCE).any() or (cut[:, 2:] <= cut[:, :2]).any():
        problems.add("annotations with a box outside of the image or without extent", place)
        return None
    areas = (cut[:, 2:] - cut[:, :2]).prod(axis=1)
    flags, numbers = np.array(crowd, bool), np.array(labels, np.int64)
    return Annotated(number, file, height, width, cut, numbers, flags, areas, [None] * len(labels))


def _label(entry: ElementTree.Element) -> int:
    name = _text(entry, "name")
    if name not in CLASSES:
        raise ValueError(f"{name!r} is no class of VOC{nearest(name, CLASSES)}")
    return CLASSES.index(name)


def _text(entry: ElementTree.Element, path: str) -> str:
    text = (entry.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"no {path}")
    return text


def _value(entry: ElementTree.Element, path: str) -> float:
    value = float(_text(entry, path))
    if not 0 <= value <= SIDE:  # NaN is not, either
        raise ValueError(f"{path} is {value:g}")
    return value
