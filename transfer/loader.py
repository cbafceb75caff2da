"""Training images by arithmetic: what a step sees is a function of (seed, step) alone, whichever process reads it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from smog.data.views import random_numbers
from smog.distributed import rank, world_size
from smog.errors import UsageError
from transfer.coco_data import Annotated, Dataset
from transfer.protocols import Detection


@dataclass(frozen=True)
class Sample:
    """An image for training, uint8 RGB [3, h, w], with n objects: boxes float32 [n, 4] XYXY, labels int64 [n], masks
    uint8 [n, h, w]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


class Batches(TorchDataset):
    """The part of each step's batch that is this process's: a list of samples, images of one orientation together, as
    detectron2 groups them, so that little is padded."""

    def __init__(self, dataset: Dataset, settings: Detection) -> None:
        self.dataset, self.settings = dataset, settings
        self.world, self.rank = world_size(), rank()
        usable = [place for place, image in enumerate(dataset.images) if self.trained_on(image).any()]
        wide = np.array([dataset.images[place].width >= dataset.images[place].height for place in usable], bool)
        self.groups = [np.array(usable)[wide], np.array(usable)[~wide]]
        self.per_epoch = len(usable) // settings.batch
        if not self.per_epoch:
            raise UsageError(
                f"batch={settings.batch} is above the {len(usable)} training images with objects; take "
                f"batch={len(usable)} or less: the rate and the steps follow"
            )
        self.part = settings.micro_batch or settings.batch
        if self.part % self.world:
            micro = f" in micro-batches of {self.part}" if settings.micro_batch else ""
            raise UsageError(
                f"batch={settings.batch}{micro} can't be shared evenly by {self.world} processes: take a multiple of "
                f"{self.world}"
            )

    def indices(self, step: int) -> np.ndarray:
        """Return the images of a step, int64 [batch]."""
        epoch, place = divmod(step, self.per_epoch)
        return _epoch(self, epoch)[place]

    def own(self, step: int) -> np.ndarray:
        """Return this process's images of a step, int64 [b]: an equal part of each micro-batch, in order of rank."""
        return self.indices(step).reshape(-1, self.world, self.part // self.world)[:, self.rank].flatten()

    def __getitem__(self, step: int) -> list[Sample]:
        return [self.sample(index, step // self.per_epoch) for index in self.own(step).tolist()]

    def trained_on(self, image: Annotated) -> np.ndarray:
        """Say which objects of an image are trained on, bool [n]: no crowds, but VOC's difficult ones, which are marked
        alike; detectron2 does the same."""
        return np.ones_like(image.crowd) if self.settings.data == "voc" else ~image.crowd

    def sample(self, index: int, epoch: int) -> Sample:
        """Return an image with its objects, at a short side drawn from ``sizes`` and mirrored at random."""
        chosen, image = self.settings, self.dataset.images[index]
        short, mirror = random_numbers(chosen.seed, epoch, index, 2)
        size = chosen.sizes[int(short * len(chosen.sizes))]
        height, width = resized(image.height, image.width, size, chosen.largest)
        pixels = resize(self.dataset.read(index), height, width)
        keep = self.trained_on(image)
        boxes = image.boxes[keep] * np.array([width / image.width, height / image.height] * 2, np.float32)
        masks = _masks(image, keep, height, width) if chosen.masks else None
        if mirror < chosen.flip:
            pixels = pixels[:, ::-1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
            masks = None if masks is None else masks[:, :, ::-1]
        return Sample(
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(np.ascontiguousarray(boxes)),
            torch.from_numpy(image.labels[keep]),
            None if masks is None else torch.from_numpy(np.ascontiguousarray(masks)),
        )


@functools.lru_cache(maxsize=2)
def _epoch(batches: Batches, epoch: int) -> np.ndarray:
    """Return the batches of an epoch, int64 [per_epoch, batch]. What neither orientation fills makes mixed ones."""
    size = batches.settings.batch
    random = np.random.Generator(np.random.Philox(key=np.array([batches.settings.seed, epoch], np.uint64)))
    shuffled = [random.permutation(group) for group in batches.groups]
    whole = [group[: len(group) // size * size] for group in shuffled]
    rest = np.concatenate([group[len(part) :] for group, part in zip(shuffled, whole, strict=True)])
    rest = random.permutation(rest)
    rows = np.concatenate([*whole, rest[: len(rest) // size * size]]).reshape(-1, size)
    return random.permutation(rows)


def resized(height: int, width: int, short: int, largest: int) -> tuple[int, int]:
    """Return height and width with the short side at ``short``, or less where the long one would be above ``largest``
    (detectron2's ResizeShortestEdge)."""
    scale = min(short / min(height, width), largest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the image, uint8 [h, w, 3], at another size, by Pillow's bilinear filter as detectron2 does."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _masks(image: Annotated, keep: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the masks of the kept objects at the size of training, uint8 [n, height, width]."""
    masks = np.zeros((int(keep.sum()), height, width), np.uint8)
    scale = np.array([width / image.width, height / image.height])
    for mask, place in zip(masks, np.flatnonzero(keep), strict=True):
        segment = image.segments[place]
        if isinstance(segment, dict):
            packed = isinstance(segment["counts"], str | bytes)
            whole = rle.decode(segment if packed else rle.frPyObjects(segment, image.height, image.width))
            mask[:] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_NEAREST)
        else:
            parts = [(np.reshape(part, (-1, 2)) * scale).ravel().tolist() for part in segment]
            mask[:] = rle.decode(rle.merge(rle.frPyObjects(parts, height, width)))
    return masks
