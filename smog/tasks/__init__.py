"""What is computed from a run. A task is a settings dataclass, a version, and a function of features and settings."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smog.config import CONF, build, compose_raw, key_names
from smog.errors import UsageError, nearest
from smog.identity import digest
from smog.limits import finite

TASKS = ("knn", "linear")


def settings(task: str, overrides: Sequence[str] = ()) -> Any:
    """Return the settings of a task: its protocol file conf/task/<task>.yaml and overrides such as ``k=20``."""
    schema = _module(task).Settings
    chosen = build(schema, compose_raw(CONF / "task", task, overrides, {}, key_names(schema)))
    finite(chosen)
    chosen.validate()
    return chosen


def protocol(task: str, chosen: Any) -> str:
    """Return 8 hex digits over the task, the version of its code and all its settings."""
    return digest({"task": task, "version": _module(task).VERSION, **asdict(chosen)}, length=8)


def _module(task: str) -> Any:
    if task not in TASKS:
        raise UsageError(f"no task {task!r}{nearest(task, TASKS)}")
    return importlib.import_module(f"smog.tasks.{task}")


def evaluate(folder: Path, task: str, chosen: Any) -> Path:
    """Compute a task of a finished run, unless its result is there already, and return the result's path."""
    from smog.store import result_path

    path = result_path(folder, task, protocol(task, chosen))
    if not path.exists():
        from smog.tasks.result import compute

        compute(folder, task, chosen, _module(task), path)
    return path
