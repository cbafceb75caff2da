"""What fine-tuning a segmentor is asked to do: its settings. Light: planning looks at nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from smog.errors import UsageError, nearest
from smog.schema import runtime_field
from smog.tasks.protocols import Settings, ranges, same_data

LAYOUTS = ("ade20k", "cityscapes", "voc12aug")
KEYS = {
    "family": ("resnet", "swin", "vit"),
    "decoder": ("upernet", "fcn", "linear"),
    "data": ("made", *LAYOUTS),
    "optimizer": ("sgd", "adamw"),
    "precision": ("auto", "fp32", "bf16"),
}
ROOTS = ("model", "train_pipeline", "test_pipeline", "tta_pipeline", "optim_wrapper", "param_scheduler")  # of mmseg
AT_LEAST_1 = ("channels", "made_train", "made_val", "steps", "batch", "log_every", "evaluations")
AT_LEAST_0 = ("auxiliary", "weight_decay", "warmup", "power", "min_lr", "workers", "seed", "checkpoint_every")
SHARES = ("drop_path", "momentum", "warmup_start", "flip")
SMALLEST = 32  # pixels: the stride of the last stage


@dataclass(frozen=True)
class Segmentation(Settings):
    """Fine-tuning of a segmentor from a checkpoint, by mmsegmentation's own Runner. Lengths are counted in steps of the
    whole batch and rates are as given: another batch is another protocol, as in mmsegmentation's own files."""

    VERSION: ClassVar[int] = 1
    TRAINS: ClassVar[bool] = True
    MODULE: ClassVar[str] = "transfer.segmentation.training"
    FOLDER: ClassVar[Path] = Path(__file__).parents[1] / "conf" / "segmentation"
    GROUPS: ClassVar[tuple[str, ...]] = ("recipe", "head", "schedule")

    family: str  # of the backbone that the recipe is for
    decoder: str
    channels: int  # of the decoder; a linear one has those of the backbone
    auxiliary: float  # weight of the loss of a second, small head on the third level; 0: none
    dilated: bool  # with an FCN the last two stages of a ResNet keep the resolution, by dilation 2 and 4
    frozen: bool  # the backbone stays as it comes, statistics of batch norm included
    drop_path: float  # stochastic depth in the backbone, of transformers alone
    data: str
    made_train: int  # images of data=made
    made_val: int
    made_size: int  # side in pixels
    fraction: float  # of the training images, drawn by the seed
    name: str  # of the schedule
    steps: int
    batch: int  # images a step, over all processes
    optimizer: str
    lr: float
    lr_factor: float  # of the schedule, to the recipe's rate
    momentum: float  # beta 1 of AdamW
    weight_decay: float
    decay_norms: bool  # and tables of positions; else these alone are not decayed
    layer_decay: float  # factor of the rate from each block of the backbone to the one before; 1: none
    warmup: int  # steps over which the rate rises
    warmup_start: float  # share of the rate at which it starts
    power: float  # of the polynomial by which the rate falls to min_lr
    min_lr: float
    crop: list[int]  # height and width in pixels
    scale: list[int]  # long and short side that images are resized within, before the ratio and in testing
    ratios: list[float]  # smallest and largest factor to that, drawn for each training image
    largest_class: float  # share of a crop that one class may take; ten crops are tried
    flip: float  # probability
    distort: bool  # brightness, contrast, saturation and hue (mmsegmentation's PhotoMetricDistortion)
    sliding: bool  # test by crops that overlap by a third; else whole images
    multi_scale: bool  # test once more, over scales from 0.5 to 1.75 and mirrored
    precision: str  # auto: bf16 where the hardware has it; testing is in fp32
    seed: int
    fingerprint: str  # of the data; filled in
    mmseg: dict[str, Any]  # further keys of mmsegmentation's configuration, nested
    root: str = runtime_field()  # of the other data
    classes: str = runtime_field()  # a file with a name a line, for data=ade20k; its names are in the fingerprint
    workers: int = runtime_field()  # processes that read images
    device: str = runtime_field()
    checkpoint_every: float = runtime_field()  # seconds
    log_every: int = runtime_field()  # steps
    evaluations: int = runtime_field()  # over the schedule, evenly; the last is the result

    def validate(self) -> None:
        """Check what the types can't say."""
        ranges(self, KEYS, {1: AT_LEAST_1, 0: AT_LEAST_0}, SHARES)
        for key in self.mmseg:
            if key not in ROOTS:
                raise UsageError(f"unknown key mmseg.{key}{nearest(key, ROOTS)}")
        for wrong in filter(None, self._wrong()):
            raise UsageError(wrong)

    def _wrong(self) -> Iterator[str]:
        """Yield what is wrong with single values and between them, in words; an empty text where nothing is."""
        for key in ("fraction", "layer_decay", "largest_class"):
            yield "" if 0 < getattr(self, key) <= 1 else f"{key}={getattr(self, key)}: must be above 0 and at most 1"
        for key in ("lr", "lr_factor"):
            yield "" if getattr(self, key) > 0 else f"{key}={getattr(self, key)}: must be above 0"
        for key in ("crop", "scale"):
            value = getattr(self, key)
            if len(value) != 2 or not all(type(side) is int and side >= SMALLEST for side in value):
                yield f"{key}={value}: two whole numbers of at least {SMALLEST} expected"
        if len(self.ratios) != 2 or not 0 < self.ratios[0] <= self.ratios[1]:
            yield f"ratios={self.ratios}: the smallest and the largest factor expected, above 0"
        yield "" if self.made_size >= SMALLEST else f"made_size={self.made_size}: must be at least {SMALLEST}"
        if self.dilated and self.family != "resnet":
            yield f"dilated=true needs convolutions; recipe={self.family} has none in its stages: take dilated=false"
        if self.layer_decay < 1 and self.family != "vit":
            yield f"layer_decay={self.layer_decay}: the published recipes have it for recipe=vit alone; take 1"
        if self.drop_path and self.family == "resnet":
            yield f"drop_path={self.drop_path}: for transformers; take 0 with recipe=resnet"
        if self.classes and self.data != "ade20k":
            yield f"classes={self.classes}: data={self.data} has its own classes"
        if self.warmup >= self.steps and self.warmup:
            yield f"warmup={self.warmup} takes all of steps={self.steps}"

    def resolved(self) -> Self:
        """Return the settings with the fingerprint of the data."""
        if importlib.util.find_spec("mmseg") is None:
            raise UsageError("segmentation needs the packages of the extra transfer: pip install -e '.[transfer]'")
        if self.data != "made" and not self.root:
            raise UsageError(f"data={self.data} needs root=DIR, the folder or zip that holds it")
        found = self._fingerprint()
        same_data(self.fingerprint, found, self.root or self.data)
        return replace(self, fingerprint=found)

    def _fingerprint(self) -> str:
        if self.data == "made":
            from smog.data import scenes
            from smog.identity import digest

            return digest(["garments", scenes.VERSION])
        from transfer.segmentation.data import fingerprint

        return fingerprint(self.data, Path(self.root), self.classes)

    @property
    def rate(self) -> float:
        """Return the highest learning rate."""
        return self.lr * self.lr_factor

    @property
    def stride(self) -> list[int]:
        """Return how far apart the crops of a sliding test are: two thirds of them, 341 pixels of 512."""
        return [side * 2 // 3 for side in self.crop]
