"""The speed of COCO's evaluation at the size of COCO's val: 5,000 images, 100 detections each, 80 classes, boxes."""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from transfer.coco_data import Annotated, Dataset
from transfer.evaluation import coco_ap
from transfer.made import Scenes

IMAGES, DETECTIONS, CLASSES = 5000, 100, 80
TIMES = 3  # of ours; the peer takes most of a minute and is measured once
SIZE = np.array([640, 480])


def measure(images: int = IMAGES) -> tuple[float, float, float]:
    """Return the seconds of ours, those of pycocotools, and ours as a part of them, from the same detections in memory
    to the figures; both must find the same."""
    dataset, found = _task(images)
    ours = statistics.median(_seconds(lambda: coco_ap(dataset, found, masks=False)) for _ in range(TIMES))
    results = copy.deepcopy(found)  # pycocotools writes into them
    stats: list[Any] = []
    peer = _seconds(lambda: stats.extend(_pycocotools(dataset.coco(), results)))
    if abs(coco_ap(dataset, found, masks=False).metrics["box_ap"] - 100 * stats[0]) > 1e-9:
        raise AssertionError("ours and pycocotools differ")
    return ours, peer, ours / peer


def _pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        run = COCOeval(index, index.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _task(images: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Return made truths, 1 to 14 objects of up to 3 classes an image, and detections around them."""
    random = np.random.default_rng(0)
    annotated, found = [], []
    for number in range(1, images + 1):
        count = int(random.integers(1, 15))
        labels = random.choice(random.integers(0, CLASSES, 3), count)
        sides = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
        corners = random.uniform(0, 1, (count, 2)) * (SIZE - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        crowd, areas = random.random(count) < 0.01, (0.7 * sides.prod(axis=1)).astype(np.float32)
        annotated.append(Annotated(number, "", 480, 640, boxes, labels, crowd, areas, [None] * count))
        found += _detections(random, number, labels, corners, sides)
    names = [f"class {number}" for number in range(CLASSES)]
    return Dataset("bench", names, list(range(1, CLASSES + 1)), annotated, "", Scenes("val", 480, 0)), found


def _detections(
    random: np.random.Generator, number: int, labels: np.ndarray, corners: np.ndarray, sides: np.ndarray
) -> list[dict[str, Any]]:
    near = random.integers(0, len(labels), DETECTIONS)
    shift = random.normal(0, 0.15, (DETECTIONS, 4)) * np.tile(sides[near], 2)
    boxes = np.concatenate([corners[near], sides[near]], axis=1) + shift
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
    right = random.random(DETECTIONS) < 0.6
    chosen = np.where(right, labels[near], random.integers(0, CLASSES, DETECTIONS)) + 1
    rows = zip(chosen.tolist(), boxes.tolist(), random.random(DETECTIONS).tolist(), strict=True)
    return [{"image_id": number, "category_id": label, "bbox": box, "score": score} for label, box, score in rows]
