"""The speed of segmentation beside the network: the reading of images for training, the start of the command, a step on
small images, and the check of a data set."""

from __future__ import annotations

import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detection import first_step, photo, seconds

from smog.pretrained import open_pretrained
from smog.tasks import settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of mmsegmentation's imports
    from mmengine.optim import build_optim_wrapper

    from transfer.segmentation.data import open_pairs
    from transfer.segmentation.training import Training, opened

PHOTOS = {"training": 64, "validation": 8}  # 640 x 480
SPLITS = {"training": "train", "validation": "val"}
GRAIN = 16  # pixels: the side of the patches of one class
CLASSES, TIMES = 150, 3
MODELS = {"resnet10_small": "resnet", "swin_tiny_patch4_window7_224": "swin", "deit_small_patch16_224": "vit"}
COMMAND = Path(__file__).resolve().parents[2] / "transfer" / "ade20k.py"


def loader_and_network(folder: Path) -> tuple[float, float, float]:
    """Return the seconds that an image takes to be read for training at crops of 512 in one process, those that a
    ResNet-50 UPerNet takes with all threads, from the second of two steps of two images, and the former as a part of
    the latter."""
    write_ade20k(folder / "set")
    training = _training("resnet50", folder, "schedule=160k", "data=ade20k", f"root={folder / 'set'}", "batch=2")
    ours = statistics.median(seconds(lambda step=step: training.batches[step]) for step in range(PHOTOS["training"]))
    step = _steps(training)
    next(step)
    peer = seconds(lambda: next(step))
    return ours / 2, peer / 2, ours / peer


def start(folder: Path) -> tuple[float, float, float]:
    """Return the seconds from the command to the end of its first step on made scenes; those of importing torch and
    mmsegmentation; and how many times as long the former are."""
    arguments = ["--ckpt", "random", "--model", "resnet50", "--data", "made", "--store", str(folder / "store")]
    command = [sys.executable, str(COMMAND), *arguments, "--set", "log_every=1"]
    imports = "import torch, transfer.bodies.mmseg"
    peer = seconds(lambda: subprocess.run([sys.executable, "-c", imports], cwd=COMMAND.parents[1], check=True))
    ours = seconds(lambda: first_step(command, folder / "store"))
    return ours, peer, ours / peer


def steps(folder: Path) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield the name of each backbone with the seconds of a step of eight crops of 64, those of the passes of the
    backbone alone, and their ratio."""
    for model, recipe in MODELS.items():
        training = _training(model, folder / model, f"recipe={recipe}", "schedule=smoke", "made_train=64", "made_val=8")
        step, images = _steps(training), torch.rand(8, 3, 64, 64)
        backbone = training.model.backbone

        def passes(backbone: Any = backbone, images: torch.Tensor = images) -> None:
            torch.stack([level.square().mean() for level in backbone(images)]).sum().backward()

        times = [(seconds(lambda step=step: next(step)), seconds(passes)) for _ in range(TIMES + 1)][1:]
        ours, peer = (statistics.median(one) for one in zip(*times, strict=True))
        yield model, (ours, peer, ours / peer)


def check(folder: Path) -> tuple[float, float, float]:
    """Return the seconds that the check takes for an image and its labels, those that OpenCV takes to decode the labels
    alone with one thread, and their ratio."""
    write_ade20k(folder / "set")
    labels = sorted((folder / "set" / "annotations" / "training").iterdir())
    ours = statistics.median(seconds(lambda: open_pairs("ade20k", folder / "set", "train")) for _ in range(TIMES))
    peer = statistics.median(seconds(lambda: [cv2.imread(str(path), 0) for path in labels]) for _ in range(TIMES))
    return ours / len(labels), peer / len(labels), ours / peer


def write_ade20k(root: Path) -> None:
    """Write photos in ADE20K's layout, with labels in small patches."""
    random = np.random.default_rng(0)
    for split, count in PHOTOS.items():
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for number in range(count):
            image = photo(random, number, SPLITS[split])
            coarse = random.integers(0, CLASSES + 1, (480 // GRAIN, 640 // GRAIN)).astype(np.uint8)
            labels = coarse.repeat(GRAIN, axis=0).repeat(GRAIN, axis=1)
            cv2.imwrite(str(root / "images" / split / f"{number}.jpg"), image)
            cv2.imwrite(str(root / "annotations" / split / f"{number}.png"), labels)


def _training(model: str, folder: Path, *more: str) -> Training:
    chosen = settings("ade20k", ["precision=fp32", "device=cpu", *more])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = [opened(chosen, split) for split in ("train", "val")]
        return Training(open_pretrained("random", model=model), chosen, *data, folder / "work")


def _steps(training: Training) -> Iterator[None]:
    """Take a step at a time, as mmengine's loop does, the reading left out."""
    model = training.model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = build_optim_wrapper(model, training.config["optim_wrapper"])
    for batch in [training.batches[step] for step in range(TIMES + 1)]:
        model.train_step(batch, optimizer)
        yield
