"""What a report consists of before any of it is written: its sections, the runs behind them, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from reports.cells import Table
from reports.commands import task_command, train_command
from reports.evidence import Key, Result, read_record
from reports.spent import Spent, spent
from smog.config import backbone_name, load, read_yaml
from smog.errors import UsageError
from smog.identity import ingredients, leaves
from smog.store import DONE

TRAINING = {"seconds": float, "steps": int, "device": str, "finished": str}
ENVIRONMENT = {
    "commit": str, "device": str, "precision": str, "processes": int, "versions": dict, "machine": dict,
    "machine.memory": float,
}  # fmt: skip
NOT_SHOWN = ("seed", "schema", "code")  # of a group's configuration: the run says the first, its identity the others


@dataclass(frozen=True)
class Run:
    """A run behind a number. A stranger's checkpoint has no configuration, no seed and no command that trains it.

    ``config``: every value that can change a result, by dotted name, but the seed; the same object for all seeds.
    ``backbone``: by which name it is chosen.
    ``results`` and ``commands`` (what computes them): by task@protocol. ``training``: the file ``done``, empty where
    the training is not finished. ``environment``: the file env.json.
    """

    run: str
    group: str
    seed: int | None
    recipe: str
    backbone: str
    config: Mapping[str, Any]
    command: str
    results: Mapping[str, Result]
    commands: Mapping[str, str]
    training: Mapping[str, Any]
    environment: Mapping[str, Any]
    spent: Spent

    @cached_property
    def seconds(self) -> float:
        """Seconds of the training and of all results together."""
        return sum((one["cost"]["seconds"] for one in self.results.values()), self.training.get("seconds", 0.0))

    @property
    def commit(self) -> str:
        """The commit that the run was trained with, + where it had changes that were not committed; empty: unknown."""
        commit = self.environment.get("commit") or ""
        return f"{commit[:10]}+" if commit and self.environment.get("dirty") else commit[:10]


@dataclass(frozen=True)
class Gap:
    """A planned result that the store lacks: where it would stand, and how its run stands (see reports/spent.py)."""

    row: str
    seed: int
    run: str
    task: str
    state: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its files by kind (pdf, svg, png), and the digest of all that it shows."""

    name: str
    title: str
    words: str
    digest: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Section:
    """A table with what belongs to it. ``name`` is that of its files, ``kind`` what its rows are: the cells of a grid,
    or all runs of one task and protocol (paper). ``command`` computes it again; ``notes`` say what could not be drawn,
    ``undrawn`` the digest of each such figure, and why.
    """

    name: str
    title: str
    kind: Literal["grid", "paper"]
    table: Table
    command: str
    runs: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()
    undrawn: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All sections, and every run behind them once, by id."""

    sections: tuple[Section, ...]
    runs: Mapping[str, Run]
    dropped: Mapping[str, str] = field(default_factory=dict)  # run -> why it does not count

    @property
    def draft(self) -> bool:
        """Whether any table lacks planned results."""
        return any(section.table.draft for section in self.sections)


class Runs:
    """Reads runs, the configuration once a group: its seeds share it."""

    def __init__(self, store: Path, results: Mapping[Key, Result]) -> None:
        self.store = store
        self._results: dict[str, dict[str, Result]] = {}
        for (run, name), result in results.items():
            self._results.setdefault(run, {})[name] = result
        self._groups: dict[str, _Group] = {}

    def read(self, run: str, group: str, seed: int | None) -> Run:
        """Return what the store knows of a run; of one that never started its id alone."""
        folder, results = self.store / run, self._results.get(run, {})
        own = self._group(folder, group)
        command = own.command.replace("seed=?", f"seed={seed}")
        return Run(
            run, group, seed, own.recipe, own.backbone, own.config, command, results,
            {name: task_command(result) for name, result in results.items()},
            _optional(folder / DONE, TRAINING), _optional(folder / "env.json", ENVIRONMENT), spent(folder),
        )  # fmt: skip

    def _group(self, folder: Path, group: str) -> _Group:
        path = folder / "config.yaml"
        if group not in self._groups:
            if not path.is_file():
                return _Group()
            self._groups[group] = _read_group(path)
        return self._groups[group]


@dataclass(frozen=True)
class _Group:
    recipe: str = ""
    backbone: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


def _read_group(path: Path) -> _Group:
    try:
        config = load(path)
    except UsageError:  # of another version of the suite, whose keys were others: shown as it is
        values = {name: _plain(value) for name, value in leaves(read_yaml(path))}
        return _Group(str(values.pop("recipe", "")), str(values.get("backbone.name", "")), values)
    command = train_command(config).replace(f" seed={config.seed}", " seed=?", 1)
    values = {name: value for name, value in ingredients(config).items() if name not in NOT_SHOWN}
    return _Group(config.recipe, backbone_name(config.backbone), values, command)


def _plain(value: Any) -> Any:
    """Return a value of a YAML file as JSON can hold it: a date, or a number that is none, as its text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    known = value is None or (isinstance(value, str | int | float) and (isinstance(value, str) or math.isfinite(value)))
    return value if known else str(value)


def _optional(path: Path, shape: Mapping[str, type]) -> dict[str, Any]:
    return read_record(path, shape) if path.is_file() else {}
