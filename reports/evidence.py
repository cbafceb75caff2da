"""What a store says, read once and checked before anything is drawn of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from smog.errors import UsageError
from smog.store import RESULT_SCHEMA, read_json, run_folders

Result = dict[str, Any]
Key = tuple[str, str]  # run, and task@protocol
FIELDS = ("run_id", "group_id", "task", "protocol", "metrics", "cost", "inputs", "provenance", "created")
RESULT = {
    "schema": int, "run_id": str, "group_id": str, "seed": int, "task": str, "protocol": str, "settings": dict,
    "metrics": dict, "cost": dict, "cost.seconds": float, "cost.device": str, "inputs": dict, "inputs.train": int,
    "inputs.val": int, "provenance": dict, "provenance.commit": str, "provenance.versions": dict, "created": str,
}  # fmt: skip
KINDS = {
    dict: "no record", list: "no list", str: "no text", bool: "neither true nor false", int: "no whole number",
    float: "no finite number",
}  # fmt: skip
FREE = {"seed", "fingerprint"}  # of a task's settings: a draw of its own, and what inputs say better


def read_results(store: Path, runs: Iterable[str] | None = None) -> dict[Key, Result]:
    """Return every result of the given runs, or of all runs of the store, by run and task@protocol."""
    folders = run_folders(store) if runs is None else (store / run for run in dict.fromkeys(runs))
    return {
        (folder.name, path.name.removesuffix(".json")): read_result(path)
        for folder in folders
        for path in _files(folder / "results")
    }


def _files(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if "@" in name and name.endswith(".json"):
            yield folder / name


def read_result(path: Path) -> Result:
    """Read one result and check it: whole, of a schema that is known, where it belongs, and finite.

    Raises UsageError with one line that names the file and what to do.
    """
    found = read_record(path, RESULT)
    if (found.get("schema") or 1) > RESULT_SCHEMA:
        raise UsageError(
            f"{path} has schema {found['schema']}, this version reads up to {RESULT_SCHEMA}; update the suite"
        )
    lacks = [field for field in FIELDS if found.get(field) is None and (field != "group_id" or field not in found)]
    lacks += [field for field in ("metrics", "cost") if found.get(field) == {}]
    if lacks:
        raise UsageError(f"{path} lacks {', '.join(lacks)}; move it away and run the command again")
    found["settings"] = found.get("settings") or {}
    _check_place(path, found)
    for metric, value in found["metrics"].items():
        if not _is(value, float):
            raise UsageError(f"{path}: {metric} is {value!r}, no finite number; move it away and run the task again")
    return found


def read_record(path: Path, shape: Mapping[str, type]) -> dict[str, Any]:
    """Read a JSON file and check that it is an object, and its values, where there are some, of the kinds that readers
    count on. Raises UsageError with one line that names the file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no record; move it away and run the command again")
    if problem := misshapen(found, shape):
        raise UsageError(f"{path}: {problem}; move it away and run the command again")
    return found


def misshapen(found: Mapping[str, Any], shape: Mapping[str, type]) -> str:
    """Return which of the values that are there is not of its kind, empty where all are."""
    for name, kind in shape.items():
        value: Any = found
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and not _is(value, kind):
            return f"{name} is {value!r}, {KINDS[kind]}"
    return ""


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_place(path: Path, found: Result) -> None:
    """Refuse a result that lies where that of another identity belongs: one of the two would be taken for the other."""
    run, name = path.parts[-3], path.name.removesuffix(".json")
    claimed = f"{found['task']}@{found['protocol']}"
    if (found["run_id"], claimed) != (run, name):
        own = path.parents[2] / str(found["run_id"]) / "results" / f"{claimed}.json"
        twice = f", which has one already: {own}" if own.is_file() and own != path else ""
        raise UsageError(f"{path} says that it is {claimed} of run {found['run_id']}{twice}; move it away")


def same_but_seed(label: str, found: Mapping[int, Result], store: Path) -> None:
    """Refuse to average results that differ in anything but the seed, and name the first thing that differs."""
    seeds = sorted(found)
    if not seeds:
        return
    first = found[seeds[0]]
    for seed in seeds if len(seeds) > 1 else ():  # one may serve all seeds
        if found[seed].get("seed", seed) not in (seed, None):
            raise UsageError(
                f"{label}: run {found[seed]['run_id']} should be seed {seed}, its result says seed "
                f"{found[seed]['seed']}; move it away and run the grid again"
            )
    for seed in seeds[1:]:
        if difference := _difference(first, found[seed], store):
            raise UsageError(
                f"{label}: seeds {seeds[0]} and {seed} (runs {first['run_id']} and {found[seed]['run_id']}) differ in "
                f"{difference}, so their mean would mean nothing; run the grid again, or take one of them out"
            )


def _difference(one: Result, other: Result, store: Path) -> str:
    """Return what differs between two results beside the seed, with both values; empty where nothing does."""
    if one["group_id"] != other["group_id"]:
        return _configs_differ(store / one["run_id"], store / other["run_id"])
    pairs = {"protocol": (one["protocol"], other["protocol"]), "version": (one.get("version"), other.get("version"))}
    pairs |= {f"inputs.{key}": (one["inputs"].get(key), other["inputs"].get(key)) for key in ("data", "train", "val")}
    return next((f"{key} ({a} and {b})" for key, (a, b) in pairs.items() if a != b), "")


def _configs_differ(one: Path, other: Path) -> str:
    from smog.config import load
    from smog.identity import ingredients

    try:
        ours, theirs = (ingredients(load(folder / "config.yaml")) for folder in (one, other))
    except UsageError as error:
        return f"group_id ({error})"
    keys = [key for key in {**ours, **theirs} if key != "seed" and ours.get(key) != theirs.get(key)]
    if not keys:
        return "group_id (and in no key of their config.yaml: one of them was written by hand)"
    shown = f"{keys[0]} ({ours.get(keys[0])} and {theirs.get(keys[0])})"
    return f"{shown} and {len(keys) - 1} more" if len(keys) > 1 else shown
