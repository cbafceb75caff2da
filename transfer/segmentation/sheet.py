"""Pictures of a segmentor: image, truth and prediction beside each other, and what the colours mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from transfer import panels
from transfer.segmentation.classes import IGNORE
from transfer.segmentation.data import Pairs

MOST = 24  # names of classes below the sheet: those of the most pixels
LONGEST = 28  # characters of a name there
NOT_COUNTED = "not counted"
_BLEND = 0.6
_STRIPE = 8  # pixels from one line of the hatching to the next
_SWATCH, _LINE, _MARGIN = 14, 20, 24


def write_sheet(path: Path, dataset: Pairs, predictions: Mapping[int, np.ndarray], count: int = 8) -> None:
    """Write a PNG with a row for each of the first ``count`` predicted images: image, truth, prediction; classes are
    tints, what is not counted is grey and hatched. Below stand the names of the classes that are seen.

    ``predictions``: uint8 [h, w] by the number of the image in the data set, at its own size; at least one. Raises
    RunError for an image that can't be read.
    """
    rows, seen = [], np.zeros(256, np.int64)
    for index in sorted(predictions)[:count]:
        pixels, truth = dataset.read(index)
        rows.append(_row(dataset, index, pixels, truth, predictions[index]))
        for labels in (truth, predictions[index]):
            seen += np.bincount(labels.ravel(), minlength=256)
    panels.write_rows(path, [*rows, _legend(dataset, seen, max(row.shape[1] for row in rows))])


def own_iou(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """Return the mean IoU of one image in percent, over the classes in its truth; None where no pixel is counted. Both
    uint8 [h, w]; pixels whose truth is 255 are left out."""
    truth, predicted = truth[truth != IGNORE], predicted[truth != IGNORE]
    shares = []
    for label in np.unique(truth):
        there, found = truth == label, predicted == label
        shares.append(np.count_nonzero(there & found) / np.count_nonzero(there | found))
    return 100 * float(np.mean(shares)) if shares else None


def _row(dataset: Pairs, index: int, pixels: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(dataset.palette)] = dataset.palette
    iou = own_iou(truth, predicted)
    drawn = {
        dataset.images[index].file.rpartition("/")[2]: panels.resized(pixels),
        "truth": _tinted(pixels, truth, table),
        "prediction  " + (NOT_COUNTED if iou is None else f"mIoU of the image {iou:.1f} %"): _tinted(
            pixels, predicted, table
        ),
    }
    return panels.row([panels.titled(canvas, title) for title, canvas in drawn.items()])


def _tinted(pixels: np.ndarray, labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Lay the colours of labels, uint8 [h, w], over an image in grey, at the size of its panel. Where classes meet each
    has its full colour: a line of one tone would cover what is thin."""
    canvas = panels.resized(pixels)
    labels = cv2.resize(labels, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colors = table[labels]
    grey = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # or its own colours shift ours
    tinted = cv2.addWeighted(grey, 1 - _BLEND, colors, _BLEND, 0)
    edge = _edges(labels)
    tinted[edge] = colors[edge]
    hidden = labels == IGNORE
    tinted[hidden] = _hatched(grey)[hidden]
    return tinted


def _edges(labels: np.ndarray) -> np.ndarray:
    """Return where a label meets another above, below, left or right of it, bool [h, w]."""
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _hatched(grey: np.ndarray) -> np.ndarray:
    """Return an image in grey, uint8 [h, w, 3], with less contrast, under lines from corner to corner."""
    hatched = grey // 3 + 85
    height, width = grey.shape[:2]
    hatched[(np.arange(height)[:, None] + np.arange(width)) % _STRIPE < 2] = 220
    return hatched


def _legend(dataset: Pairs, seen: np.ndarray, width: int) -> np.ndarray:
    """Return lines of swatches and names, uint8 RGB [h, width, 3]. ``seen``: pixels of each label, [256]."""
    labels = [label for label in np.argsort(-seen[:IGNORE], kind="stable").tolist() if seen[label]]
    entries = [(_plain(dataset.palette[label]), _short(dataset.classes[label])) for label in sorted(labels[:MOST])]
    if seen[IGNORE]:
        entries.append((_hatched(_plain((128, 128, 128))), NOT_COUNTED))
    if len(labels) > MOST:
        entries.append((_plain(panels.WHITE), f"and {len(labels) - MOST} more"))
    places, right, line = [], 0, 0
    for _, name in entries:
        needed = _SWATCH + 6 + cv2.getTextSize(name, panels.FONT, panels.SIZE, 1)[0][0] + _MARGIN
        if right and right + needed > width:
            right, line = 0, line + 1
        places.append((right, line * _LINE))
        right += needed
    canvas = np.full(((line + 1) * _LINE, width, 3), 255, np.uint8)
    for (swatch, name), (left, top) in zip(entries, places, strict=True):
        canvas[top + 3 : top + 3 + _SWATCH, left : left + _SWATCH] = swatch
        place = (left + _SWATCH + 6, top + 14)
        cv2.putText(canvas, name, place, panels.FONT, panels.SIZE, panels.BLACK, 1, cv2.LINE_AA)
    return canvas


def _plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((_SWATCH, _SWATCH, 3), color, np.uint8)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 2] + ".."
