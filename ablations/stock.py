"""What the store has of a plan: finished runs, results, and what was measured of their cost."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.work import Job
from smog.progress import say
from smog.store import DONE, result_path, run_folders
from smog.tasks import protocol

WHOLE = {  # what a file must hold to be one, by its name or its folder's
    DONE: {"steps", "seconds"},
    "results": {"run_id", "metrics", "cost", "inputs", "provenance"},
}


class Stock:
    """A store as it was when it was looked at; each file is read once, a damaged one counts as missing."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.runs = {folder.name for folder in run_folders(store)}
        self.damaged: list[Path] = []
        self._read: dict[Path, dict[str, Any] | None] = {}
        self._protocols: dict[tuple[str, str], str] = {}

    def read(self, path: Path) -> dict[str, Any] | None:
        """Return a JSON file of the store, None where it is missing or damaged."""
        if path not in self._read:
            self._read[path] = self._load(path)
        return self._read[path]

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_bytes())
            if isinstance(found, dict) and found.keys() >= WHOLE.get(path.name, WHOLE.get(path.parent.name, set())):
                return found
        except OSError:
            return None
        except ValueError:
            pass
        self.damaged.append(path)
        return None

    def missing(self, job: Job) -> list[str]:
        """Return what the store lacks of a job: ``train`` and the names of tasks."""
        if job.run not in self.runs:
            return ["train", *job.tasks]
        folder = self.store / job.run
        found = [] if self.read(folder / DONE) else ["train"]
        return found + [name for name, chosen in job.tasks.items() if not self.read(self.result(job.run, name, chosen))]

    def result(self, run: str, task: str, chosen: Any) -> Path:
        """Return where the result of a task of a run lies."""
        key = task, repr(chosen)
        if key not in self._protocols:
            self._protocols[key] = protocol(task, chosen)
        return result_path(self.store / run, task, self._protocols[key])

    def set_aside(self) -> None:
        """Move damaged files out of the way, and say so: what they held is computed again."""
        for path in self.damaged:
            path.rename(path.with_name(f"{path.name}.damaged"))
            say(f"{path} is damaged; it lies beside its place as {path.name}.damaged, and is computed again")
        self.damaged.clear()

    @cached_property
    def measured(self) -> dict[str, list[dict[str, Any]]]:
        """What finished runs cost, by the kind of run; see smog.identity.cost_kind."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in sorted(self.runs):
            done = self.read(self.store / run / DONE)
            if done and done.get("steps") and "kind" in done:
                found[done["kind"]].append({**done, "run": run})
        return found
