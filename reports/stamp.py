"""Has anything changed since the last build? Told by names, sizes and times of files alone, in less than a second."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from smog.store import run_folders

CODE = ("reports", "smog", "transfer")
LIBRARIES = ("matplotlib", "pandas", "jinja2", "tabulate", "scipy", "tueplots")
SKIPPED = ("last.pt", "previous.pt", "next.pt")  # a report does not look at weights


def stamp(store: Path, out: Path, wanted: str) -> str:
    """Return a digest over what a report is made of and what it wrote: the store's files, the code, the versions of the
    libraries, what was asked for, and the outputs."""
    seen = hashlib.sha256()
    for line in (wanted, sys.version, *(f"{name} {version(name)}" for name in LIBRARIES)):
        seen.update(line.encode())
    root = Path(__file__).resolve().parents[1]
    folders = [*(root / name for name in CODE), store / "grids", out]
    for folder in folders:
        for line in _tree(folder):
            seen.update(line.encode())
    for line in (_line(store / "dropped.yaml"), *_runs(store)):
        seen.update(line.encode())
    return seen.hexdigest()


def _tree(folder: Path) -> Iterator[str]:
    """Yield a line for each file below a folder, in order."""
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith("."):
                yield _line(Path(path) / name)


def _line(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path} is not there\n"
    return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n"


def _runs(store: Path) -> Iterator[str]:
    """Yield what stands for the files of every run; of its attempts the times of their folders, which tell new ones."""
    for folder in run_folders(store):
        for place in (folder, folder / "results"):
            yield from _entries(place)
        yield from _entries(folder / "attempts")


def _entries(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.stat()) for entry in entries if entry.name not in SKIPPED)
    except OSError:
        return
    for name, status in found:
        yield f"{folder}/{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
