"""What a task is asked to do: its settings, and the version of its code. Light: planning looks at nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smog.errors import UsageError


@dataclass(frozen=True)
class Knn:
    """Neighbours that vote, and the temperature of their weights exp(cosine / temperature)."""

    VERSION: ClassVar[int] = 1  # of tasks/knn.py: raised when the same features would give another number
    k: int
    temperature: float

    def validate(self) -> None:
        """Check what the types can't say."""
        if self.k < 1:
            raise UsageError(f"k={self.k}: must be at least 1")
        if self.temperature <= 0:
            raise UsageError(f"temperature={self.temperature}: must be above 0")


@dataclass(frozen=True)
class Linear:
    """The grid of heads that are trained in one pass, and the pass."""

    VERSION: ClassVar[int] = 1  # of tasks/linear.py: raised when the same features would give another number
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


TASKS = {"knn": Knn, "linear": Linear}
