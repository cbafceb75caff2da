"""What a transfer task is asked to do: its settings. Light: planning looks at nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from smog.errors import UsageError
from smog.schema import runtime_field
from smog.tasks import protocol
from smog.tasks.protocols import TASKS, Settings, ranges, same_data
from transfer.segmentation import protocol as segmentation

ENGINES = ("auto", "detectron2", "torchvision")
HEADS = ("fpn", "c4")
DATA = ("made", "coco", "voc")
KEYS = {
    "engine": ENGINES,
    "head": HEADS,
    "data": DATA,
    "optimizer": ("sgd", "adamw"),
    "precision": ("auto", "fp32", "bf16"),
}
AT_LEAST_1 = (
    "channels", "anchor", "proposals", "images", "batch", "largest", "made_train", "made_val", "log_every",
    "evaluations",
)  # fmt: skip
AT_LEAST_0 = (
    "micro_batch", "freeze", "warmup", "precise_bn", "workers", "seed", "weight_decay", "norm_weight_decay",
    "warmup_start",
)  # fmt: skip
SMALLEST = 32  # pixels: the stride of the last stage
REFERENCE = 16  # images a step for which ``lr`` is given


@dataclass(frozen=True)
class Detection(Settings):
    """Fine-tuning of a detector from a checkpoint. Lengths are counted in images, so that another batch changes the
    steps and not the epochs; the rate is linear in the batch (Goyal et al., arXiv 1706.02677)."""

    VERSION: ClassVar[int] = 1
    TRAINS: ClassVar[bool] = True
    MODULE: ClassVar[str] = "transfer.detection"
    FOLDER: ClassVar[Path] = Path(__file__).parent / "conf"
    GROUPS: ClassVar[tuple[str, ...]] = ("arch", "schedule")

    engine: str  # auto becomes the one that is used before anything is hashed or run
    head: str  # fpn, or c4: the last stage of the ResNet is the head of the regions
    expects: str  # the backbone that the name of the protocol promises, as timm names it; "" takes any
    masks: bool  # Mask R-CNN; without, Faster R-CNN
    channels: int  # of the FPN
    anchor: int  # side of the smallest anchors in pixels; each level of the FPN has twice the one before
    regions: int  # of an image that the heads are trained on; the RPN has half as many anchors
    proposals: int  # of an image that reach the heads; before the suppression of overlaps a multiple of them
    norm: bool  # batch norm over all processes in the FPN; without, biases
    freeze: int  # stages that stay as they come: 1 the stem, 2 the first stage as well, ...
    drop_path: float  # stochastic depth in the backbone, of transformers alone
    data: str
    made_train: int  # images of data=made
    made_val: int
    made_size: int  # side in pixels
    fraction: float  # of the training images, drawn by the seed
    name: str  # of the schedule
    images: int  # training images seen in all
    batch: int
    micro_batch: int  # images that go through the network at once; batch norm counts by them. 0: the whole batch
    optimizer: str
    lr: float  # at 16 images a step
    momentum: float
    weight_decay: float
    norm_weight_decay: float  # of norms and biases of norms
    warmup: int  # images over which the rate rises
    warmup_start: float  # share of the rate at which it starts
    drops: list[float]  # shares of the schedule at which the rate falls to a tenth
    sizes: list[int]  # short sides in pixels, of which each training image gets one
    largest: int  # long side in pixels
    test_size: int
    flip: float  # probability
    precise_bn: (
        int  # images over which the statistics of all batch norms are taken anew at the end; 0 keeps the moving ones
    )
    precision: str  # auto: bf16 where the hardware has it
    seed: int
    fingerprint: str  # of the data; filled in
    root: str = runtime_field()  # of data=coco and data=voc
    workers: int = runtime_field()  # processes that read images
    device: str = runtime_field()
    checkpoint_every: float = runtime_field()  # seconds
    log_every: int = runtime_field()  # steps
    evaluations: int = (
        runtime_field()
    )  # over the schedule, evenly; the last is the result, the others are for the curve

    def validate(self) -> None:
        """Check what the types can't say."""
        ranges(self, KEYS, {1: AT_LEAST_1, 0: AT_LEAST_0}, ("flip", "momentum", "drop_path"))
        for wrong in filter(None, self._wrong()):
            raise UsageError(wrong)

    def _wrong(self) -> Iterator[str]:
        """Yield what is wrong with single values and between them, in words; an empty text where nothing is."""
        yield "" if 0 < self.fraction <= 1 else f"fraction={self.fraction}: must be above 0 and at most 1"
        # a quarter at most are of objects, and where there is none the norms of C4's masks have nothing to count
        yield "" if self.regions >= 4 else f"regions={self.regions}: must be at least 4"
        yield "" if self.lr > 0 else f"lr={self.lr}: must be above 0"
        if self.micro_batch and self.batch % self.micro_batch:
            yield f"micro_batch={self.micro_batch}: batch={self.batch} must be a multiple of it"
        if not self.sizes or not all(type(size) is int and size >= SMALLEST for size in self.sizes):
            yield f"sizes={self.sizes}: whole numbers of at least {SMALLEST} expected"
        for key in ("test_size", "made_size"):
            yield "" if getattr(self, key) >= SMALLEST else f"{key}={getattr(self, key)}: must be at least {SMALLEST}"
        if any(not isinstance(drop, float) or not 0 < drop <= 1 for drop in self.drops):
            yield f"drops={self.drops}: shares of the schedule expected, above 0 and at most 1"
        if self.data == "voc" and self.masks:
            yield "data=voc has no masks; take masks=false"

    def resolved(self) -> Self:
        """Return the settings with the engine that is used and the fingerprint of the data."""
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise UsageError("detection needs the packages of the extra transfer: pip install -e '.[transfer]'")
        if self.data != "made" and not self.root:
            raise UsageError(f"data={self.data} needs root=DIR, the folder or zip that holds it")
        from transfer.data import fingerprint

        found = fingerprint(self)
        same_data(self.fingerprint, found, self.root or self.data)
        return replace(self, engine=chosen_engine(self.engine), fingerprint=found)

    @property
    def kept(self) -> dict[str, int]:
        """Return how many proposals are kept before and after the suppression of overlaps (detectron2's base files): an
        FPN counts the former a level."""
        before = (2, 1) if self.head == "fpn" else (12, 6)
        after = (1, 1) if self.head == "fpn" else (2, 1)
        names = ("pre_train", "pre_test", "post_train", "post_test")
        return {name: times * self.proposals for name, times in zip(names, (*before, *after), strict=True)}

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return max(1, round(self.images / self.batch))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0): linear warm-up, then a tenth at each drop."""
        rate = self.lr * self.batch / REFERENCE * 0.1 ** sum(step >= drop * self.steps for drop in self.drops)
        done = step * self.batch / self.warmup if self.warmup else 1.0
        return rate * (self.warmup_start + (1 - self.warmup_start) * min(1.0, done))


def work_folder(folder: Path, task: str, chosen: Settings) -> Path:
    """Return where a fine-tuning keeps its checkpoint, curves and pictures, in the folder of a run."""
    return folder / "transfer" / f"{task}@{protocol(task, chosen)}"


def chosen_engine(asked: str) -> str:
    """Return the engine: detectron2 where it is installed, for ``auto``. Raises UsageError where it is asked for and
    missing."""
    there = importlib.util.find_spec("detectron2") is not None
    if asked == "detectron2" and not there:
        raise UsageError(
            "engine=detectron2: it is not installed. From its own repository, as its INSTALL.md says: "
            "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2; "
            "engine=torchvision needs nothing more"
        )
    return asked if asked != "auto" else "detectron2" if there else "torchvision"


TASKS |= {"coco": Detection, "ade20k": segmentation.Segmentation}
