"""From YAML and overrides to the configuration of a run, by hydra's compose alone (design 4)."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from smog.errors import UsageError, nearest
from smog.identity import as_dict
from smog.limits import validate
from smog.schema import Backbone, Config

CONF = Path(__file__).parent / "conf"
GROUPS = ("recipe", "data", "backbone", "method")
T = TypeVar("T")
_cached: Any = functools.cache  # mypy takes a class for no key of a cache


def compose(overrides: Sequence[str] = ()) -> Config:
    """Return the configuration for overrides such as ``recipe=demo method.num_groups=300 seed=1``.

    Raises UsageError with one line that names the nearest keys for an unknown key or option, a value of the
    wrong type, or a value out of range.
    """
    config = Base(overrides).config
    validate(config)
    return config


class Base:
    """A composed configuration, ``config``, of which values can be set anew thousands of times: hydra composes once.

    Choices of a group (backbone=NAME) are not among those values: another file comes in with them, so compose again.
    """

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        groups = {name: options(name) for name in GROUPS}
        tree, texts = _compose_tree(CONF, "config", overrides, groups, Config)
        recipe = next((o.split("=", 1)[1] for o in reversed(list(overrides)) if o.startswith("recipe=")), "demo")
        self.tree = tree
        self.config = build(Config, {**_plain(tree, texts), "recipe": recipe})  # valid once its values are all set
        self._copies: dict[str, list[str]] = {}

    def varied(self, changes: Mapping[str, Any]) -> Config:
        """Return the configuration with other values by dotted name, checked as ``compose`` checks them; values that
        the files take from those (``${name}``) follow."""
        config = self.config
        for key, value in changes.items():
            _check_key(key, {}, Config)
            config = _put(config, key.split("."), value, key)
        for key, value in self._following(changes).items():
            config = _put(config, key.split("."), value, key)
        validate(config)
        return config

    def _following(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that copy one of those that change."""
        known = key_names(Config)  # and not the free keys of backbone.args
        copies = {name: value for key, value in changes.items() if key in known for name in self._copies_of(key)}
        return {name: value for name, value in copies.items() if name not in changes}

    def _copies_of(self, key: str) -> list[str]:
        """Return the names of the values that the files take from that of a key, found by putting a probe there."""
        if key not in self._copies:
            from omegaconf import OmegaConf

            derived = [name for name in key_names(Config) if _is_derived(self.tree, name)]
            before = _raw(self.tree, key)
            OmegaConf.update(self.tree, key, "a probe")
            self._copies[key] = [name for name in derived if OmegaConf.select(self.tree, name) == "a probe"]
            OmegaConf.update(self.tree, key, before)
        return self._copies[key]


def _raw(tree: Any, name: str) -> Any:
    """Return a value as the files have it, a derived one as the text that derives it."""
    from omegaconf import OmegaConf

    parent, _, last = name.rpartition(".")
    values: Any = OmegaConf.to_container(OmegaConf.select(tree, parent) if parent else tree, resolve=False)
    return values.get(last)


def _is_derived(tree: Any, name: str) -> bool:
    return isinstance(raw := _raw(tree, name), str) and "${" in raw


