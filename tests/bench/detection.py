"""The speed of detection beside the network: COCO's evaluation at the size of COCO's val (5,000 images, 100 detections
each, 80 classes, boxes), the reading of images, and the start of the command on a json of 5,000 images."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from smog.data import scenes
from smog.pretrained import open_pretrained
from smog.tasks import settings
from transfer.coco_data import Annotated, Dataset, open_coco
from transfer.detection import METRICS, Training
from transfer.evaluation import coco_ap
from transfer.made import Scenes

IMAGES, DETECTIONS, CLASSES = 5000, 100, 80
TIMES = 3  # of ours; the peer takes most of a minute and is measured once
SIZE = np.array([640, 480])
PHOTOS = 32  # different ones; the json names each as often as it needs
POLYGONS, POINTS = 7, 30  # of an image and of a polygon: about COCO's
COMMAND = Path(__file__).resolve().parents[2] / "transfer" / "coco.py"


def measure(images: int = IMAGES) -> tuple[float, float, float]:
    """Return the seconds of ours, those of pycocotools, and ours as a part of them, from the same detections in memory
    to the figures; both must find the same."""
    dataset, found = _task(images)
    ours = statistics.median(seconds(lambda: coco_ap(dataset, found, masks=False)) for _ in range(TIMES))
    results = copy.deepcopy(found)  # pycocotools writes into them
    stats: list[Any] = []
    peer = seconds(lambda: stats.extend(_pycocotools(dataset.coco(), results)))
    if abs(coco_ap(dataset, found, masks=False).metrics["box_ap"] - 100 * stats[0]) > 1e-9:
        raise AssertionError("ours and pycocotools differ")
    return ours, peer, ours / peer


def loader_and_network(folder: Path) -> tuple[float, float, float]:
    """Return the seconds an image takes to be read for training at a short side of 800 in one process, those that a
    ResNet-50 FPN detector of the torchvision engine takes with all threads, and the former as a part of the latter."""
    write_coco(folder / "set", PHOTOS)
    more = ["data=coco", f"root={folder / 'set'}", "engine=torchvision", "sizes=[800]", "batch=1", "precise_bn=0"]
    chosen = settings("coco", ["arch=r50_fpn", "schedule=1x", *more])
    train, val = (open_coco(folder / "set", split) for split in ("train", "val"))
    training = Training(open_pretrained("random", model="resnet50"), chosen, train, val, folder / "work")
    ours = statistics.median(seconds(lambda step=step: training.batches[step]) for step in range(PHOTOS))
    steps = [training.batches[step] for step in range(TIMES + 1)]
    peer = statistics.median([seconds(lambda samples=samples: training._one_step(samples)) for samples in steps][1:])
    return ours, peer, ours / peer


def start(folder: Path) -> tuple[float, float, float]:
    """Return the seconds from the command to the end of its first step, on a json of ``IMAGES`` images; those of
    importing torch and torchvision; and how many times as long the former are.

    The step is one of a small image: what comes before it is the same at any size.
    """
    write_coco(folder / "set", IMAGES)
    arguments = ["--ckpt", "random", "--model", "resnet50", "--data", f"coco:{folder / 'set'}", "--arch", "r50_fpn"]
    arguments += ["--schedule", "1x", "--engine", "torchvision", "--store", str(folder / "store")]
    command = [sys.executable, str(COMMAND), *arguments, "--set", "batch=1", "sizes=[64]", "log_every=1"]
    peer = seconds(lambda: subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True))
    ours = seconds(lambda: first_step(command, folder / "store"))
    return ours, peer, ours / peer


def first_step(command: list[str], store: Path) -> None:
    """Run a command until it has taken its first step, and end it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not any(path.stat().st_size for path in store.rglob(METRICS)):
                if process.poll() is not None:
                    raise AssertionError(f"it ended before its first step: {process.communicate()[1]}")
                time.sleep(0.02)
        finally:
            process.kill()


def write_coco(root: Path, images: int) -> None:
    """Write a set in COCO's layout: ``images`` to train and a tenth to evaluate, 640 x 480, with polygons."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images // 10)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        for number in range(count):
            if number < PHOTOS:
                cv2.imwrite(str(folder / f"{number}.jpg"), photo(random, number, split))
            else:
                os.link(folder / f"{number % PHOTOS}.jpg", folder / f"{number}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(_content(random, count)))


def photo(random: np.random.Generator, number: int, split: str) -> np.ndarray:
    """Return a scene with noise, uint8 [480, 640, 3]: a JPEG of about 170 kB, as a photo has."""
    width, height = SIZE.tolist()
    image = scenes.draw(0, number, width, split)[:height].astype(np.float64)
    return np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def _content(random: np.random.Generator, images: int) -> dict[str, Any]:
    """Return a json of COCO's form with POLYGONS objects an image."""
    annotations = []
    for number in range(images * POLYGONS):
        radii = random.uniform(10, 90, 2)
        centre = random.uniform(radii, SIZE - radii)
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(0.7, 1, (POINTS, 1))
        (x, y), sides = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
        annotations.append({
            "id": number + 1, "image_id": number // POLYGONS, "category_id": int(random.integers(1, CLASSES + 1)),
            "bbox": [x, y, *sides], "area": 0.6 * sides[0] * sides[1], "iscrowd": 0,
            "segmentation": [points.round(2).ravel().tolist()],
        })  # fmt: skip
    shape = {"width": int(SIZE[0]), "height": int(SIZE[1])}
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg", **shape} for number in range(images)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
    }


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


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
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
