"""What a run took, what of it was lost, and how a result that is missing stands: read from the run's attempts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smog.attempts import history, holder, stages
from smog.store import DONE

TAIL = 4096  # bytes at the end of metrics.jsonl, in which the last whole line lies
FINE = ("done", None)  # outcomes without waste


@dataclass(frozen=True)
class Spent:
    """Attempts at all stages of a run, how many failed, and the seconds of what is in no result."""

    attempts: int = 0
    failed: int = 0
    waste: float = 0.0


def spent(folder: Path) -> Spent:
    """Return what the attempts at a run took. One attempt a stage that ended well wastes nothing."""
    found = {stage: _count(folder / "attempts" / stage) for stage in stages(folder)}
    count = sum(found.values())
    if all(number == 1 and _ended_well(folder, stage) for stage, number in found.items()):
        return Spent(count)
    tried = {stage: _attempts(folder, stage) for stage in found}
    failed = sum(one["outcome"] not in FINE for attempts in tried.values() for one in attempts)
    return Spent(count, failed, waste(folder, tried))


def _count(place: Path) -> int:
    return sum(name.endswith(".json") for name in os.listdir(place)) if place.is_dir() else 0


def _ended_well(folder: Path, stage: str) -> bool:
    return (folder / DONE if stage == "train" else folder / "results" / f"{stage}.json").is_file()


def _attempts(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return the attempts at a stage; one that ended without a word, and that nobody has closed yet, as killed."""
    found = [one for one in history(folder, stage) if "outcome" in one]
    if found and not found[-1]["outcome"] and not holder(folder, stage):
        found[-1] |= {"outcome": "killed", "seconds": max(0.0, found[-1]["sign"] - found[-1]["began"])}
    return found


def waste(folder: Path, tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Return the seconds of attempts that are in no result: those of all that ended, without what is kept of them."""
    lost = 0.0
    for stage, attempts in tried.items():
        seconds = sum(one.get("seconds", 0.0) for one in attempts)
        if not any(one["outcome"] not in FINE for one in attempts):
            continue
        kept = _kept(folder) if stage == "train" else 0.0
        if stage != "train" and attempts[-1]["outcome"] == "done":
            kept = attempts[-1]["seconds"]
        lost += max(0.0, seconds - kept)
    return lost


def _kept(folder: Path) -> float:
    """Return the seconds of training that count: those of the finished run, or those up to its last line."""
    try:
        return float(json.loads((folder / DONE).read_bytes())["seconds"])
    except (OSError, ValueError, KeyError):
        return float((last_row(folder) or {}).get("time", {}).get("seconds", 0.0))


def last_row(folder: Path) -> dict[str, Any] | None:
    """Return the last whole line of a run's metrics, from the end of the file."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what comes after the last line break was cut
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None


def state(folder: Path, stage: str) -> tuple[str, str]:
    """Return how a stage (train, or task@protocol) without a result stands, in a word and a reason: running, failed,
    or waiting for its turn or for the training."""
    if not folder.is_dir():
        return "waiting", "never started"
    for name in ("train", stage):
        if name == "train" and (folder / DONE).is_file():
            continue
        if found := holder(folder, name):
            owner = found["owner"]
            where = f"Slurm {owner['job']} on {owner['node']}" if owner["job"] else f"process {owner['pid']}"
            return "running", f"{name}: {where}"
        attempts = history(folder, name)
        if attempts and attempts[-1]["outcome"] != "done":
            kind = attempts[-1]["outcome"] or "killed"
            reason = " ".join(str(attempts[-1].get("reason", "it ended without a word")).split())
            return "failed", f"{name}: {kind}, {reason}"
    return "waiting", "the run is finished" if (folder / DONE).is_file() else "the run is not finished"
