"""Pictures of a detector: truths beside predictions, and the curves of its training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faster_coco_eval.core import mask

from smog.store import write_atomically
from transfer.coco_data import Annotated, Dataset

LONG = 640  # pixels of a panel's long side: larger images are scaled down to it
SHORT = 400  # and smaller ones up to at least this, by a whole number, so that text and lines keep their size
COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)  # fmt: skip (Okabe and Ito's, RGB: told apart by the colour-blind; classes beyond take them again)
AP = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")  # the curves of the lower figure
SCORE = 0.5  # predictions above it are shown,
BEST = 5  # or so many of the best, in thin lines, where none is above
_TINT = 0.35
_GAP = 8
WHITE = (255, 255, 255)
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def write_sheet(path: Path, dataset: Dataset, detections: Sequence[dict[str, Any]], count: int = 8) -> None:
    """Write a PNG with a row for each of the first ``count`` images that have objects: truths, predictions.

    ``detections``: COCO results {image_id, category_id, bbox [x, y, w, h] in pixels, score, maybe segmentation as RLE}.
    Raises RunError for an image that can't be read.
    """
    chosen = [place for place, image in enumerate(dataset.images) if (~image.crowd).any()][:count]
    rows = [_row(dataset, place, detections) for place in chosen]
    width = max(row.shape[1] for row in rows)
    rows = [cv2.copyMakeBorder(row, 0, _GAP, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=WHITE) for row in rows]
    _, content = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    write_atomically(path, lambda file: file.write(content.tobytes()))


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
    return np.concatenate([truth, np.full((len(truth), _GAP, 3), 255, np.uint8), found], axis=1)


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
    scale = _scale(*pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    canvas = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA)
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
    head = np.full((20, size[0], 3), 255, np.uint8)
    cv2.putText(head, title, (2, 14), _FONT, _SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([head, canvas])


def _scale(height: int, width: int) -> float:
    long = max(height, width)
    return LONG / long if long > LONG else max(1, -(-SHORT // long))


def _color(label: int) -> tuple[int, int, int]:
    return COLORS[label % len(COLORS)]


def _write(
    canvas: np.ndarray, one: _Shown, scale: float, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Write the name of an object at a corner of its box where the fewest names are yet; return the place, XYXY."""
    (width, height), below = cv2.getTextSize(one.text, _FONT, _SCALE, 1)
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
    ink = (0, 0, 0) if bright else WHITE
    cv2.putText(canvas, one.text, (left + 2, bottom - below), _FONT, _SCALE, ink, 1, cv2.LINE_AA)
    return left, top, right, bottom


def _common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Return how many pixels two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def write_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a figure of a training: above, loss and every loss_* over the step; below, AP in percent.

    ``rows``: {step, loss, loss_*} and {step, box_ap, mask_ap, ...}, as in the log. Its format is that of the name.
    """
    from matplotlib.figure import Figure  # here, since it takes a second to import

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    losses = sorted({name for row in rows for name in row if name.partition("_")[0] == "loss"})
    figures = [name for name in AP if any(name in row for row in rows)]
    for axes, names, marker in ((above, losses, ""), (below, figures, "o")):
        for number, name in enumerate(names):
            points = [(row["step"], row[name]) for row in rows if name in row]
            color = [part / 255 for part in COLORS[number % len(COLORS)]]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name.replace("_", " "))
        if names:
            axes.legend(frameon=False, ncols=2)
        axes.grid(alpha=0.3)
    above.set(ylabel="loss", ylim=(0, None))
    below.set(ylabel="AP (%)", xlabel="step", ylim=(0, None))
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=120)
    write_atomically(path, lambda file: file.write(content.getvalue()))
