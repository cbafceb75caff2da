"""What a plan will cost, before it is launched: from runs of the same kind in the store, else from the cost model."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.stock import Stock
from ablations.work import Job
from smog.cost_text import duration, si
from smog.data.sources import open_source
from smog.errors import UsageError, nearest
from smog.identity import cost_kind
from smog.schema import Config, Data

KEPT = ("weights", "momentum_copy", "optimizer", "groups", "cache")  # the parts of memory that a checkpoint holds
LOOK = 5  # runs of a kind whose results are looked at


@dataclass(frozen=True)
class Price:
    """Seconds of one device, bytes on the disk, and where the figures come from. ``tasks`` counts tasks without any."""

    seconds: float
    disk: int
    origin: str
    tasks: int = 0


@dataclass(frozen=True)
class Total:
    """The price of many jobs: hours of the device, hours on the clock with so many at once, bytes."""

    hours: float
    wall: float
    disk: int
    origins: dict[str, int]
    tasks: int

    def text(self) -> str:
        """Return the price in one line for people."""
        if not self.origins:
            return "nothing to pay for"
        origin = ", ".join(f"{runs} runs {origin}" for origin, runs in self.origins.items())
        apart = f"; {self.tasks} tasks that were never measured are not counted" if self.tasks else ""
        figures = f"{duration(self.hours)} of the device, {duration(self.wall)} on the clock, {si(self.disk, 'B')}"
        return f"{figures}: {origin}{apart}"


class Pricer:
    """Prices jobs; equal kinds are looked up, or modelled, once."""

    def __init__(self, stock: Stock, device: str = "") -> None:
        self.stock, self.device = stock, device
        self._images: dict[Data, int] = {}
        self._steps: dict[str, tuple[float, int, str]] = {}
        self._tasks: dict[tuple[str, str, str], float | None] = {}

    def price(self, job: Job, missing: Sequence[str]) -> Price:
        """Return what the missing stages of a job will take."""
        kind = cost_kind(job.config)
        seconds, disk, origin = self._a_step(kind, job.config)
        steps = self.steps(job.config) if "train" in missing else 0
        tasks = [self._a_task(kind, name, chosen) for name, chosen in job.tasks.items() if name in missing]
        known = sum(one for one in tasks if one is not None)
        return Price(steps * seconds + known, disk if "train" in missing else 0, origin, tasks.count(None))

    def steps(self, config: Config) -> int:
        """Return how many steps a run has."""
        if config.data not in self._images:
            self._images[config.data] = len(open_source(config.data, "train").labels)
        return round(config.optim.epochs * (self._images[config.data] // config.optim.batch))

    def _a_step(self, kind: str, config: Config) -> tuple[float, int, str]:
        """Return seconds a step, bytes of a run's folder, and their origin."""
        if not config.optim.epochs:
            return 0.0, 0, "without training"
        if kind not in self._steps:
            runs = self.stock.measured.get(kind, [])
            self._steps[kind] = self._measured(runs) if runs else self._modelled(config)
        return self._steps[kind]

    def _measured(self, runs: Sequence[Mapping[str, Any]]) -> tuple[float, int, str]:
        device, _ = Counter(str(run["device"]) for run in runs).most_common(1)[0]
        same = [run for run in runs if run["device"] == device]
        seconds = statistics.median(run["seconds"] / run["steps"] for run in same)
        return seconds, _size(self.stock.store / same[0]["run"]), f"as measured on {device}"

    def _modelled(self, config: Config) -> tuple[float, int, str]:
        from smog.cost import cost  # here, since torch takes seconds to import

        try:
            found = cost(config)
        except UsageError as error:  # a network that can't be built, say; the run itself will tell the same
            return 0.0, 0, f"without a price ({error})"
        row = _device(found["devices"], self.device)
        parts = next(iter(found["memory"].values()))
        steps = max(1, found["schedule"]["steps"])
        seconds = (row["hours"] or 0.0) * 3600 / steps
        return seconds, sum(parts[name] for name in KEPT), f"by the cost model for {row['name']}, not measured"

    def _a_task(self, kind: str, name: str, chosen: Any) -> float | None:
        """Return the seconds that a task took after runs of the same kind, None where nobody knows."""
        key = kind, name, repr(chosen)
        if key not in self._tasks:
            paths = [self.stock.result(run["run"], name, chosen) for run in self.stock.measured.get(kind, [])[:LOOK]]
            found = [result["cost"]["seconds"] for result in map(self.stock.read, paths) if result]
            self._tasks[key] = statistics.median(found) if found else None
        return self._tasks[key]


def total(prices: Sequence[Price], at_once: int) -> Total:
    """Sum prices up, for a launch that has so many devices at once."""
    seconds = sum(price.seconds for price in prices)
    longest = max((price.seconds for price in prices), default=0.0)
    return Total(
        seconds / 3600,
        max(seconds / max(1, at_once), longest) / 3600,
        sum(price.disk for price in prices),
        dict(Counter(price.origin for price in prices)),
        sum(price.tasks for price in prices),
    )


def _device(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return the device of the cost model with a name; without one this machine's GPU where it is known, or a core."""
    names = [row["name"] for row in rows]
    wanted = name or _own_gpu()
    for row in rows:
        if wanted and wanted.lower() in row["name"].lower():
            return row
    if name:
        raise UsageError(f"launch.device={name!r} is not known to the cost model{nearest(name, names)}")
    return rows[-1]


def _own_gpu() -> str:
    """Return the part of this GPU's name that the cost model's devices are known by."""
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((name for name in ("H100", "A100", "V100", "4090") if name in found), "")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
