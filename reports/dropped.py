"""Seeds that do not count: only what ``<store>/dropped.yaml`` lists, each with a reason, which every table prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reports.tables import Record
from smog.errors import UsageError, nearest
from smog.store import RUN_ID

FILE = "dropped.yaml"
KEYS = ("run", "grid", "cell", "seed", "reason")
FORM = "expected: {run: ID, reason: WHY}, or {grid: NAME, seed: N, reason: WHY}, with cell: LABEL for one cell alone"


def dropped(store: Path, records: Sequence[Record]) -> dict[str, str]:
    """Return the runs that do not count, with the reason. Raises UsageError for an entry without a reason, or one that
    names nothing in the store: a mistyped seed would silently count."""
    path = store / FILE
    if not path.is_file():
        return {}
    import yaml

    try:
        entries = yaml.safe_load(path.read_bytes()) or []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list):
        raise UsageError(f"{path} must be a list; {FORM}")
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        found |= dict.fromkeys(
            _runs(where, _checked(where, entry), store, records), " ".join(str(entry["reason"]).split())
        )
    return found


def _checked(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is {entry!r}; {FORM}")
    for key in entry:
        if key not in KEYS:
            raise UsageError(f"{where} has the key {key!r}{nearest(str(key), KEYS)}")
    if not str(entry.get("reason") or "").strip():
        raise UsageError(f"{where} has no reason; {FORM}")
    if ("run" in entry) == ("grid" in entry) or ("grid" in entry and "seed" not in entry):
        raise UsageError(f"{where}: {FORM}")
    return entry


def _runs(where: str, entry: dict[str, Any], store: Path, records: Sequence[Record]) -> list[str]:
    if "run" in entry:
        run = str(entry["run"])
        if not (RUN_ID.fullmatch(run) and (store / run).is_dir()):
            raise UsageError(f"{where}: no run {run} in {store}")
        return [run]
    found = list(_cells(entry, records))
    if not found:
        wanted = ", ".join(f"{key} {entry[key]}" for key in ("grid", "cell", "seed") if key in entry)
        raise UsageError(f"{where}: nothing in the store is {wanted}")
    return found


def _cells(entry: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        for cell in record["cells"] if record["grid"] == entry["grid"] else ():
            alone = len(set(cell["runs"].values())) == 1 < len(cell["runs"])  # as raw pixels, whose one run has no seed
            run = cell["runs"].get(str(entry["seed"]))
            if run and not alone and str(entry.get("cell", cell["label"])) == cell["label"]:
                yield run
