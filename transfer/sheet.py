"""Pictures of a detector: truths beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faster_coco_eval.core import mask

from transfer import panels
from transfer.coco_data import Annotated, Dataset
from transfer.panels import COLORS

SCORE = 0.5  # predictions above it are shown,
BEST = 5  # or so many of the best, in thin lines, where none is above
_TINT = 0.35


def write_sheet(path: Path, dataset: Dataset, detections: Sequence[dict[str, Any]], count: int = 8) -> None:
    """Write a PNG with a row for each of the first ``count`` images that have objects: truths, predictions.

    ``detections``: COCO results {image_id, category_id, bbox [x, y, w, h] in pixels, score, maybe segmentation as RLE}.
    Raises RunError for an image that can't be read.
    """
    chosen = [place for place, image in enumerate(dataset.images) if (~image.crowd).any()][:count]
    panels.write_rows(path, [_row(dataset, place, detections) for place in chosen])


@dataclass(frozen=True)
class _Shown:
    """One object as it is drawn: ``box`` XYXY in pixels of the image, ``mask`` uint8 [h, w] or None."""

    box: np.ndarray
    label: int
    text: str
    mask: np.ndarray | None
    line: int  # pixels


def _row(dataset: Dataset, place: int, detections: Sequence[dict[str, Any]]) -> np.ndarray:
    image, pixels = dataset.images[place], dataset.read(place)
    own = [entry for entry in detections if entry["image_id"] == image.id]
    name = image.file.rpartition("/")[2]
    truth = _panel(pixels, _truths(dataset, image), f"truth  {name}")
    found = _panel(pixels, _predictions(dataset, image, own), "predictions")
    return panels.row([truth, found])


def _truths(dataset: Dataset, image: Annotated) -> list[_Shown]:
    shown = []
    for box, label, crowd, segment in zip(image.boxes, image.labels.tolist(), image.crowd, image.segments, strict=True):
        text = dataset.classes[label] + (" (crowd)" if crowd else "")
        shown.append(_Shown(box, label, text, _decoded(segment, image), 1 if crowd else 2))
    return shown


def _predictions(dataset: Dataset, image: Annotated, found: list[dict[str, Any]]) -> list[_Shown]:
    found = sorted(found, key=lambda entry: -entry["score"])
    sure = [entry for entry in found if entry["score"] > SCORE]
    shown = []
    for entry in sure or found[:BEST]:
        label = dataset.category_ids.index(entry["category_id"])
        x, y, width, height = entry["bbox"]
        segment = _decoded(entry.get("segmentation"), image)
        text = f"{dataset.classes[label]} {entry['score']:.2f}"
        shown.append(_Shown(np.array([x, y, x + width, y + height]), label, text, segment, 2 if sure else 1))
    return shown


def _decoded(segment: Any, image: Annotated) -> np.ndarray | None:
    """Return polygons or an RLE as uint8 [h, w]."""
    if segment is None:
        return None
    return mask.decode(mask.segmToRle(segment, image.width, image.height))


def _panel(pixels: np.ndarray, shown: list[_Shown], title: str) -> np.ndarray:
    """Draw objects over an image at a size where they can be told apart, below a line with the title."""
    scale, canvas = panels.scale(*pixels.shape[:2]), panels.resized(pixels)
    size = canvas.shape[1::-1]
    for one in shown:
        if one.mask is not None:
            inside = cv2.resize(one.mask, size, interpolation=cv2.INTER_NEAREST).astype(bool)
            canvas[inside] = (1 - _TINT) * canvas[inside] + _TINT * np.array(_color(one.label))
    for one in shown:
        x1, y1, x2, y2 = (int(side) for side in np.rint(one.box * scale))
        cv2.rectangle(canvas, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), _color(one.label), one.line)
    taken: list[tuple[int, int, int, int]] = []
    for one in shown:
        taken.append(_write(canvas, one, scale, taken))
    return panels.titled(canvas, title)


def _color(label: int) -> tuple[int, int, int]:
    return COLORS[label % len(COLORS)]


def _write(
    canvas: np.ndarray, one: _Shown, scale: float, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Write the name of an object at a corner of its box where the fewest names are yet; return the place, XYXY."""
    (width, height), below = cv2.getTextSize(one.text, panels.FONT, panels.SIZE, 1)
    width, height = width + 4, height + below + 2
    x1, y1, x2, y2 = (int(side) for side in np.rint(one.box * scale))
    corners = [
        (x, y)
        for y in (y1 - height, y1, y2 - height, y2, (y1 + y2 - height) // 2)
        for x in (x1, x2 - width, (x1 + x2 - width) // 2)
    ]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, canvas.shape[1] - width)), max(0, min(y, canvas.shape[0] - height))
        places.append((x, y, x + width, y + height))
    left, top, right, bottom = min(places, key=lambda place: sum(_common(place, other) for other in taken))
    color = _color(one.label)
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
    bright = np.dot(color, (0.299, 0.587, 0.114)) > 110
    ink = panels.BLACK if bright else panels.WHITE
    cv2.putText(canvas, one.text, (left + 2, bottom - below), panels.FONT, panels.SIZE, ink, 1, cv2.LINE_AA)
    return left, top, right, bottom


def _common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Return how many pixels two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)
