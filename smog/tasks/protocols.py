"""What a task is asked to do: its settings, and the version of its code. Light: planning looks at nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from smog.errors import UsageError, nearest

CONF = Path(__file__).parents[1] / "conf" / "task"


@dataclass(frozen=True)
class Settings(ABC):
    """The settings of a task. Fields marked as runtime stay out of its identity."""

    VERSION: ClassVar[int]  # of the task's code: raised when the same input would give another number
    MODULE: ClassVar[str]  # where that code is: compute(features, settings), or of_run(folder, config, settings)
    FOLDER: ClassVar[Path] = CONF  # of the protocol file, <task>.yaml
    TRAINS: ClassVar[bool] = False  # whether it goes on with the backbone's training, which raw pixels have none of
    GROUPS: ClassVar[tuple[str, ...]] = ()  # folders beside it, one of whose files is chosen, such as a schedule

    @abstractmethod
    def validate(self) -> None:
        """Check what the types can't say. Raises UsageError."""

    def resolved(self) -> Self:
        """Return the settings with what only the machine, or the data themselves, can tell."""
        return self


def ranges(
    chosen: Settings,
    choices: Mapping[str, Sequence[str]],
    at_least: Mapping[int, Iterable[str]],
    shares: Iterable[str],
) -> None:
    """Check single values: one of ``choices``, ``at_least`` a number, or a share from 0 to 1. Raises UsageError that
    names the key, its value, and the range or the nearest choice."""
    for key, known in choices.items():
        if getattr(chosen, key) not in known:
            raise UsageError(f"{key}={getattr(chosen, key)!r}{nearest(getattr(chosen, key), known)}")
    for least, keys in at_least.items():
        for key in keys:
            if getattr(chosen, key) < least:
                raise UsageError(f"{key}={getattr(chosen, key)}: must be at least {least}")
    for key in shares:
        if not 0 <= getattr(chosen, key) <= 1:
            raise UsageError(f"{key}={getattr(chosen, key)}: must be from 0 to 1")


def same_data(expected: str, found: str, where: str) -> None:
    """Refuse data of another fingerprint than the settings have; they may have none."""
    if expected not in ("", found):
        raise UsageError(f"fingerprint={expected}, but {where} has {found}: these are other images")


@dataclass(frozen=True)
class Knn(Settings):
    """Neighbours that vote, and the temperature of their weights exp(cosine / temperature)."""

    VERSION: ClassVar[int] = 1
    MODULE: ClassVar[str] = "smog.tasks.knn"
    k: int
    temperature: float

    def validate(self) -> None:
        """Check what the types can't say."""
        if self.k < 1:
            raise UsageError(f"k={self.k}: must be at least 1")
        if self.temperature <= 0:
            raise UsageError(f"temperature={self.temperature}: must be above 0")


@dataclass(frozen=True)
class Linear(Settings):
    """The grid of heads that are trained in one pass, and the pass."""

    VERSION: ClassVar[int] = 1
    MODULE: ClassVar[str] = "smog.tasks.linear"
    lrs: list[float]
    weight_decays: list[float]
    epochs: int
    batch: int
    momentum: float
    minival: float  # share of train that chooses among the heads
    seed: int

    def validate(self) -> None:
        """Check what the types can't say."""
        if not self.lrs or not self.weight_decays or min(self.lrs) <= 0 or min(self.weight_decays) < 0:
            raise UsageError("lrs must be above 0 and weight_decays 0 or more, at least one of each")
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(f"epochs={self.epochs} and batch={self.batch}: must be at least 1")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum={self.momentum}: must be from 0 to below 1")
        if not 0 < self.minival < 1:
            raise UsageError(f"minival={self.minival}: must be between 0 and 1")


@dataclass(frozen=True)
class Diagnostics(Settings):
    """How many val images, and of each how many neighbours, are kept for pictures, and how many groups."""

    VERSION: ClassVar[int] = 1
    MODULE: ClassVar[str] = "smog.tasks.diagnostics"
    queries: int
    shown: int
    groups: int

    def validate(self) -> None:
        """Check what the types can't say."""
        ranges(self, {}, {1: ("queries", "shown", "groups")}, ())


# others add theirs: transfer/protocols.py
TASKS: dict[str, type[Settings]] = {"knn": Knn, "linear": Linear, "diagnostics": Diagnostics}
