"""What a line of metrics.jsonl says about the groups when they degenerate, and the likely cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smog.progress import say
from smog.schema import Method

# Thresholds are our choice, read off runs that collapsed and runs that learned (docs/fidelity.md).
DEAD = 0.8  # share of groups without an image; a healthy run has next to none
LARGEST = 0.3  # share of the images in one group
DUPLICATE = 0.5  # share of groups that repeat another one
CHANCE = 0.02  # how near to ln K a loss is no better than guessing
MOVEMENT = 0.2  # 1 - cosine of the groups before and after one step
WARM = 1.0  # epochs in which nothing is said


class Watch:
    """Reads the rows of a run as a logger does, and says once, on standard error, that its groups degenerate."""

    def __init__(self, method: Method, run: str) -> None:
        self.method, self.run, self.said = method, run, False

    def write(self, row: Mapping[str, Any]) -> None:
        """Look at a row; a method without groups has nothing to be looked at."""
        found = "" if self.said or "group_active" not in row else warning(row, self.method)
        if found:
            say(f"run {self.run}, step {row['step']}: {found}")
            self.said = True


def warning(row: Mapping[str, Any], method: Method) -> str:
    """Return one sentence on how the groups degenerate and what to change, or an empty text when they are fine.

    ``row`` is a line of metrics.jsonl. Only the first of several causes is named, the most severe.
    """
    if row["epoch"] < WARM:
        return ""
    groups = row["group_active"]
    if row["group_dead"] > DEAD * groups and row["group_duplicates"] > DUPLICATE * groups:
        return (
            f"{row['group_duplicates']:.0f} of {groups:.0f} groups are copies of others: the features have collapsed; "
            "a smaller optim.lr, or method.reset_momentum_encoder=true"
        )
    if row["group_dead"] > DEAD * groups or row["group_largest"] > LARGEST:
        return (
            f"{row['group_dead']:.0f} of {groups:.0f} groups hold no image, the largest holds "
            f"{100 * row['group_largest']:.0f} %: {_spread(method)}"
        )
    if abs(row["loss"] - row["chance_loss"]) < CHANCE * row["chance_loss"] and row["epoch"] >= 3 * WARM:
        return (
            f"the loss {row['loss']:.2f} is that of guessing (ln {groups:.0f} = {row['chance_loss']:.2f}): a larger "
            f"optim.lr, or a smaller method.temperature than {method.temperature}"
        )
    if row["group_movement"] > MOVEMENT:
        return (
            f"the groups turn by 1 - cosine = {row['group_movement']:.2f} in a step: targets can't follow; raise "
            f"method.group_momentum from {method.group_momentum}"
        )
    return ""


def _spread(method: Method) -> str:
    """Say what keeps the groups in use."""
    if not method.regroup_interval:
        return "they never regroup; take method.regroup_interval=300 (the paper's)"
    return f"regroup more often than every {method.regroup_interval} steps, or method.balanced_targets=true"
