"""From a store to a report: what is there is read once, checked, and made into the sections and their tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.dropped import dropped
from reports.evidence import Key, Result, read_results, same_but_seed
from reports.paper import METRICS, Topic, paper_table
from reports.report import Gap, Report, Run, Runs, Section
from reports.spent import state
from reports.subjects import Subject, distinct, subjects_of
from reports.tables import Dropped, Record, Results, Table, check_record, grid_table, in_order, runs_of
from smog.errors import UsageError, nearest
from smog.identity import digest
from smog.store import grids, run_folders

SAFE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
UNFIT = re.compile(r"[^\w.-]+")  # for the name of a file
Place = tuple[str, str, str]  # task, protocol, fingerprint of the images
RECORD_SCHEMA = 1  # of grid records that this version reads


@dataclass(frozen=True)
class Collected:
    """A report without its figures, and the records and results that these are drawn from."""

    report: Report
    records: Mapping[str, Record]  # by the name of the section
    results: Mapping[Key, Result]


def collect(store: Path, names: Sequence[str]) -> Collected:
    """Read a store: all of it, or the grids of these names. Raises UsageError for what no number can be trusted to."""
    records = chosen(store, names)
    cells = [cell for record in records.values() for cell in record["cells"]]
    planned = {run: (cell["group_id"], int(seed)) for cell in cells for seed, run in reversed(cell["runs"].items())}
    results = read_results(
        store, planned if names else {**planned, **dict.fromkeys(f.name for f in run_folders(store))}
    )
    if not results and not records:
        raise UsageError(f"no results in the store {store}; make some: python ablations/run.py grid=num_groups")
    runs = _runs(store, results, planned)
    off = {run: reason for run, reason in dropped(store, grids(store)).items() if run in runs}
    own = [_grid_section(store, name, record, results, runs, off) for name, record in records.items()]
    subjects = subjects_of(records.values(), runs)
    papers = list(_paper_sections(store, subjects, results, off, {section.name for section in own}))
    return Collected(Report((*papers, *own), runs, off), records, results)


def chosen(store: Path, names: Sequence[str]) -> dict[str, Record]:
    """Return the asked grids by the names of their files: the grid's own, and its id too where a name is shared."""
    records = grids(store)
    for record in records:
        if isinstance(record, dict) and (schema := record.get("schema", 1)) != RECORD_SCHEMA:
            raise UsageError(
                f"the record of grid {record.get('grid')!r} in {store} has schema {schema}, "
                f"this version reads up to {RECORD_SCHEMA}; update the suite"
            )
        check_record(record)
        for name in (record["grid"], record["id"]):
            if not SAFE_NAME.fullmatch(name):
                raise UsageError(f"the store {store} has a grid with an unusable name or id: {name!r}")
    known = [record["grid"] for record in records]
    for name in names:
        if name not in known:
            raise UsageError(f"no grid {name!r} in the store {store}{nearest(name, set(known))}")
    shared = Counter(known)
    wanted = [record for record in records if not names or record["grid"] in names]
    return {
        record["grid"] if shared[record["grid"]] == 1 else f"{record['grid']}-{record['id']}": record
        for record in wanted
    }


def _runs(store: Path, results: Mapping[Key, Result], planned: Mapping[str, tuple[str, int]]) -> dict[str, Run]:
    """Read every run that a grid has or that has a result."""
    reader = Runs(store, results)
    known = {run: (result["group_id"] or "", result.get("seed")) for (run, _), result in results.items()}
    return {run: reader.read(run, *who) for run, who in sorted({**known, **planned}.items())}


def _grid_section(
    store: Path, name: str, record: Record, results: Mapping[Key, Result], runs: Mapping[str, Run], off: Dropped
) -> Section:
    own = of_record(record, results)
    table = grid_table(store, record, own, off)
    behind = dict.fromkeys(run for cell in in_order(record) for run in runs_of(cell).values())
    gaps = tuple(_gaps(store, table, results))
    return Section(name, record["title"], "grid", table, record["command"], tuple(behind), gaps=gaps)


def of_record(record: Record, results: Mapping[Key, Result]) -> Results:
    """Return the results of a grid's own tasks and protocols, by run and task."""
    runs = dict.fromkeys(run for cell in record["cells"] for run in cell["runs"].values())
    keys = {(run, task): (run, f"{task}@{protocol}") for run in runs for task, protocol in record["tasks"].items()}
    return {short: results[key] for short, key in keys.items() if key in results}


