"""The subjects of the tables of tasks: what is worth standing beside each other, each with all its seeds.

That is what a grid has as its baseline, as a reference, or on an axis with a name of its own (methods, weights), and
what no grid's table shows: runs of no grid, and results that no grid planned; all else stands in the grids' tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reports.cells import Kind
from reports.evidence import Result
from reports.report import Run
from reports.tables import Record
from smog.config import crops_of
from smog.errors import UsageError

KEYS = ("method", "backbone", "epochs", "batch", "crops", "recipe")
NAMES = {"smog": "SMoG"}
CROPS = ("views.global_crops", "views.size", "views.local_crops", "views.local_size")
NEEDED = ("optim.epochs", "optim.batch", *CROPS)
TOLD = ("smog", "train", "recipe=", "seed=", "data", "backbone=", "optim.epochs=", "optim.batch=")  # told elsewhere


@dataclass(eq=False)
class Subject:
    """A configuration in all its seeds: what it is called, its run of every seed, and which results were planned."""

    label: str
    kind: Kind
    words: tuple[str, ...]  # of the columns KEYS
    runs: dict[int, Run] = field(default_factory=dict)
    wanted: dict[str, set[str]] = field(default_factory=dict)  # task@protocol -> the runs of which a grid has it
    elsewhere: set[str] = field(default_factory=set)  # task@protocol that its grid's table alone shows

    @property
    def config(self) -> Mapping[str, Any]:
        """The values that all its seeds share, as the first that has begun tells them."""
        return next((run.config for run in self.runs.values() if run.config), {})

    def add(self, members: Mapping[int, Run], names: Iterable[str] = ()) -> None:
        """Take in runs by seed, of which these results were planned. A run that serves several seeds counts once."""
        for seed, run in sorted(members.items()):
            if run.run not in {one.run for one in self.runs.values()} and self.runs.setdefault(seed, run) is not run:
                raise UsageError(
                    f"{self.runs[seed].run} and {run.run} both say that they are seed {seed} of the configuration "
                    f"{run.group}; move one of them away"
                )
        for name in names:
            self.wanted.setdefault(name, set()).update(run.run for run in members.values())

    def results(self, name: str) -> dict[int, Result]:
        """Return its results of task@protocol by seed."""
        known = {} if name in self.elsewhere else self.runs
        return {seed: run.results[name] for seed, run in known.items() if name in run.results}

    def planned(self, name: str) -> dict[int, Run]:
        """Return the runs that have, or should have, a result of task@protocol."""
        there, wanted = self.results(name), self.wanted.get(name, set())
        return {seed: run for seed, run in self.runs.items() if seed in there or run.run in wanted}

    @cached_property
    def untrained(self) -> bool:
        """Whether it is a network as it was initialised."""
        return not self.config.get("optim.epochs", 1)

    @cached_property
    def network(self) -> tuple[str, ...]:
        """What network it is and what it saw, as text to compare."""
        return tuple(
            f"{key}={value}" for key, value in sorted(self.config.items()) if key.startswith(("backbone", "data."))
        )


def subjects_of(records: Iterable[Record], runs: Mapping[str, Run]) -> list[Subject]:
    """Return all subjects, references first; what two grids share stands once."""
    found: dict[str, Subject] = {}
    hidden: dict[str, set[str]] = {}  # cells that stand in their grid's table alone, with the results that it shows
    for record in records:
        names = {f"{task}@{protocol}" for task, protocol in record["tasks"].items()}
        for cell in record["cells"]:
            members = {int(seed): runs[run] for seed, run in cell["runs"].items()}
            if cell["baseline"] or cell["reference"] or _named(cell):
                found.setdefault(cell["group_id"], _subject(cell["label"], cell, members)).add(members, names)
            else:
                hidden.setdefault(cell["group_id"], set()).update(names)
    for group, members in _by_group(runs):
        if group in found:
            found[group].add(members)
        elif any(members[seed].results.keys() - hidden.get(group, set()) for seed in members):
            found[group] = _subject("", None, members)
            found[group].add(members)
            found[group].elsewhere = hidden.get(group, set())
    return sorted(found.values(), key=_place)


def distinct(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects of a table, of untrained networks each once, with the most seeds: what they would have been
    trained with is of no meaning."""
    kept: dict[Any, Subject] = {}
    for one in sorted(subjects, key=lambda one: -len(one.runs)):
        kept.setdefault((one.words[0], one.network) if one.untrained else id(one), one)
    return [one for one in subjects if one in kept.values()]


def _named(cell: Record) -> bool:
    """Say whether a cell lies on an axis with a name of its own: a key of the configuration has a dot."""
    return cell["axis"] is not None and "." not in cell["axis"]


def _by_group(runs: Mapping[str, Run]) -> Iterator[tuple[str, dict[int, Run]]]:
    """Yield the runs that have results: the seeds of a group, or a stranger's checkpoint by itself."""
    groups: dict[str, Subject] = {}
    for run in runs.values():
        if run.results:
            key = run.group if run.group and run.seed is not None else run.run
            groups.setdefault(key, Subject("", "cell", ())).add({run.seed or 0: run})
    yield from ((group, groups[group].runs) for group in sorted(groups))


def _subject(label: str, cell: Record | None, members: Mapping[int, Run]) -> Subject:
    first = next((run for run in members.values() if run.config), next(iter(members.values())))
    reference = bool(cell and cell["reference"])
    method = label if reference or (cell and _named(cell)) else _method(first)
    words = (method, *_words(first))
    method, backbone, epochs, batch, crops, recipe = words
    trained = (f"{epochs} epochs", f"batch {batch}", crops) if batch else ()
    spoken = ", ".join(filter(None, (method, backbone, *trained, recipe)))
    return Subject(spoken, "reference" if reference else "cell", words)


def _method(run: Run) -> str:
    if not run.config:
        return next((str(one["checkpoint"]["id"]) for one in run.results.values() if "checkpoint" in one), run.run)
    if not run.config.get("optim.epochs", 1):
        return "untrained"
    name = str(run.config.get("method.name", ""))
    return NAMES.get(name, name)


def _words(run: Run) -> tuple[str, ...]:
    """Return the words of a run's row: backbone, epochs, batch, crops, and the recipe with what differs from it."""
    config = run.config
    if not all(
        isinstance(config.get(key), int | float) for key in NEEDED
    ):  # a stranger's, or of another version of the suite
        return "", "", "", "", run.recipe
    crops = crops_of(*(config[key] for key in CROPS))
    trained = bool(config["optim.epochs"])
    shown = (f"{config['optim.epochs']:g}", str(config["optim.batch"]), crops) if trained else ("0", "", "")
    return (run.backbone, *shown, ", ".join([run.recipe, *(_changes(run) if trained else ())]))


def _changes(run: Run) -> Sequence[str]:
    """Return in short words what a run's command sets beside its recipe and what has a column of its own."""
    changes = [word.strip("'").partition("=") for word in run.command.split() if not word.startswith(TOLD)]
    return [f"{key.rpartition('.')[2]} {value}" for key, _, value in changes]


def _place(subject: Subject) -> tuple[Any, ...]:
    return not subject.untrained, subject.words[1], subject.words[0], subject.words[2:]
