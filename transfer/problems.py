"""What is wrong with a data set, collected and told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from smog.errors import UsageError

EXAMPLES = 3


class Problems:
    """What is wrong in one place, by kind: how often, and the first examples."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.kinds: dict[str, list[Any]] = {}

    def add(self, kind: str, example: str) -> None:
        """Note one more of a kind."""
        known = self.kinds.setdefault(kind, [0])
        known[0] += 1
        if known[0] <= EXAMPLES:
            known.append(example)

    def stop(self) -> None:
        """Raise UsageError over all that was noted; without any, do nothing."""
        if self.kinds:
            raise UsageError(f"{self.place}: {'; '.join(self._told())}. Mend these, or leave them out") from None

    def _told(self) -> Iterator[str]:
        for kind, (count, *examples) in self.kinds.items():
            more = f" and {count - len(examples)} more" if count > len(examples) else ""
            yield f"{count} {kind} ({', '.join(examples)}{more})"


def some(names: Sequence[str]) -> str:
    """Return the first few of many names as a text."""
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