def _put(node: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """Return a dataclass, or a dictionary of free keys, with one value inside it set."""
    first, *rest = path
    if isinstance(node, dict):
        return {**node, first: value}
    inner = _put(getattr(node, first), rest, value, key) if rest else _typed(kinds_of(type(node))[first], value, key)
    return replace(node, **{first: inner})


@functools.cache
def options(group: str, folder: Path = CONF) -> list[str]:
    """Return the names that a config group offers, such as the recipes."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


@functools.cache
def _networks() -> dict[str, dict[str, Any]]:
    """Return what the files of the group backbone say, by the names by which they are chosen."""
    return {name: read_yaml(CONF / "backbone" / f"{name}.yaml") for name in options("backbone")}


def backbone_name(backbone: Backbone) -> str:
    """Return by which name a backbone is chosen, ``resnet10_small`` say; that of timm where no file has its values.

    timm's own name would promise more: a ResNet of four narrow blocks is a ``resnet18`` with arguments there.
    """
    own = {"name": backbone.name, "stem_stride": backbone.stem_stride, "args": dict(backbone.args)}
    return next((name for name, values in _networks().items() if values == own), f"{backbone.name} with arguments")


def crops_of(global_crops: int, size: int, local_crops: int, local_size: int) -> str:
    """Return what crops a recipe takes, as papers write it: ``2x224 + 6x96``."""
    return f"{global_crops}x{size}" + (f" + {local_crops}x{local_size}" if local_crops else "")


def compose_raw(
    folder: Path, name: str, overrides: Sequence[str], schema: type, groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Compose YAML, the chosen files of its groups and overrides with hydra, after checking the overrides for typos."""
    offered = {group: options(group, folder) for group in groups}
    return _plain(*_compose_tree(folder, name, overrides, offered, schema))


def _compose_tree(
    folder: Path,
    name: str,
    overrides: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    schema: type,
) -> tuple[Any, dict[str, str]]:
    """Return hydra's tree, and apart from it the values that are text: a path is no expression."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    texts = set(_texts(schema))
    given = [override.partition("=") for override in overrides]
    plain = {key: value for key, equals, value in given if equals and key in texts}
    overrides = [_checked("".join(parts), groups, schema) for parts in given if parts[0] not in plain]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            return hydra_compose(name, overrides=list(overrides)), plain
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        typed = f"{', '.join(overrides)}: " if isinstance(error, ValueError) else ""
        raise UsageError(typed + " ".join(str(error).split())) from None


def _plain(tree: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from None
    for key, value in texts.items():
        *path, last = key.split(".")
        functools.reduce(operator.getitem, path, values)[last] = value
    return values


def _texts(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the values that are text."""
    for name, kind in kinds_of(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _texts(kind, f"{prefix}{name}.")
        elif kind is str and name != "recipe":
            yield prefix + name


@_cached
def _free_names(schema: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of the dictionaries, whose keys are free."""
    names: list[str] = []
    for name, kind in kinds_of(schema).items():
        if isinstance(kind, type) and is_dataclass(kind):
            names += _free_names(kind, f"{prefix}{name}.")
        elif getattr(kind, "__origin__", kind) is dict:
            names.append(prefix + name)
    return names


def _checked(override: str, groups: Mapping[str, Iterable[str]], schema: type) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        raise UsageError(f"{override!r} is not of the form key=value{nearest(key, [*groups, *key_names(schema)])}")
    if key in groups and value not in groups[key]:
        raise UsageError(f"no {key} {value!r}{nearest(value, groups[key])}")
    return f"++{override}" if _check_key(key, groups, schema) else override


def _check_key(key: str, groups: Collection[str], schema: type) -> bool:
    """Refuse a key that there is not. Say whether it is free: in a dictionary that is handed to another library, such
    as timm, which names the wrong ones."""
    keys = key_names(schema)
    if key in groups or key in keys:
        return False
    if any(key.startswith(f"{free}.") for free in _free_names(schema)):
        return True
    raise UsageError(f"unknown key {key!r}{nearest(key.lstrip('+~'), [*groups, *keys])}")


@_cached
def kinds_of(schema: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    kinds = get_type_hints(schema)
    return {field.name: kinds[field.name] for field in fields(schema)}


@_cached
def key_names(schema: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all values of a dataclass schema."""
    names: list[str] = []
    for name, kind in kinds_of(schema).items():
        names += (
            key_names(kind, f"{prefix}{name}.") if isinstance(kind, type) and is_dataclass(kind) else [prefix + name]
        )
    return [name for name in names if name != "recipe"]


def build(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a frozen dataclass from plain values; every field must be there, nothing else, and of its type."""
    kinds = kinds_of(schema)
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
    if kind == list[str] and isinstance(value, list):
        return [_typed(str, item, f"{name}[{place}]") for place, item in enumerate(value)]
    origin = getattr(kind, "__origin__", kind)
    if not isinstance(value, origin) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name}={value!r}: {origin.__name__} expected, not {type(value).__name__}")
    return value


def load(path: Path) -> Config:
    """Read the config.yaml of a run back."""
    config = build(Config, read_yaml(path))
    validate(config)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read what a config.yaml says, whatever its keys."""
    import yaml

    try:
        # libyaml's parser, where PyYAML has it, is seven times as fast, and reports read thousands of these
        values = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no configuration")
    return values


def dump(config: Config) -> str:
    """Return a configuration as YAML; ``load`` gives the same configuration back."""
    import yaml

    return yaml.safe_dump(as_dict(config), sort_keys=False)


def with_runtime(config: Config, **values: Any) -> Config:
    """Return the same run with other runtime settings."""
    return replace(config, runtime=replace(config.runtime, **values))
