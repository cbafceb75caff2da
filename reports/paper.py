"""Tables as papers have them: every subject of a task side by side under one protocol, and what others report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.cells import MISSING, Cell, Column, Row, Table, count_cell, difference_cell, marked, measure_cell
from reports.evidence import Result
from reports.published import Rival, gap_cell, rivals_of
from reports.stats import Measure, counted_results, decimals, paired
from reports.subjects import KEYS, Subject
from reports.tables import METRICS as TITLED
from reports.tables import UNRANKED

METRICS = {  # in the order of the tables
    "linear": ("top1", "top5"),
    "knn": ("top1", "top5"),
    "semi": ("top1", "top5"),
    "finetune": ("top1", "top5"),
    "supervised": ("top1", "top5"),
    "coco": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
    "ade20k": ("miou", "macc", "aacc"),
    "diagnostics": ("rankme", "feature_std", "group_entropy", "group_dead", "nmi"),
}
TITLES = {
    "knn": "k-NN", "linear": "Linear evaluation", "finetune": "Fine-tuning", "semi": "Semi-supervised",
    "supervised": "Supervised", "coco": "Detection", "ade20k": "Segmentation", "diagnostics": "Diagnostics",
}  # fmt: skip
LABELS = (
    Column("axis", "method", text=True),
    Column("backbone", "backbone", text=True),
    Column("epochs", "epochs"),
    Column("batch", "batch"),
    Column("crops", "crops", text=True),
    Column("cell", "recipe", text=True),
)
LONGEST = 200  # characters of settings that a caption has room for
NO_INTERVAL = "one seed each: no standard deviation, no interval"
Measures = tuple[Measure, ...]


@dataclass(frozen=True)
class Topic:
    """What a table is about: a task under one protocol on one data set, whose name stands in ``data``; ``how`` tells
    protocols of one task apart in words, such as the head of a segmentor."""

    task: str
    protocol: str
    data: str
    how: str = ""

    @property
    def result(self) -> str:
        """The name of its result in a run."""
        return f"{self.task}@{self.protocol}"

    @property
    def title(self) -> str:
        """What it is called in a heading."""
        return f"{TITLES.get(self.task, self.task)}, {self.data}" + (f" ({self.how})" if self.how else "")


def paper_table(name: str, topic: Topic, subjects: Sequence[Subject], dropped: Mapping[str, str]) -> Table:
    """Compute the table of one topic; subjects in their order.

    Beneath each subject stands its difference to the same network untrained, paired by seed, where that is there.
    Published numbers of the same task and data follow, and stand beside ours where the protocol is the same.
    """
    results = [result for one in subjects for result in one.results(topic.result).values()]
    metrics = _metrics(topic, results)
    measures = [tuple(measured(one, topic, metric, dropped) for metric in metrics) for one in subjects]
    columns = list(_columns(topic, metrics, subjects, measures))
    rivals = rivals_of(topic.task, results[0], subjects[0].config)
    rows = _rows(topic, subjects, measures, columns, rivals, dropped)
    shown = (*LABELS, *columns, Column("n", "n"), Column("reported", "reported", 1), Column("gap", "gap", 1))
    if not any(_met(one, rivals) for one in subjects):  # nothing of theirs is comparable to the last setting
        shown, rows = shown[:-2], [_shortened(row) for row in rows]
    planned, missing = counted_results(one for own in measures for one in own)
    caption = _caption(topic, results[0], subjects, rivals, (missing, planned))
    return Table(name, topic.protocol, topic.title, caption, shown, tuple(rows), 0, planned, missing)


def _metrics(topic: Topic, results: Sequence[Result]) -> list[str]:
    """Return what has a column: of what the task is known for that which any result has, else its first metric."""
    known = [one for one in METRICS.get(topic.task, ()) if any(one in result["metrics"] for result in results)]
    return known or list(results[0]["metrics"])[:1]


def _columns(
    topic: Topic, metrics: Sequence[str], subjects: Sequence[Subject], measures: Sequence[Measures]
) -> Iterator[Column]:
    """Yield the columns of numbers; the digits of references, which others are read against, do not set theirs."""
    ours = [own for one, own in zip(subjects, measures, strict=True) if one.kind != "reference"] or measures
    for place, metric in enumerate(metrics):
        shown = decimals(own[place] for own in ours)
        yield Column(f"{topic.task}.{metric}", TITLED.get(metric, metric), shown)


def measured(subject: Subject, topic: Topic, metric: str, dropped: Mapping[str, str]) -> Measure:
    """Return one metric of a subject, without the runs that do not count. What a method does not have (groups, say) is
    not missing: nobody planned it."""
    results = subject.results(topic.result)
    results = {seed: one for seed, one in results.items() if subject.runs[seed].run not in dropped}
    values = {seed: one["metrics"][metric] for seed, one in results.items() if metric in one["metrics"]}
    planned = {seed: run.run for seed, run in subject.planned(topic.result).items() if run.run not in dropped}
    images = min((one["inputs"]["val"] for one in results.values() if one["inputs"].get("val")), default=None)
    return Measure(topic.task, topic.protocol, metric, planned if values or not results else {}, values, images)


def _rows(
    topic: Topic,
    subjects: Sequence[Subject],
    measures: Sequence[Measures],
    columns: Sequence[Column],
    rivals: Sequence[Rival],
    dropped: Mapping[str, str],
) -> list[Row]:
    ranked = [one.kind != "reference" and topic.task not in UNRANKED for one in subjects]
    marks = [marked([own[place] for own in measures], ranked) for place in range(len(columns))]
    bases = {one.network: own for one, own in zip(subjects, measures, strict=True) if one.untrained}
    rows: list[Row] = []
    for number, (subject, own) in enumerate(zip(subjects, measures, strict=True)):
        cells = [
            measure_cell(one, column.decimals, marks[place][number], _dropped(subject, dropped))
            for place, (one, column) in enumerate(zip(own, columns, strict=True))
        ]
        rows.append(_subject_row(subject, own, cells, rivals))
        if not subject.untrained and subject.network in bases:
            rows.append(_delta_row(subject, own, bases[subject.network], columns))
    first = {column.key.partition(".")[2] for column in columns[:1]}
    beside = [_met(subject, rivals) for subject in subjects]  # all that it says stands there already
    return rows + [_rival_row(one, columns) for one in rivals if one not in beside or one.values.keys() - first]


def _met(subject: Subject, rivals: Sequence[Rival]) -> Rival | None:
    """Return what others report of the same under the same protocol."""
    return next((one for one in rivals if one.exact and one.of(subject.words)), None)


def _dropped(subject: Subject, dropped: Mapping[str, str]) -> tuple[str, ...]:
    found = ((seed, dropped.get(run.run)) for seed, run in subject.runs.items())
    return tuple(f"without seed {seed}: {reason}" for seed, reason in found if reason)


def _subject_row(subject: Subject, own: Measures, cells: Sequence[Cell], rivals: Sequence[Rival]) -> Row:
    rival = _met(subject, rivals)
    reported = rival.values.get(own[0].metric) if rival else None
    beside = (Cell(""), Cell(""))
    if rival and reported is not None:
        beside = Cell(f"{reported:g}", reported, ("reported",), (rival.source,)), gap_cell(own[0].summary, reported)
    shown = (*map(Cell, subject.words), *cells, count_cell(own[0]), *beside)
    point = dict(zip(KEYS, subject.words, strict=True))
    return Row(subject.label, subject.kind, None, None, point, shown, own)


def _delta_row(subject: Subject, own: Measures, base: Measures, columns: Sequence[Column]) -> Row:
    pairs = [paired(one.values, other.values) for one, other in zip(own, base, strict=True)]
    cells = [
        Cell("") if pair.difference is None else difference_cell(pair, column.decimals, pair.n)
        for pair, column in zip(pairs, columns, strict=True)
    ]
    labels = [Cell("\u2212 untrained"), *(Cell("") for _ in KEYS[1:])]
    shown = (*labels, *cells, Cell(str(pairs[0].n), pairs[0].n), Cell(""), Cell(""))
    return Row(f"{subject.label} \u2212 untrained", "delta", None, None, {}, shown, (), pairs[0])


def _rival_row(rival: Rival, columns: Sequence[Column]) -> Row:
    values = [rival.values.get(column.key.partition(".")[2]) for column in columns]
    cells = [Cell("" if value is None else f"{value:g}", value, ("reported",)) for value in values]
    labels = [*map(Cell, rival.words[:-1]), Cell(rival.words[-1], notes=(rival.source,))]
    return Row(rival.label, "reported", None, None, {}, (*labels, *cells, Cell(""), Cell(""), Cell("")), ())


def _shortened(row: Row) -> Row:
    return Row(row.label, row.kind, None, None, row.point, row.cells[:-2], row.measures, row.comparison)


def _caption(
    topic: Topic, result: Result, subjects: Sequence[Subject], rivals: Sequence[Rival], counts: tuple[int, int]
) -> str:
    inputs, (missing, planned) = result["inputs"], counts
    several = any(len(one.results(topic.result)) > 1 for one in subjects)
    settings = _settings(result)
    trained = f"{inputs['train']:,} training images, " if inputs.get("train") else ""
    parts = [
        f"DRAFT: {missing} of {planned} results are missing ({MISSING}; n/N)." if missing else "",
        f"{topic.title}: {trained}{inputs.get('val', 0):,} images for the number.",
        f"Protocol {topic.protocol}" + (f": {settings}." if len(settings) <= LONGEST else "."),
        f"Mean ± standard deviation over n seeds{'' if several else ' (' + NO_INTERVAL + ')'}.",
        "\u2212 untrained: difference to the same network untrained at the same seed, with its paired 95 % t interval."
        if any(one.untrained for one in subjects)
        else "",
        "Bold: the highest mean, and every entry whose paired 95 % t interval to it contains 0; underlined: the next."
        if several and topic.task not in UNRANKED
        else "",
        "Below the last rule: numbers of others, never bold; the last text column says what they were measured with."
        if rivals
        else "",
    ]
    return " ".join(part for part in parts if part)


def _settings(result: Result) -> str:
    own = {key: value for key, value in result.get("settings", {}).items() if key not in ("fingerprint", "data")}
    return ", ".join(f"{key} {_short(value)}" for key, value in own.items())


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
