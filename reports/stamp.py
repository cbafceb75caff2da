"""Has anything changed since the last build? Told by names, sizes and times of files alone, in less than a second."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from smog.store import run_folders

CODE = ("reports", "smog", "transfer")
LIBRARIES = ("matplotlib", "pandas", "jinja2", "tabulate", "scipy", "tueplots")
SKIPPED = ("last.pt", "previous.pt", "next.pt")  # a report does not look at weights


def sources(store: Path, wanted: str) -> str:
    """Return a digest over what a report is made of: the store's files, the code, the versions of the libraries, and
    what was asked for."""
    root = Path(__file__).resolve().parents[1]
    versions = (sys.version, *(f"{name} {version(name)}" for name in LIBRARIES))
    folders = [*(root / name for name in CODE), store / "grids"]
    trees = (line for folder in folders for line in _tree(folder))
    return _digest((wanted, *versions, *trees, _line(f"{store}/dropped.yaml"), *_runs(store)))


def written(out: Path) -> str:
    """Return a digest over the files in the folder of a report."""
    return _digest(_tree(out))


def _digest(lines: Iterable[str]) -> str:
    seen = hashlib.sha256()
    for line in lines:
        seen.update(line.encode(errors="surrogateescape"))
    return seen.hexdigest()


def _tree(folder: Path) -> Iterator[str]:
    """Yield a line for each file below a folder, in order."""
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith("."):
                yield _line(f"{path}/{name}")


def _line(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return f"{path}\0is not there\n"
    return f"{path}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n"


def _runs(store: Path) -> Iterator[str]:
    """Yield what stands for the files of every run; of its attempts the times of their folders, which tell new ones and
    those that have ended: both are renamed into their place."""
    for folder in run_folders(store):
        for place in (folder, folder / "results", folder / "attempts"):
            yield from _entries(place)


def _entries(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name not in SKIPPED)
    except OSError:
        return
    for name in names:
        yield _line(f"{folder}/{name}")
