"""Detection over a validation set: one image at a time, shared out among the processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from smog.data.sampler import loader
from smog.distributed import gathered, rank, world_size
from transfer.coco_data import Dataset
from transfer.detector import Boxes, Detector
from transfer.loader import resize, resized
from transfer.protocols import Detection


class Images(torch.utils.data.Dataset):
    """Images at the size of testing, uint8 RGB [3, h, w]."""

    def __init__(self, dataset: Dataset, chosen: Detection) -> None:
        self.dataset, self.chosen = dataset, chosen

    def __getitem__(self, place: int) -> torch.Tensor:
        image, chosen = self.dataset.images[place], self.chosen
        height, width = resized(image.height, image.width, chosen.test_size, chosen.largest)
        pixels = resize(self.dataset.read(place), height, width)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def detect_all(detector: Detector, dataset: Dataset, chosen: Detection) -> list[dict[str, Any]]:
    """Return the detections in all images of a set in COCO's form; every rank gets those of all."""
    places = np.array_split(np.arange(len(dataset.images)), world_size())[rank()]
    start = int(places[0]) if len(places) else 0
    images = loader(Images(dataset, chosen), start, start + len(places), chosen.workers)
    found = []
    for place, pixels in zip(places.tolist(), images, strict=True):
        image = dataset.images[place]
        [boxes] = detector.detect([pixels], [(image.height, image.width)])
        found += as_coco(boxes, image.id, dataset.category_ids)
    return [one for part in gathered(found) for one in part]


def as_coco(found: Boxes, image: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return the detections in an image as COCO results: boxes as x, y, width and height."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sides], axis=1).astype(float).tolist()
    rows = [
        {"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, found.scores.astype(float).tolist(), found.labels.tolist(), strict=True)
    ]
    if found.masks is not None:
        for row, mask in zip(rows, found.masks, strict=True):
            row["segmentation"] = mask
    return rows
