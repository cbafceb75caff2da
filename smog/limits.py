"""Which values a configuration may have, beyond their types: ranges, names, what must fit together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from smog.errors import UsageError, nearest
from smog.identity import as_dict, canonical, values_of
from smog.methods import VERSIONS
from smog.schema import Config, Method, View


def validate(config: Config) -> None:
    """Check what the types can't say; raise UsageError that names the key, its value and the range."""
    finite(config)
    checks = [
        *((f"method.{key}", 0.0 <= getattr(config.method, key) <= 1.0, "from 0 to 1") for key in _MOMENTA),
        *((f"method.{key}", getattr(config.method, key) >= 1, "at least 1") for key in ("dim", "hidden", "cache_size")),
        ("method.temperature", config.method.temperature > 0, "above 0"),
        ("method.num_groups", config.method.num_groups >= 2, "at least 2"),
        ("method.regroup_interval", config.method.regroup_interval >= 0, "0 (never) or more"),
        ("backbone.stem_stride", config.backbone.stem_stride in (0, 1, 2), "0, 1 or 2"),
        ("views.flip", 0 <= config.views.flip <= 1, "from 0 to 1"),
        *_view_checks("first", config.views.first),
        *_view_checks("second", config.views.second),
        *_view_checks("local", config.views.local),
        ("views.global_crops", config.views.global_crops >= 2, "at least 2: one is predicted from the other"),
        ("views.local_crops", config.views.local_crops >= 0, "0 or more"),
        ("views.local_size", config.views.local_size >= 1, "at least 1"),
        ("method.start_groups", _starts(config.method), _START),
        ("method.growth_epochs", config.method.growth_epochs >= 0, "0 or more"),
        ("method.instance_epochs", config.method.instance_epochs >= 0, "0 or more"),
        ("views.hue", 0 <= config.views.hue <= 0.5, "from 0 to 0.5"),
        *(
            (f"views.{key}", getattr(config.views, key) >= 0, "0 or more")
            for key in ("brightness", "contrast", "saturation")
        ),
        (
            "views.blur_sigma_min",
            0 < config.views.blur_sigma_min <= config.views.blur_sigma_max,
            "above 0, up to blur_sigma_max",
        ),
        ("optim.accumulate", config.optim.accumulate >= 1, "at least 1"),
        ("optim.warmup_start", 0 <= config.optim.warmup_start <= 1, "from 0 to 1"),
        ("optim.final_weight_decay", config.optim.final_weight_decay >= 0, "0 or more"),
        ("optim.clip", config.optim.clip >= 0, "0 (no clipping) or more"),
        ("optim.momentum", 0 <= config.optim.momentum < 1, "from 0 to below 1"),
        ("optim.final_lr", config.optim.final_lr >= 0, "0 or more"),
        ("runtime.workers", config.runtime.workers >= 0, "0 (this process) or more"),
        ("runtime.threads", config.runtime.threads >= 0, "0 (torch decides) or more"),
        ("views.size", config.views.size >= 1, "at least 1"),
        ("data.size", config.data.size >= 8, "at least 8"),
        ("data.train_images", config.data.train_images >= 0, "0 (all) or more"),
        ("data.val_images", config.data.val_images >= 0, "0 (all) or more"),
        ("optim.batch", config.optim.batch >= 2, "at least 2, for BatchNorm"),
        ("optim.epochs", config.optim.epochs >= 0, "0 (an untrained network) or more"),
        ("optim.lr", config.optim.lr > 0, "above 0"),
        ("optim.weight_decay", config.optim.weight_decay >= 0, "0 or more"),
        ("optim.warmup_epochs", config.optim.warmup_epochs >= 0, "0 or more"),
        ("seed", 0 <= config.seed < 2**31, "from 0 to 2147483647"),
        ("runtime.log_every", config.runtime.log_every >= 1, "at least 1"),
    ]
    for name, fine, allowed in checks:
        if not fine:
            raise UsageError(f"{name}={attrgetter(name)(config)}: must be {allowed}")
    _validate_names(config)
    if config.optim.batch % config.optim.accumulate:
        raise UsageError(
            f"optim.accumulate={config.optim.accumulate} does not divide optim.batch={config.optim.batch}: "
            "micro-batches are equal"
        )
    if config.optim.batch // config.optim.accumulate < 2:
        raise UsageError(
            f"optim.batch={config.optim.batch} in {config.optim.accumulate} micro-batches leaves one image each; "
            "BatchNorm needs two: take a smaller optim.accumulate"
        )
    if config.method.num_groups > config.method.cache_size:
        raise UsageError(
            f"method.num_groups={config.method.num_groups} is above method.cache_size={config.method.cache_size}: "
            "k-means needs at least one cached feature a group; raise method.cache_size"
        )


def finite(settings: Any) -> None:
    """Refuse NaN and infinity anywhere: they have no JSON, so no identity."""
    with contextlib.suppress(ValueError):
        canonical(as_dict(settings))  # all at once, since thousands of cells are looked at
        return
    for name, value in values_of(settings):
        try:
            canonical(value)
        except ValueError:
            raise UsageError(f"{name}={value}: finite numbers expected") from None


def _starts(method: Method) -> bool:
    return method.start_groups == 0 or 2 <= method.start_groups <= method.num_groups


_MOMENTA = ("group_momentum", "encoder_momentum")
_START = "0 (all from the start), or from 2 to method.num_groups"
_CHOICES = {
    "data.name": ("garments", "cifar10", "imagefolder"),
    "data.on_bad_image": ("fatal", "replace"),
    "method.name": tuple(VERSIONS),
    "method.direction": ("both", "alternate", "one_way"),
    "method.predictor": ("online", "both", "none"),
    "method.encoder_schedule": ("constant", "cosine"),
    "method.targets": ("before", "after"),
    "method.group_updates": ("once", "per_view"),
    "method.initial_groups": ("sphere", "orthant", "batch"),
    "optim.name": ("sgd", "lars", "adamw"),
    "optim.precision": ("auto", "bf16", "fp16", "fp32"),
}


def _view_checks(name: str, view: View) -> Iterator[tuple[str, bool, str]]:
    yield f"views.{name}.scale_min", 0 < view.scale_min <= view.scale_max <= 1, "above 0, up to scale_max <= 1"
    for key in ("jitter", "gray", "blur", "solarize"):
        yield f"views.{name}.{key}", 0 <= getattr(view, key) <= 1, "from 0 to 1"


def _validate_names(config: Config) -> None:
    for name, known in _CHOICES.items():
        value = attrgetter(name)(config)
        if value not in known:
            raise UsageError(f"{name}={value!r} is not known{nearest(str(value), known)}")
