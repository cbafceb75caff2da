"""What is computed from a run. A task is its settings and version (protocols.py) and a function of features."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smog.attempts import attempt
from smog.config import build, compose_raw
from smog.errors import UsageError, nearest
from smog.identity import as_dict, digest
from smog.limits import finite
from smog.signals import StopSignals
from smog.tasks.protocols import TASKS, Settings


def settings(task: str, overrides: Sequence[str] = ()) -> Any:
    """Return the settings of a task: its protocol file <task>.yaml and overrides such as ``k=20``."""
    schema = schema_of(task)
    chosen = build(schema, compose_raw(schema.FOLDER, task, overrides, schema, schema.GROUPS))
    finite(chosen)
    chosen.validate()
    return chosen.resolved()


def protocol(task: str, chosen: Any) -> str:
    """Return 8 hex digits over the task, the version of its code and all its settings that can change a number."""
    return digest({"task": task, "version": schema_of(task).VERSION, **as_dict(chosen, science_only=True)}, length=8)


def schema_of(task: str) -> type[Settings]:
    """Return the dataclass of a task's settings."""
    if task not in TASKS:
        raise UsageError(f"no task {task!r}{nearest(task, TASKS)}")
    return TASKS[task]


def evaluate(folder: Path, task: str, chosen: Any) -> Path:
    """Compute a task of a finished run, unless its result is there already, and return the result's path.

    Raises BusyError while another process computes it, StoppedError after a signal to stop.
    """
    from smog.store import result_path

    code = protocol(task, chosen)
    path = result_path(folder, task, code)
    if not path.exists():
        from smog.tasks.result import compute

        with StopSignals(), attempt(folder, f"{task}@{code}"):
            if not path.exists():  # or another process was faster
                compute(folder, task, chosen, importlib.import_module(chosen.MODULE), path)
    return path