def _gaps(store: Path, table: Table, results: Mapping[Key, Result]) -> Iterator[Gap]:
    """Yield each result that a table lacks, and each that is there without one of its metrics."""
    for row in table.rows:
        lacking: dict[tuple[int, str, str, str], list[str]] = {}
        for one in row.measures:
            for seed, run in one.runs.items():
                if seed not in one.values:
                    lacking.setdefault((seed, run, one.task, f"{one.task}@{one.protocol}"), []).append(one.metric)
        for (seed, run, task, name), metrics in lacking.items():
            done = ("done", f"its result has no {', '.join(metrics)}")
            yield Gap(row.label, seed, run, task, *(done if (run, name) in results else state(store / run, name)))


def _paper_sections(
    store: Path, subjects: Sequence[Subject], results: Mapping[Key, Result], off: Dropped, taken: set[str]
) -> Iterator[Section]:
    """Yield a section for every task, protocol and data set that has results of more than the cells of one grid."""
    topics = _topics(subjects)
    names = _names(topics, taken)
    for key, topic in topics.items():
        own = distinct([subject for subject in subjects if _belongs(subject, key, topics)])
        for subject in own:
            found = {seed: one for seed, one in subject.results(topic.result).items() if one["run_id"] not in off}
            same_but_seed(f"{topic.title}, {subject.label}", found, store)
        runs = dict.fromkeys(run.run for one in own for run in one.planned(topic.result).values())
        table = paper_table(names[key], topic, own, off)
        gaps = tuple(_gaps(store, table, results))
        yield Section(names[key], topic.title, "paper", table, "", tuple(runs), gaps=gaps)


def _topics(subjects: Sequence[Subject]) -> dict[Place, Topic]:
    """Return what there are results of, in the order of the tables."""
    found: dict[Place, Topic] = {}
    for subject in subjects:
        for run in subject.runs.values():
            for name, result in run.results.items():
                if name not in subject.elsewhere:
                    data = _data_name(result, subject.config)
                    topic = Topic(result["task"], result["protocol"], data, _how(result))
                    found.setdefault((topic.task, topic.protocol, _images(result)), topic)
    order = list(METRICS)
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0][0]) if pair[0][0] in order else len(order)))


def _belongs(subject: Subject, place: Place, topics: Mapping[Place, Topic]) -> bool:
    """Say whether a subject has, or should have, results of a topic: of those images, where any are known."""
    task, protocol, images = place
    if results := subject.results(f"{task}@{protocol}"):
        return images in map(_images, results.values())
    alone = sum(one[:2] == place[:2] for one in topics) == 1
    own = subject.config.get("data.fingerprint", images)
    return bool(subject.planned(f"{task}@{protocol}")) and (alone or own == images)


def _names(topics: Mapping[Place, Topic], taken: set[str]) -> dict[Place, str]:
    """Return the name of each topic's files: task and data, and more only where that is the name of another one too."""
    forms: dict[Place, list[str]] = {}
    for (task, protocol, images), topic in topics.items():
        plain = UNFIT.sub("-", f"{task}-{topic.data}")
        exact = UNFIT.sub("-", f"{plain}-{protocol}")
        forms[task, protocol, images] = [
            plain,
            exact,
            UNFIT.sub("-", f"{exact}-{images[:6]}"),
            f"{exact}-{digest(images)}",
        ]
    counts = Counter(form for own in forms.values() for form in dict.fromkeys(own))
    return {
        place: next((form for form in own if counts[form] == 1 and form not in taken), own[-1])
        for place, own in forms.items()
    }


def _images(result: Result) -> str:
    return str(result["inputs"].get("data", ""))


def _data_name(result: Result, config: Mapping[str, Any]) -> str:
    name = str(result.get("settings", {}).get("data") or config.get("data.name") or result["inputs"].get("data"))
    return UNFIT.sub("-", name)


def _how(result: Result) -> str:
    """Return what tells the protocols of one task apart: the head and the schedule of a detector or segmentor."""
    settings = result.get("settings", {})
    return ", ".join(str(settings[key]) for key in ("decoder", "head", "name") if key in settings)
