"""What the runs of a report took and lost, section by section and in all, and where and with what they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from reports.embedded import commit
from reports.report import Report, Run, Section


@dataclass(frozen=True)
class Cost:
    """Runs that were started, attempts at all their stages, how many failed, and seconds; waste is in no result."""

    runs: int
    attempts: int
    failed: int
    training: float
    tasks: float
    waste: float


def section_cost(report: Report, section: Section) -> Cost:
    """Return what the runs of a section took, of their tasks those that its table shows."""
    shown = {f"{one.task}@{one.protocol}" for row in section.table.rows for one in row.measures}
    return _cost([report.runs[run] for run in dict.fromkeys(section.runs)], shown)


def whole_cost(report: Report) -> Cost:
    """Return what all runs took, each once, with all their results, shown or not."""
    return _cost(report.runs.values(), None)


def _cost(runs: Iterable[Run], shown: Container[str] | None) -> Cost:
    begun = [run for run in runs if run.training or run.results or run.spent.attempts]
    tasks = (
        result["cost"]["seconds"]
        for run in begun
        for name, result in run.results.items()
        if shown is None or name in shown
    )
    return Cost(
        len(begun),
        sum(run.spent.attempts for run in begun),
        sum(run.spent.failed for run in begun),
        sum(run.training.get("seconds", 0.0) for run in begun),
        sum(tasks),
        sum(run.spent.waste for run in begun),
    )


def origins(report: Report) -> list[tuple[str, str, int]]:
    """Return the devices, commits and versions of the runs and their results: what, which, and in how many runs."""
    counts = Counter(pair for run in report.runs.values() for pair in dict.fromkeys(_origins(run)))
    order = {"device": 0, "commit": 1}
    ranked = sorted(counts.items(), key=lambda item: (order.get(item[0][0], 2), item[0][0], -item[1], item[0][1]))
    return [(what, which, count) for (what, which), count in ranked]


def _origins(run: Run) -> Iterator[tuple[str, str]]:
    devices = [run.training.get("device"), *(result["cost"].get("device") for result in run.results.values())]
    yield from (("device", str(device)) for device in devices if device)
    yield from (("commit", one) for one in (run.commit, *map(commit, run.results.values())) if one)
    for origin in (run.environment, *(result["provenance"] for result in run.results.values())):
        yield from ((str(name), str(version)) for name, version in (origin.get("versions") or {}).items())


def hours(seconds: float) -> str:
    """Return seconds as hours, with as many digits as tell small times apart."""
    return f"{seconds / 3600:.{1 if seconds >= 36000 else 3}f}"
