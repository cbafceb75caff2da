"""The schema of a run, its composition from YAML and overrides, and its identity by content (design 1 and 4)."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from smog.errors import UsageError, nearest

CONF = Path(__file__).parent / "conf"
SCHEMA = 1  # raised when the meaning of a key changes, so that old runs are not taken for new ones
GROUPS = ("recipe", "data", "backbone", "method")
T = TypeVar("T")


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
    """What one of the two views does on its own (BYOL's asymmetry)."""

    scale_min: float  # smallest share of the image's area that a crop covers
    scale_max: float
    jitter: float  # probability of the colour jitter
    gray: float  # probability of grey
    blur: float  # probability of a Gaussian blur
    solarize: float  # probability of inverting all values of 128 and above


@dataclass(frozen=True)
class Views:
    """How two views are made of an image; the names and meanings are BYOL's (arXiv 2006.07733, appendix B)."""

    size: int  # side of a view in pixels
    flip: float  # probability
    brightness: float  # strengths of the jitter
    contrast: float
    saturation: float
    hue: float
    blur_sigma_min: float  # pixels
    blur_sigma_max: float
    first: View
    second: View


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
    direction: str  # both views are predicted from each other, their roles alternate, or one_way: first from second


@dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule: linear warm-up, then a cosine to ``final_lr``."""

    name: str
    epochs: float
    batch: int  # images a step
    lr: float  # at 256 images a step; the rate used is lr x batch / 256
    final_lr: float
    warmup_epochs: float
    momentum: float
    weight_decay: float
    precision: str  # auto (bf16 where the hardware has it), bf16 or fp32; what was used stands in env.json


@dataclass(frozen=True)
class Runtime:
    """Where and how fast. Nothing here changes a result, so nothing here is part of an identity."""

    store: str = runtime_field()
    device: str = runtime_field()
    workers: int = runtime_field()  # processes that make views; 0: the training process itself; -1: by the threads
    threads: int = runtime_field()  # of torch; 0 leaves its own choice
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


def compose(overrides: Sequence[str] = ()) -> Config:
    """Return the configuration for overrides such as ``recipe=demo method.num_groups=300 seed=1``.

    Raises UsageError with one line that names the nearest keys for an unknown key or option, a value of the
    wrong type, or a value out of range.
    """
    groups = {name: options(name) for name in GROUPS}
    raw = compose_raw(CONF, "config", overrides, groups, key_names(Config), texts=set(_texts(Config)))
    recipe = next((o.split("=", 1)[1] for o in reversed(list(overrides)) if o.startswith("recipe=")), "demo")
    config = build(Config, {**raw, "recipe": recipe})
    validate(config)
    return config


def options(group: str) -> list[str]:
    """Return the names that a config group offers, such as the recipes."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose_raw(
    folder: Path,
    name: str,
    overrides: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    keys: Iterable[str],
    texts: Collection[str] = (),
) -> dict[str, Any]:
    """Compose YAML and overrides with hydra, after checking the overrides so that a typo gives one clear line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = list(keys)
    given = [override.partition("=") for override in overrides]
    plain = {key: value for key, equals, value in given if equals and key in texts}  # a path is no expression
    overrides = [_checked("".join(parts), groups, keys) for parts in given if parts[0] not in plain]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = hydra_compose(name, overrides=list(overrides))
        values: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        typed = f"{', '.join(overrides)}: " if isinstance(error, ValueError) else ""
        raise UsageError(typed + " ".join(str(error).split())) from None
    for key, value in plain.items():
        *path, last = key.split(".")
        functools.reduce(operator.getitem, path, values)[last] = value
    return values


def _texts(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the values that are text."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _texts(kind, f"{prefix}{name}.")
        elif kind is str and name != "recipe":
            yield prefix + name


def _checked(override: str, groups: Mapping[str, Iterable[str]], keys: list[str]) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        raise UsageError(f"{override!r} is not of the form key=value{nearest(key, [*groups, *keys])}")
    if key in groups:
        if value not in groups[key]:
            raise UsageError(f"no {key} {value!r}{nearest(value, groups[key])}")
    elif any(known.endswith(".args") and key.startswith(f"{known}.") for known in keys):
        return f"++{override}"  # free keys, handed to timm, which names the wrong ones
    elif key not in keys:
        raise UsageError(f"unknown key {key!r}{nearest(key.lstrip('+~'), [*groups, *keys])}")
    return override


def key_names(schema: type, prefix: str = "") -> list[str]:
    """Return the dotted names of all values of a dataclass schema."""
    names = []
    for name, kind in get_type_hints(schema).items():
        names += (
            key_names(kind, f"{prefix}{name}.") if isinstance(kind, type) and is_dataclass(kind) else [prefix + name]
        )
    return [name for name in names if name != "recipe"]


def build(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a frozen dataclass from plain values; every field must be there, nothing else, and of its type."""
    kinds = get_type_hints(schema)
    unknown = [name for name in values if name not in kinds]
    missing = [name for name in kinds if name not in values]
    if unknown:
        raise UsageError(f"unknown key {prefix + unknown[0]!r}{nearest(unknown[0], kinds)}")
    if missing:
        raise UsageError(f"no value for {prefix + missing[0]}")
    return schema(**{name: _typed(kind, values[name], prefix + name) for name, kind in kinds.items()})


