"""Made scenes: real garments at random place, size, angle and tint on plain grounds, with exact boxes and masks.

Every pixel depends on (seed, index, split) and the size alone: the random numbers are the raw words of a counter-based
generator, whose stream numpy guarantees, and all drawing is integer arithmetic. `draw` is a `scene` of one object.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from smog.errors import UsageError, nearest

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
VERSION = 1  # raised when the same (seed, index) would give other pixels: it is part of the identity of every run
FILE = Path(__file__).parent / "garments" / "garments.npz"

# The design. Nothing here depends on the picture, so neither ground nor tint nor place tells the class.
# Grounds, RGB, all of the same luma (48): what a colour jitter leaves of them says nothing about the image.
GROUNDS = ((23, 52, 94), (101, 25, 25), (18, 69, 17), (61, 48, 15), (79, 23, 93), (15, 62, 62))
SIDE = (0.45, 0.95)  # of a picture, in parts of the image's short side; with n objects times n ** SHRINK
SHRINK = -0.4
ANGLE = 30.0  # degrees, to either side
SATURATION = (0.2, 0.8)
VALUE = (0.75, 1.0)  # brightness of a garment: it must stand out from the ground
VISIBLE = 0.25  # an object of which a smaller part can be seen is left out of the scene
MIN_SIZE = 8  # pixels; on a smaller image nothing can be recognised

_MARGIN = 2  # pixels around a sprite, so that its edge can blend
_SPRITE = 28 + 2 * _MARGIN
_AROUND = np.ones((3, 3), np.uint8)
_FIXED = 16  # binary places of a position in the sprite
_REMAP = 5  # binary places that cv2.remap takes
_FRACTION = 2**_REMAP - 1
_TONE = 90 + np.arange(256) * 165 // 255  # brightness of a grey level; not from 0, or dark cloth would have no tint
_EDGE = 104  # of 255: the outline in the blurred cover, a little outside its half, so that thin straps survive
_HEAD, _EACH = 2, 9  # random numbers of a scene, and of each object


@dataclass(frozen=True)
class Pictures:
    """Fashion-MNIST cut-outs, uint8 [n, 28, 28], 0 exactly where there is no garment; labels int64 [n]."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image and its objects, the farthest first. Masks hold the visible parts, so they are disjoint."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    boxes: np.ndarray  # float32 [n, 4], XYXY in pixels, tight around the masks; x2 and y2 lie behind the last pixel
    masks: np.ndarray  # bool [n, h, w]
    labels: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class _Patch:
    """One drawn garment and the place of its upper left corner in the image (its pixels all lie in the image)."""

    top: int
    left: int
    alpha: np.ndarray  # uint8 [ph, pw], how much of the ground is covered
    color: np.ndarray  # uint8 [3, ph, pw]
    label: int

    @property
    def at(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@functools.cache
def pictures() -> Pictures:
    """Return the embedded pictures; they are read once a process."""
    with np.load(FILE, allow_pickle=False) as file:
        labels = {split: file[f"{split}_labels"].astype(np.int64) for split in ("train", "test")}
        return Pictures(file["train"], labels["train"], file["test"], labels["test"])


def count(split: str) -> int:
    """Return how many pictures a split has; images beyond show them again in other scenes."""
    return len(_of(split)[1])


def label(index: int, split: str) -> int:
    """Return the class of image number ``index``."""
    labels = _of(split)[1]
    return int(labels[index % len(labels)])


def draw(seed: int, index: int, size: int, split: str) -> np.ndarray:
    """Return image number ``index``, uint8 RGB [size, size, 3]: one garment, picture ``index`` of the split."""
    return scene(seed, index, size, (1, 1), split).image


def scene(
    seed: int, index: int, size: int | tuple[int, int], objects: tuple[int, int] = (1, 8), split: str = "train"
) -> Scene:
    """Return scene number ``index``: ``size`` is (height, width) or the side in pixels, ``objects`` a range of counts.

    The farthest object is picture ``index`` of the split, the others are any. Later objects cover earlier ones; one of
    which less than ``VISIBLE`` of the mask can be seen is not painted, so that nothing in the image is without a label.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    low, high = objects
    if min(height, width) < MIN_SIZE:
        raise UsageError(f"a scene has at least {MIN_SIZE} pixels a side, not {height} x {width}")
    if not 1 <= low <= high:
        raise UsageError(f"a scene has at least one object, from a number to a larger one, not {low} to {high}")
    random = _random(seed, index, split, _HEAD + _EACH * high)
    number = low + int(next(random) * (high - low + 1))
    ground = GROUNDS[int(next(random) * len(GROUNDS))]
    patches, masks = _visible(_patches(random, number, index, split, (height, width)), height, width)
    planes = np.empty((3, height, width), np.uint8)  # long rows, for speed
    planes[:] = np.array(ground)[:, None, None]
    for patch in patches:
        _paint(planes, patch)
    return Scene(cv2.merge(list(planes)), _boxes(masks), masks, np.array([patch.label for patch in patches], np.int64))


def _of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures and the labels of a split; ours for validation are from the original test split."""
    known = pictures()
    splits = {"train": (known.train, known.train_labels), "val": (known.test, known.test_labels)}
    if split not in splits:
        raise UsageError(f"the garments have no split {split!r}{nearest(split, splits)}")
    return splits[split]


def _random(seed: int, index: int, split: str, count: int) -> Iterator[float]:
    """Yield ``count`` numbers in [0, 1) that depend on (seed, index, split) alone, the same in every numpy."""
    if min(seed, index) < 0:
        raise UsageError(f"seed and index of a scene are not negative, not {seed} and {index}")
    words = np.random.Philox(key=np.array([seed, 2 * index + (split == "val")], np.uint64)).random_raw(count)
    return (word * 2.0**-53 for word in (words >> np.uint64(11)).tolist())


def _patches(random: Iterator[float], objects: int, index: int, split: str, size: tuple[int, int]) -> list[_Patch]:
    """Draw ``objects`` garments for an image of ``size`` (height, width), the first of picture ``index``."""
    images, labels = _of(split)
    patches = []
    for number in range(objects):
        pick, mirror, side, turn, y, x, hue, saturation, value = (next(random) for _ in range(_EACH))
        picture = int(pick * len(images)) if number else index % len(images)
        scale = _between(SIDE, side) * objects**SHRINK * min(size) / 28
        angle = math.radians(_between((-ANGLE, ANGLE), turn))
        centre = [_centre(part, extent, 28 * scale) for part, extent in zip((y, x), size, strict=True)]
        top, left, warped = _warp(_sprite(images[picture], mirror < 0.5), scale, angle, centre, size)
        grey, cover = cv2.split(warped)
        color = np.stack([cv2.LUT(grey, tint) for tint in _colors(hue, saturation, value)])
        patches.append(_Patch(top, left, cv2.LUT(cover, _cover(scale)), color, int(labels[picture])))
    return patches


def _centre(part: float, extent: int, side: float) -> float:
    """Return the middle of a picture of ``side`` pixels in an image of ``extent`` pixels, for a part in [0, 1)."""
    return extent / 2 + (part - 0.5) * max(0.0, extent - side)


def _colors(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return the color of each grey level, uint8 [3, 256], for three random numbers in [0, 1)."""
    tint = colorsys.hsv_to_rgb(hue, _between(SATURATION, saturation), _between(VALUE, value))
    return (_TONE * np.array([[round(255 * part)] for part in tint]) // 255).astype(np.uint8)


def _between(limits: tuple[float, float], part: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * part


def _sprite(picture: np.ndarray, mirrored: bool) -> np.ndarray:
    """Return grey level and blurred cover of a cut-out, uint8 [_SPRITE, _SPRITE, 2]."""
    grey = np.zeros((_SPRITE, _SPRITE), np.uint8)
    grey[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = picture[:, ::-1] if mirrored else picture
    cover = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY)[1]
    inner = cv2.erode(cover, _AROUND)
    grey = np.where(inner, grey, cv2.dilate(grey, _AROUND))  # the originals blend their edge with black
    return cv2.merge([grey, cv2.GaussianBlur(cover, (3, 3), 0)])


def _warp(
    sprite: np.ndarray, scale: float, angle: float, centre: list[float], size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """Return the sprite scaled and turned, cut to the part of the image it can touch: (top, left, uint8 [ph, pw, 2]).

    Positions are whole numbers of 2**-16 sprite pixels, since floats may differ in the last place between machines.
    """
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    reach = scale * scale * (14 + _MARGIN) * (abs(cos) + abs(sin))
    top, left = (max(0, math.floor(middle - reach)) for middle in centre)
    bottom, right = (min(extent, math.ceil(middle + reach)) for middle, extent in zip(centre, size, strict=True))
    y = np.arange(top, bottom)[:, None] * 2**_FIXED + round((0.5 - centre[0]) * 2**_FIXED)
    x = np.arange(left, right) * 2**_FIXED + round((0.5 - centre[1]) * 2**_FIXED)
    cosine, sine = round(cos * 2**_FIXED), round(sin * 2**_FIXED)
    middle = (_SPRITE - 1) * 2 ** (_FIXED - 1)
    across = _short(cosine * x) + _short(sine * y + (middle << _FIXED))
    down = _short(-sine * x) + _short(cosine * y + (middle << _FIXED))
    whole = cv2.merge([across >> _REMAP, down >> _REMAP])
    rest = (down & _FRACTION) << _REMAP | across & _FRACTION
    return top, left, cv2.remap(sprite, whole, rest.astype(np.uint16), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _short(place: np.ndarray) -> np.ndarray:
    """Return what holds twice ``_FIXED`` binary places with ``_REMAP``, int16."""
    return (place >> (2 * _FIXED - _REMAP)).astype(np.int16)


def _cover(scale: float) -> np.ndarray:
    """Return the alpha of each level of blurred cover, uint8 [256]: the larger a garment, the steeper its edge.

    So the edge stays about a pixel wide; the least slope is the one that maps no cover to 0.
    """
    slope = max(128 / _EDGE, scale)
    return np.clip(((np.arange(256) - _EDGE) * round(256 * slope) >> 8) + 128, 0, 255).astype(np.uint8)


def _visible(patches: list[_Patch], height: int, width: int) -> tuple[list[_Patch], np.ndarray]:
    """Return the patches that can be seen well enough and their visible masks, bool [n, height, width]."""
    free = np.ones((height, width), bool)
    kept = []
    for patch in reversed(patches):  # from the nearest on, so that what is left out covers nothing
        mask = patch.alpha >= 128
        seen = mask & free[patch.at]
        if seen.any() and seen.sum() >= VISIBLE * mask.sum():
            free[patch.at] &= ~mask
            kept.append((patch, seen))
    masks = np.zeros((len(kept), height, width), bool)
    for canvas, (patch, seen) in zip(masks, reversed(kept), strict=True):
        canvas[patch.at] = seen
    return [patch for patch, _ in reversed(kept)], masks


def _paint(planes: np.ndarray, patch: _Patch) -> None:
    """Blend a garment into the image, uint8 [3, h, w], in place."""
    ground = planes[:, *patch.at]
    alpha = patch.alpha.astype(np.uint16)
    total: np.ndarray = ground * (255 - alpha) + patch.color * alpha + np.uint16(128)
    ground[:] = total + (total >> 8) >> 8  # total / 255, rounded


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return tight boxes, float32 [n, 4], XYXY, of masks that each hold a pixel, bool [n, h, w]."""
    (x1, x2), (y1, y2) = (_extent(np.any(masks, axis=axis)) for axis in (1, 2))
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def _extent(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first True of each line, bool [n, length], and the place behind the last."""
    return lines.argmax(axis=1), lines.shape[1] - lines[:, ::-1].argmax(axis=1)
