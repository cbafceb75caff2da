"""What sheets of pictures share: their colours, the size of a panel, its title, and rows below each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from smog.store import write_atomically

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
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GAP = 8
FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def scale(height: int, width: int) -> float:
    """Return the factor from an image to its panel."""
    long = max(height, width)
    return LONG / long if long > LONG else max(1, -(-SHORT // long))


def resized(pixels: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [h, w, 3], at the size of its panel."""
    factor = scale(*pixels.shape[:2])
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if factor >= 1 else cv2.INTER_AREA)


def titled(canvas: np.ndarray, title: str) -> np.ndarray:
    """Return a panel below a line with its title."""
    head = np.full((20, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(head, title, (2, 14), FONT, SIZE, BLACK, 1, cv2.LINE_AA)
    return np.concatenate([head, canvas])


def row(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels of one height, uint8 RGB [h, w, 3], beside each other."""
    parts = [cv2.copyMakeBorder(panel, 0, 0, 0, GAP, cv2.BORDER_CONSTANT, value=WHITE) for panel in panels]
    return np.concatenate(parts, axis=1)[:, :-GAP]


def write_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write a PNG of rows, uint8 RGB [h, w, 3], below each other; at least one."""
    width = max(one.shape[1] for one in rows)
    rows = [cv2.copyMakeBorder(one, 0, GAP, 0, width - one.shape[1], cv2.BORDER_CONSTANT, value=WHITE) for one in rows]
    _, content = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    write_atomically(path, lambda file: file.write(content.tobytes()))