def _typed(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} is a group of keys, not {value!r}")
        return build(kind, value, f"{name}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)  # YAML reads 1e-4 as text
    if kind == list[float] and isinstance(value, list):
        return [_typed(float, item, f"{name}[{place}]") for place, item in enumerate(value)]
    origin = getattr(kind, "__origin__", kind)
    if not isinstance(value, origin) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name}={value!r}: {origin.__name__} expected, not {type(value).__name__}")
    return value


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
        ("optim.momentum", 0 <= config.optim.momentum < 1, "from 0 to below 1"),
        ("optim.final_lr", config.optim.final_lr >= 0, "0 or more"),
        ("runtime.workers", config.runtime.workers >= -1, "-1 (by the threads), 0 (this process) or more"),
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
    flat = dict(_values(config))
    for name, fine, allowed in checks:
        if not fine:
            raise UsageError(f"{name}={flat[name]}: must be {allowed}")
    _validate_names(config)
    if config.method.num_groups > config.method.cache_size:
        raise UsageError(
            f"method.num_groups={config.method.num_groups} is above method.cache_size={config.method.cache_size}: "
            "k-means needs at least one cached feature a group; raise method.cache_size"
        )


def finite(settings: Any) -> None:
    """Refuse NaN and infinity anywhere: they have no JSON, so no identity."""
    for name, value in _values(settings):
        try:
            canonical(value)
        except ValueError:
            raise UsageError(f"{name}={value}: finite numbers expected") from None


_MOMENTA = ("group_momentum", "encoder_momentum")
_CHOICES = {
    "data.name": ("garments", "cifar10", "imagefolder"),
    "data.on_bad_image": ("fatal", "replace"),
    "method.name": ("smog",),
    "method.direction": ("both", "alternate", "one_way"),
    "optim.name": ("sgd", "adamw"),
    "optim.precision": ("auto", "bf16", "fp32"),
}


def _view_checks(name: str, view: View) -> Iterator[tuple[str, bool, str]]:
    yield f"views.{name}.scale_min", 0 < view.scale_min <= view.scale_max <= 1, "above 0, up to scale_max <= 1"
    for key in ("jitter", "gray", "blur", "solarize"):
        yield f"views.{name}.{key}", 0 <= getattr(view, key) <= 1, "from 0 to 1"


def _validate_names(config: Config) -> None:
    flat = dict(_values(config))
    for name, known in _CHOICES.items():
        if flat[name] not in known:
            raise UsageError(f"{name}={flat[name]!r} is not known{nearest(str(flat[name]), known)}")


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def as_dict(node: Any, science_only: bool = False) -> dict[str, Any]:
    """Return a configuration as nested plain values, all of them or only those that can change a result."""
    plain = {}
    for f in fields(node):
        if science_only and f.metadata.get("runtime"):
            continue
        value = getattr(node, f.name)
        if not is_dataclass(value):
            plain[f.name] = value
        elif inner := as_dict(value, science_only):
            plain[f.name] = inner
    return plain


def canonical(content: Any) -> str:
    """Return JSON that is equal for equal content: sorted keys, no spaces, 1.0 and 1 kept apart, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any, length: int = 12) -> str:
    """Return the first hex digits of the SHA-256 over the canonical JSON."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:length]


def run_id(config: Config) -> str:
    """Return the identity of a run: 12 hex digits over everything that can change its result."""
    return digest(_identity(config))


def group_id(config: Config) -> str:
    """Return the identity that the seeds of one cell share."""
    identity = _identity(config)
    del identity["seed"]
    return digest(identity)


def _identity(config: Config) -> dict[str, Any]:
    if not config.data.fingerprint:
        raise UsageError("a run has no identity before its data are known: call smog.data.sources.with_fingerprint")
    return {"schema": SCHEMA, **as_dict(config, science_only=True)}


def load(path: Path) -> Config:
    """Read the config.yaml of a run back."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no configuration")
    config = build(Config, values)
    validate(config)
    return config


def dump(config: Config) -> str:
    """Return a configuration as YAML; ``load`` gives the same configuration back."""
    import yaml

    return yaml.safe_dump(as_dict(config), sort_keys=False)


def with_runtime(config: Config, **values: Any) -> Config:
    """Return the same run with other runtime settings."""
    return replace(config, runtime=replace(config.runtime, **values))
