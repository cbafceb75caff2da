"""The results: one folder a run, one atomic JSON a (run, task, protocol). Files alone, no database (design 6)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from smog.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

DONE = "done"  # the file of a finished run, written last
RESULT_SCHEMA = 1  # of result files: raised when a field changes its meaning, so that old readers refuse new files
RUN_ID = re.compile(r"[0-9a-f]{12}")
COLUMNS = (
    "run_id", "group_id", "seed", "task", "protocol", "metric", "value",
    "seconds", "device", "peak_memory", "commit", "dirty", "created",
)  # fmt: skip


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part of it.

    The temporary file lies in the same folder, since a rename is atomic within one file system only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since no reader may meet them."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read a JSON file of the store; a damaged one is named."""
    try:
        content = path.read_bytes()
        found = json.loads(content)
        if b"\\ud" in content.lower():  # half a character, which no file can be written of
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON ({error}); move it away and run the command again") from None


def find_run(store: Path, run: str) -> Path:
    """Return the folder of a run given by its id, its first characters, its folder or its checkpoint file."""
    path = Path(run)
    if path.is_file():
        path = path.parent
    if (path / "config.yaml").is_file():
        return path
    matches = [folder for folder in run_folders(store) if run and folder.name.startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"run {run!r} is ambiguous in {store}: {', '.join(folder.name for folder in matches)}")
    raise UsageError(f"no run {run!r} in {store}: neither an id there, nor a run folder, nor a checkpoint in one")


def run_folders(store: Path) -> Iterator[Path]:
    """Yield the folders of all runs in the store, in order of their ids."""
    if store.is_dir():
        yield from sorted(path for path in store.iterdir() if RUN_ID.fullmatch(path.name))


def result_path(folder: Path, task: str, protocol: str) -> Path:
    """Return where the result of a task under a protocol lies in a run's folder."""
    return folder / "results" / f"{task}@{protocol}.json"


def results(store: Path) -> Iterator[dict[str, Any]]:
    """Yield every result of every run of the store."""
    for folder in run_folders(store):
        for path in sorted((folder / "results").glob("*@*.json")):
            yield read_json(path)


def scan(store: str | Path) -> pd.DataFrame:
    """Return the store as one tidy table: a row for every (run, task, protocol, metric).

    Columns: see ``COLUMNS``. ``value`` is the metric (top-1 in percent), ``seconds`` and ``peak_memory``
    (bytes) are what the task itself cost. An empty or missing store gives an empty table.
    """
    import pandas as pd  # here, because --help must not pay for it

    rows = [row for result in results(Path(store)) for row in _rows(result)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    flat = {**result, **result["cost"], **result["provenance"]}
    shared = {name: flat[name] for name in COLUMNS if name in flat}
    for metric, value in result["metrics"].items():
        yield {**shared, "metric": metric, "value": value}


def grid_path(store: Path, record: dict[str, Any]) -> Path:
    """Return where the record of a grid lies."""
    return store / "grids" / f"{record['grid']}-{record['id']}.json"


def write_grid(store: Path, record: dict[str, Any]) -> Path:
    """Keep what a grid consists of (its cells, their runs, its metric), so that reports need not plan it again."""
    path = grid_path(store, record)
    write_json(path, record)
    return path


def grids(store: Path) -> list[dict[str, Any]]:
    """Return the records of all grids that were run with this store."""
    return [read_json(path) for path in sorted((store / "grids").glob("*.json"))]
