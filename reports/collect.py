"""From a store to a report: what is there is read once, checked, and made into the sections and their tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.dropped import dropped
from reports.evidence import Key, Result, read_results, same_but_seed
from reports.paper import METRICS, Topic, paper_table
from reports.report import Gap, Report, Run, Runs, Section
from reports.spent import state
from reports.subjects import Subject, subjects_of
from reports.tables import Dropped, Record, Results, check_record, grid_table, in_order, runs_of
from smog.errors import UsageError, nearest
from smog.store import grids, run_folders

SAFE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
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
    off = dropped(store, list(records.values()))
    off = {run: reason for run, reason in off.items() if run in runs}
    own = [_grid_section(store, name, record, results, runs, off) for name, record in records.items()]
    subjects = subjects_of(records.values(), runs)
    papers = list(_paper_sections(store, subjects, off, {section.name for section in own}))
    return Collected(Report((*papers, *own), runs, off), records, results)


def chosen(store: Path, names: Sequence[str]) -> dict[str, Record]:
    """Return the asked grids by the names of their files: the grid's own, and its id too where a name is shared."""
    records = grids(store)
    known = [str(record.get("grid")) for record in records]
    for record in records:
        if record.get("schema", 1) > RECORD_SCHEMA:
            raise UsageError(
                f"the record of grid {record.get('grid')!r} in {store} has schema {record['schema']}, "
                f"this version reads up to {RECORD_SCHEMA}; update the suite"
            )
        check_record(record)
        for name in (record["grid"], record["id"]):
            if not SAFE_NAME.fullmatch(name):
                raise UsageError(f"the store {store} has a grid with an unusable name or id: {name!r}")
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
    known = {run: (result["group_id"] or "", result["seed"]) for (run, _), result in results.items()}
    return {run: reader.read(run, *who) for run, who in sorted({**planned, **known}.items())}


def _grid_section(
    store: Path, name: str, record: Record, results: Mapping[Key, Result], runs: Mapping[str, Run], off: Dropped
) -> Section:
    own = of_record(record, results)
    table = grid_table(store, record, own, off)
    behind = dict.fromkeys(run for cell in in_order(record) for run in runs_of(cell).values())
    gaps = tuple(_gaps(store, record, own, off))
    return Section(name, record["title"], "grid", table, record["command"], tuple(behind), gaps=gaps)


def of_record(record: Record, results: Mapping[Key, Result]) -> Results:
    """Return the results of a grid's own tasks and protocols, by run and task."""
    runs = dict.fromkeys(run for cell in record["cells"] for run in cell["runs"].values())
    keys = {(run, task): (run, f"{task}@{protocol}") for run in runs for task, protocol in record["tasks"].items()}
    return {short: results[key] for short, key in keys.items() if key in results}


def _gaps(store: Path, record: Record, results: Results, off: Dropped) -> Iterator[Gap]:
    for cell in in_order(record):
        for seed, run in runs_of(cell).items():
            for task, protocol in record["tasks"].items() if run not in off else ():
                if (run, task) not in results:
                    yield Gap(cell["label"], seed, run, task, *state(store / run, f"{task}@{protocol}"))


def _paper_sections(store: Path, subjects: Sequence[Subject], off: Dropped, taken: set[str]) -> Iterator[Section]:
    """Yield a section for every task, protocol and data set that more than the cells of one grid have results of."""
    topics: dict[tuple[str, str, str], list[Subject]] = {}
    titles: dict[tuple[str, str, str], Topic] = {}
    for subject in subjects:
        for topic, images in _topics(subject):
            key = (topic.task, topic.protocol, images)
            topics.setdefault(key, []).append(subject)
            titles.setdefault(key, topic)
    order = list(METRICS)
    topics = dict(
        sorted(topics.items(), key=lambda pair: order.index(pair[0][0]) if pair[0][0] in order else len(order))
    )
    names = Counter(f"{topic.task}-{topic.data}" for topic in titles.values())
    for key, own in topics.items():
        topic = titles[key]
        plain = f"{topic.task}-{topic.data}"
        name = plain if names[plain] == 1 and plain not in taken else f"{plain}-{topic.protocol}"
        if sum(one[:2] == key[:2] for one in topics) > 1:  # other images under one name
            name += f"-{key[2][:6]}"
        _check(store, topic, own)
        runs = dict.fromkeys(run.run for one in own for run in one.runs.values() if topic.result in run.results)
        yield Section(name, topic.title, "paper", paper_table(name, topic, own, off), "", tuple(runs))


def _topics(subject: Subject) -> Iterator[tuple[Topic, str]]:
    """Yield what a subject has results of, once each, with the fingerprint of the data."""
    seen = set()
    for run in subject.runs.values():
        for result in run.results.values():
            images = str(result["inputs"].get("data", ""))
            topic = Topic(result["task"], result["protocol"], _data_name(result, run), _how(result))
            if (topic, images) not in seen:
                seen.add((topic, images))
                yield topic, images


def _data_name(result: Result, run: Run) -> str:
    name = str(result.get("settings", {}).get("data") or run.config.get("data.name") or result["inputs"].get("data"))
    return re.sub(r"[^\w.-]+", "-", name)


def _how(result: Result) -> str:
    """Return what tells the protocols of one task apart: the head and the schedule of a detector or segmentor."""
    settings = result.get("settings", {})
    return ", ".join(str(settings[key]) for key in ("decoder", "head", "name") if key in settings)


def _check(store: Path, topic: Topic, subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        same_but_seed(f"{topic.title}, {subject.label}", subject.results(topic.result), store)
