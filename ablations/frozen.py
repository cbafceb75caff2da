"""The code as it was at submission: a copy in the store, so that editing a file changes no queued job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from smog.environment import COMMIT, provenance

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("smog", "ablations", "transfer")  # what a job imports


def freeze(store: Path) -> Path:
    """Copy the packages into ``<store>/code/<digest>``, with the commit that they come from, and return that folder."""
    files = _files()
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path}\0".encode() + (ROOT / path).read_bytes())
    commit = {name: provenance()[name] for name in ("commit", "dirty")}
    content.update(json.dumps(commit).encode())
    place = store.absolute() / "code" / content.hexdigest()[:12]
    if not place.exists():
        _copy(files, place, commit)
    return place


def _files() -> list[Path]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


def _copy(files: list[Path], place: Path, commit: dict[str, object]) -> None:
    """Make the copy under another name and rename it: a reader sees all of it or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=place.parent))
    temporary.chmod(0o755)
    for path in files:
        (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, temporary / path)
    (temporary / COMMIT).write_text(json.dumps(commit))
    try:
        os.rename(temporary, place)
    except OSError:  # another launch was faster with the same copy
        shutil.rmtree(temporary)
        if not place.exists():
            raise
