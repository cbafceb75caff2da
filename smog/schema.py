"""What a run is: the frozen dataclasses of its configuration. Their values and where they come from stand in conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def runtime_field() -> Any:
    """Mark a field that says where or how fast, never what: it stays out of the run's identity."""
    return field(metadata={"runtime": True})


@dataclass(frozen=True)
class Data:
    """Which images. ``fingerprint`` is filled in from the images themselves; given by hand it is checked."""

    name: str
    size: int  # side in pixels at which made scenes are drawn; other sources keep the size of their files
    train_images: int  # how many training images, drawn evenly over the list; 0 takes all
    val_images: int
    on_bad_image: str  # "fatal", or "replace" by the next image that decodes; reported and counted either way
    fingerprint: str
    root: str = runtime_field()
    download: bool = runtime_field()


@dataclass(frozen=True)
class View:
    """What one kind of view does on its own (BYOL's asymmetry)."""

    scale_min: float  # smallest share of the image's area that a crop covers
    scale_max: float
    jitter: float  # probability of the colour jitter
    gray: float  # probability of grey
    blur: float  # probability of a Gaussian blur
    solarize: float  # probability of inverting all values of 128 and above


@dataclass(frozen=True)
class Views:
    """How the views of an image are made: global crops, first and second in turn, and smaller local ones (multi-crop,
    SwAV, arXiv 2006.09882). The names and meanings are BYOL's (arXiv 2006.07733, appendix B)."""

    size: int  # side of a global crop in pixels
    global_crops: int  # the momentum branch sees these alone
    local_size: int
    local_crops: int
    flip: float  # probability
    brightness: float  # strengths of the jitter
    contrast: float
    saturation: float
    hue: float
    blur_sigma_min: float  # pixels
    blur_sigma_max: float
    first: View
    second: View
    local: View


@dataclass(frozen=True)
class Backbone:
    """A timm model, with its own stem or with a 3x3 convolution for small images."""

    name: str
    stem_stride: int  # 0 keeps timm's stem; 1 or 2 puts one 3x3 convolution of that stride in its place, no pooling
    args: dict[str, Any]  # further arguments of timm.create_model


@dataclass(frozen=True)
class Method:
    """SMoG (arXiv 2207.06167). Symbols as in facts of the paper: K groups of d dimensions, beta, tau, cache, R."""

    name: str
    num_groups: int
    dim: int
    hidden: int
    group_momentum: float
    temperature: float
    cache_size: int
    regroup_interval: int  # optimiser steps between two k-means over the cache; 0 never regroups
    reset_momentum_encoder: bool  # copy the online weights into the momentum branch at each regroup
    encoder_momentum: float
    encoder_schedule: str  # constant, or cosine: from encoder_momentum to 1 over all steps
    direction: str  # both: crops from each other's groups; alternate: global crops are the target in turn; one_way
    predictor: str  # online (BYOL), both (the target passes a copy too), or none (z itself is contrasted, SwAV)
    normalize_features: bool  # put z on the sphere before it meets the groups
    normalize_groups: bool  # put the groups back on the sphere after each update
    targets: str  # of the groups before or after the update
    group_gradient: bool  # through the (1 - momentum) part of the updated groups
    group_updates: str  # once a step with all crops, or per_view, one after the other
    initial_groups: str  # sphere, orthant (all positive) or batch (the first features)
    start_groups: int  # beyond the paper: so many groups at first, more at each regroup; 0 starts with all
    growth_epochs: float  # epochs until all groups are there
    balanced_targets: bool  # beyond the paper: targets spread evenly over the groups (Sinkhorn, SwAV)
    instance_epochs: float  # beyond the paper: instance contrast (MoCo v3) for so many epochs, groups after it


@dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule: linear warm-up, then a cosine to ``final_lr``."""

    name: str  # sgd, lars or adamw
    epochs: float
    batch: int  # images a step, over all processes
    accumulate: int  # micro-batches that a step is cut into; the groups move, and BatchNorm counts, by micro-batch
    lr: float  # at 256 images a step; the rate used is lr x batch / 256
    final_lr: float  # not scaled
    warmup_epochs: float
    warmup_start: float  # share of the highest rate at which the warm-up starts
    momentum: float
    weight_decay: float
    final_weight_decay: float  # a cosine over all steps leads there
    clip: float  # largest norm of the gradient; 0 does not clip
    precision: str  # auto (bf16 where the hardware has it), bf16, fp16 or fp32; what was used stands in env.json


@dataclass(frozen=True)
class Runtime:
    """Where and how fast. Nothing here changes a result, so nothing here is part of an identity."""

    store: str = runtime_field()
    device: str = runtime_field()
    workers: int = runtime_field()  # processes that make views; 0 makes them in the training process
    threads: int = runtime_field()  # of torch; 0 leaves its own choice
    compile: bool = runtime_field()  # torch.compile of the networks; equal up to rounding
    loggers: list[str] = runtime_field()  # noqa: RUF009 (as above); tensorboard, wandb; metrics.jsonl stays the truth
    log_every: int = runtime_field()  # steps
    checkpoint_every: float = runtime_field()  # seconds
    keep_images: int = runtime_field()  # decoded images are kept in one file when they take at most so many megabytes


@dataclass(frozen=True)
class Config:
    """One run, completely resolved."""

    seed: int
    data: Data
    views: Views
    backbone: Backbone
    method: Method
    optim: Optim
    runtime: Runtime
    recipe: str = runtime_field()  # only the name under which the values came
