"""The exact command behind a number: a recipe and every value that differs from it, as one would type them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from smog.config import GROUPS, Base, compose_raw, options
from smog.errors import UsageError
from smog.identity import as_dict, group_id, leaves
from smog.schema import Config
from smog.tasks.protocols import TASKS
from transfer import protocols  # noqa: F401 (which adds its tasks to the known ones)

DATA = {"data.fingerprint"}  # found in the data themselves
TRANSFER = ("coco", "ade20k")  # have commands of their own
CHOICES = tuple(group for group in GROUPS if group != "recipe")


def train_command(config: Config) -> str:
    """Return the ``smog train`` command that composes this very configuration, its identity proved; empty where none
    does: a run of another version of the recipes."""
    choices, changes = _shortest(config)
    base = _base(choices)
    try:
        again = base.varied({**changes, "data.fingerprint": config.data.fingerprint, "seed": config.seed})
    except UsageError:
        return ""
    if group_id(again) != group_id(config):
        return ""
    place = ["data.root=DIR"] if config.data.root else []
    command = " ".join(["smog train", *choices, f"seed={config.seed}", *map(_typed, changes.items()), *place])
    return command if command.isprintable() else ""  # one of several lines would be cut at the first


def _shortest(config: Config) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the choices of groups, and the values beside them, that take the fewest words."""
    choices: tuple[str, ...] = (f"recipe={config.recipe}",)
    changes = _changes(config, choices)
    for group in CHOICES:
        if any(name.startswith(f"{group}.") for name in changes):
            tried = [(*choices, f"{group}={option}") for option in options(group)]
            found = min(((_changes(config, one), one) for one in tried), key=lambda pair: len(pair[0]))
            if len(found[0]) < len(changes):
                changes, choices = found
    return choices, changes


def _changes(config: Config, choices: tuple[str, ...]) -> dict[str, Any]:
    """Return the scientific values that differ from what the choices compose."""
    base, own = _flat(_base(choices).config), _flat(config)
    changed = {name: value for name, value in own.items() if name not in base or base[name] != value}
    return {name: value for name, value in changed.items() if name not in DATA and name != "seed"}


@cache
def _base(choices: tuple[str, ...]) -> Base:
    return Base(choices)


def _flat(config: Config) -> dict[str, Any]:
    """Return the scientific values by dotted name, the free keys of a dictionary each by its own."""
    return dict(leaves(as_dict(config, science_only=True)))


def _typed(change: tuple[str, Any]) -> str:
    """Return ``key=value`` as hydra and a shell read it."""
    name, value = change
    text = f"{name}={value if isinstance(value, str) else json.dumps(value).replace(' ', '')}"
    return shlex.quote(text) if text[-1] != "=" else f"'{text}'"


def task_command(result: Mapping[str, Any]) -> str:
    """Return the command that computes a result from its run: the task, and the settings that differ from its protocol
    file; empty where this version has no such task."""
    task, run, own = result["task"], result["run_id"], result.get("settings", {})
    if task not in TASKS or (task in TRANSFER and "data" not in own):
        return ""
    choices, changes = _chosen(task, own)
    if task not in TRANSFER:
        return " ".join(["smog eval", task, run, *changes])
    data = "made" if own["data"] == "made" else shlex.quote(f"{own['data']}:DIR")
    named = [f"--{group} {option}" for group, option in choices.items() if group != "recipe"]  # told by the checkpoint
    words = [f"python transfer/{task}.py --ckpt {run} --data {data}", *named]
    return " ".join([*words, "--set", *changes] if changes else words)


def _chosen(task: str, own: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the options of a task's groups that leave the fewest settings to be named, group by group, and those."""
    schema = TASKS[task]
    values = dict(leaves({name: value for name, value in own.items() if name not in ("fingerprint", "data")}))
    choices: dict[str, str] = {}
    for group in schema.GROUPS:
        tried = [choices | {group: option} for option in options(group, schema.FOLDER)]
        choices = min(tried, key=lambda one: len(_unusual(task, one, values)))
    return choices, _unusual(task, choices, values)


def _unusual(task: str, choices: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    usual = _usual(task, tuple(f"{group}={option}" for group, option in choices.items()))
    return [_typed(pair) for pair in values.items() if usual.get(pair[0], pair) != pair[1]]


@cache
def _usual(task: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """Return what a task's files say with these options of their groups."""
    schema = TASKS[task]
    try:
        return dict(leaves(compose_raw(schema.FOLDER, task, choices, schema, schema.GROUPS)))
    except UsageError:
        return {}
