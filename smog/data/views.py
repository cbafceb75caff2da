"""Random views of an image with OpenCV on uint8, each a function of (seed, epoch, index, view) alone.

Operations and their order are BYOL's (arXiv 2006.07733, appendix B): crop, flip, colour jitter in random order,
grey, blur, solarise. Normalisation is left to the device, for a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch

from smog.schema import View, Views

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB; what every checkpoint of the field expects
STD = (0.229, 0.224, 0.225)
_TRIES = 10  # torchvision's RandomResizedCrop gives up after as many
_CROP = 4  # random numbers of one try
_EACH = _TRIES * _CROP + 16  # random numbers of a view
_SOLARIZE = np.array([v if v < 128 else 255 - v for v in range(256)], np.uint8)
_GREY = (0.299, 0.587, 0.114)

cv2.setNumThreads(0)  # images are small; processes and torch's threads share the cores already


def random_numbers(seed: int, epoch: int, index: int, count: int) -> list[float]:
    """Return ``count`` numbers in [0, 1) that depend on nothing else: not on workers, processes or a resume.

    The key of a counter-based generator (Philox) is packed from the three, so there is no state to keep.
    """
    key = np.array([seed << 32 | epoch, index], np.uint64)
    words = np.random.Philox(key=key).random_raw(count)
    return ((words >> np.uint64(11)) * 2.0**-53).tolist()


def make_views(
    image: np.ndarray, views: Views, seed: int, epoch: int, index: int, large: np.ndarray, small: np.ndarray
) -> None:
    """Write all views of an image, uint8 RGB [h, w, 3]: the global crops, first and second in turn, into ``large``,
    uint8 [crops, size, size, 3], and the local ones into ``small``, uint8 [crops, local_size, local_size, 3]."""
    count = len(large) + len(small)
    numbers = random_numbers(seed, epoch, index, count * _EACH)
    for place in range(count):
        own = numbers[place * _EACH : (place + 1) * _EACH]
        if place < len(large):
            large[place] = one_view(image, views, (views.first, views.second)[place % 2], own, views.size)
        else:
            small[place - len(large)] = one_view(image, views, views.local, own, views.local_size)


def one_view(image: np.ndarray, views: Views, view: View, numbers: list[float], size: int) -> np.ndarray:
    """Return a view, uint8 RGB [size, size, 3], for random numbers in [0, 1)."""
    top, left, height, width = crop_box(image.shape[0], image.shape[1], view, numbers)
    flip, jitter, grey, blur, sigma, solarize, *color = numbers[_TRIES * _CROP :]
    patch = image[top : top + height, left : left + width]
    if flip < views.flip:
        patch = patch[:, ::-1]
    patch = resize(np.ascontiguousarray(patch), size)
    if jitter < view.jitter:
        patch = color_jitter(patch, views, color)
    if grey < view.gray:
        patch = cv2.cvtColor(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blur < view.blur:
        patch = gaussian_blur(patch, views.blur_sigma_min + sigma * (views.blur_sigma_max - views.blur_sigma_min))
    if solarize < view.solarize:
        patch = cv2.LUT(patch, _SOLARIZE)
    return patch


def crop_box(height: int, width: int, view: View, numbers: list[float]) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of torchvision's RandomResizedCrop with ratios 3/4 to 4/3."""
    for start in range(0, _TRIES * _CROP, _CROP):
        share, ratio, y, x = numbers[start : start + _CROP]
        area = height * width * (view.scale_min + share * (view.scale_max - view.scale_min))
        aspect = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))  # the widest crop in range
    return (height - h) // 2, (width - w) // 2, max(1, h), max(1, w)


def resize(patch: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square: area average when it gets smaller (PIL's antialiasing), bilinear when larger."""
    smaller = patch.shape[0] > size or patch.shape[1] > size
    return cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def color_jitter(patch: np.ndarray, views: Views, numbers: list[float]) -> np.ndarray:
    """Apply brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter does."""
    strengths = (views.brightness, views.contrast, views.saturation)
    factors = [max(0.0, 1 - s) + n * (1 + s - max(0.0, 1 - s)) for s, n in zip(strengths, numbers, strict=False)]
    factors.append((2 * numbers[3] - 1) * views.hue)
    order = sorted(range(4), key=numbers[4:8].__getitem__)
    for operation in order:
        patch = _JITTER[operation](patch, factors[operation])
    return patch


def _brightness(patch: np.ndarray, factor: float) -> np.ndarray:
    return cv2.convertScaleAbs(patch, alpha=factor)


def _contrast(patch: np.ndarray, factor: float) -> np.ndarray:
    red, green, blue, _ = cv2.mean(patch)
    mean = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    return cv2.addWeighted(patch, factor, patch, 0.0, (1 - factor) * mean)


def _saturation(patch: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(patch, factor, grey, 1 - factor, 0.0)


def _hue(patch: np.ndarray, turn: float) -> np.ndarray:
    steps = round(turn * 256) % 256
    if not steps:
        return patch  # 8-bit HSV and back is not the identity
    hsv = cv2.cvtColor(patch, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps)  # hue is a circle of 256, uint8 wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_JITTER: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (_brightness, _contrast, _saturation, _hue)


def gaussian_blur(patch: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a kernel of about a tenth of the side (23 pixels at 224), as BYOL and SimCLR do."""
    side = 2 * max(1, round(patch.shape[0] * 23 / 224) // 2) + 1
    return cv2.GaussianBlur(patch, (side, side), sigma)


def normalize(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a uint8 batch [b, h, w, 3] as normalised float32 [b, 3, h, w] on the device, channels last."""
    mean = torch.tensor(MEAN, device=device) * 255
    scale = 1 / (torch.tensor(STD, device=device) * 255)
    return (batch.to(device, non_blocking=True).float() - mean).mul_(scale).permute(0, 3, 1, 2)


def whole_view(image: np.ndarray, size: int) -> np.ndarray:
    """Return the view for evaluation, uint8 [size, size, 3]: at the size itself, the image as it is; else the
    shorter side to 256/224 of the size and the centre (the field's protocol)."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width) * (256 / 224 if size >= 96 else 1.0)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    smaller = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - size) // 2, (width - size) // 2
    return smaller[top : top + size, left : left + size]
