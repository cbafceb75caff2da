"""The identity of a run by content: a hash over everything that can change its result, and nothing else (design 1)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from smog.errors import UsageError
from smog.methods import VERSIONS
from smog.schema import Config

_cached: Any = functools.cache  # mypy takes a class for no key of a cache
SCHEMA = 1  # raised when the meaning of a key changes, so that old runs are not taken for new ones


# Values that change what a run finds and not what a step of it takes, or takes by little.
_FREE = {
    "seed", "views.first", "views.second", "views.local", "data.train_images", "data.val_images", "data.fingerprint",
    "optim.epochs", "optim.lr", "optim.final_lr", "optim.warmup_epochs", "optim.warmup_start", "optim.momentum",
    "optim.weight_decay", "optim.final_weight_decay", "views.flip", "views.brightness", "views.contrast",
    "views.saturation", "views.hue", "method.group_momentum", "method.temperature", "method.encoder_momentum",
    "method.encoder_schedule", "method.reset_momentum_encoder", "method.targets", "method.initial_groups",
}  # fmt: skip


def as_dict(node: Any, science_only: bool = False) -> dict[str, Any]:
    """Return a configuration as nested plain values, all of them or only those that can change a result."""
    plain = {}
    for name, runtime in _fields(type(node)):
        if science_only and runtime:
            continue
        value = getattr(node, name)
        if not hasattr(value, "__dataclass_fields__"):  # what is_dataclass asks, at a fraction of its time
            plain[name] = value
        elif inner := as_dict(value, science_only):
            plain[name] = inner
    return plain


@_cached
def _fields(schema: type) -> list[tuple[str, bool]]:
    return [(field.name, bool(field.metadata.get("runtime"))) for field in fields(schema)]


def canonical(content: Any) -> str:
    """Return JSON that is equal for equal content: sorted keys, no spaces, 1.0 and 1 kept apart, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any, length: int = 12) -> str:
    """Return the first hex digits of the SHA-256 over the canonical JSON."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:length]


def cost_kind(config: Config) -> str:
    """Return 12 hex digits over what a step of a run costs: equal for runs that take equally long a step."""
    content = as_dict(config, science_only=True)
    for name in _FREE:
        *groups, last = name.split(".")
        functools.reduce(lambda part, group: part.get(group, {}), groups, content).pop(last, None)
    return digest(content)


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
    return {**versions(config), **as_dict(config, science_only=True)}


def versions(config: Config) -> dict[str, Any]:
    """Return what of an identity does not stand in the configuration: see SCHEMA, and VERSIONS in methods."""
    return {"schema": SCHEMA, "code": VERSIONS.get(config.method.name)}


def ingredients(config: Config) -> dict[str, Any]:
    """Return everything that a run's identity is made of, by dotted name."""
    return dict(leaves(_identity(config)))


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their dotted names."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def values_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values of a configuration with their dotted names."""
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from values_of(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value
