"""What the command line of ``python ablations/run.py`` asks for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smog.__main__ import take, take_json
from smog.errors import UsageError, nearest

ACTIONS = ("run", "plan", "explain", "status", "results", "cancel")
OWN = {
    "action": "run", "launch": "local", "store": "runs", "grid": "", "max_hours": "", "pack": "false", "cell": "",
    "watch": "false",
}  # fmt: skip
LAUNCHERS = ("inline", "local", "slurm")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    action: str
    how: str
    store: Path
    grids: list[str]
    changes: dict[str, Any]  # to the grids themselves
    overrides: list[str]  # of every run
    launcher: list[str]  # of the launcher
    max_hours: float | None
    pack: int
    cell: str
    seed: int | None
    watch: bool
    json: bool
    command: str


def parse(arguments: list[str]) -> Request:
    """Read ``key=value`` arguments; what is not for the command itself goes to every run."""
    command = shlex.join(["python", "ablations/run.py", *(a for a in arguments if a != "--json")])
    as_json, rest = take_json(arguments)
    own = {}
    for key, default in OWN.items():
        own[key], rest = take(rest, key, default)
    for key, known in (("action", ACTIONS), ("launch", LAUNCHERS), ("watch", ("true", "false"))):
        if own[key] not in known:
            raise UsageError(f"{key}={own[key]!r}{nearest(own[key], known)}")
    launcher = [argument.removeprefix("launch.") for argument in rest if argument.startswith("launch.")]
    rest = [argument for argument in rest if not argument.startswith("launch.")]
    changes, rest = _changes(rest)
    seed = ""
    if own["action"] == "explain":
        seed, rest = take(rest, "seed", "")
    return Request(
        action=own["action"],
        how=own["launch"],
        store=Path(own["store"]),
        grids=_names(own["grid"]),
        changes=changes,
        overrides=rest,
        launcher=launcher,
        max_hours=_hours(own["max_hours"]),
        pack=_pack(own["pack"]),
        cell=own["cell"],
        seed=_whole("seed", seed) if seed else None,
        watch=own["watch"] == "true",
        json=as_json,
        command=command,
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.strip("[]").split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise UsageError(f"grid={text}: a grid is named twice")
    return names or [""]  # which is answered with the names that there are


def _hours(text: str) -> float | None:
    if not text:
        return None
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours < float("inf"):
        raise UsageError(f"max_hours={text!r}: a number of hours expected")
    return hours


def _pack(text: str) -> int:
    """Return how many runs are trained together at most; 0 is any number."""
    if text in ("true", "false"):
        return 0 if text == "true" else 1
    count = _whole("pack", text)
    if count < 1:
        raise UsageError(f"pack={text}: true, false or at least 1 expected")
    return count


def _whole(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{key}={text!r}: a whole number expected") from None


def _changes(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what the arguments change in the grids themselves, and the other arguments."""
    import yaml

    changes = {}
    for key in ("seeds", "tasks", "metric"):
        text, arguments = take(arguments, key, "")
        if text:
            try:
                changes[key] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UsageError(f"{key}={text}: {' '.join(str(error).split())}") from None
    return changes, arguments
