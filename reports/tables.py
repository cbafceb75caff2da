"""One model of a grid's table, computed once from the store; reports/writers.py draws it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reports.stats import Measure, Paired, Summary, decimals, holm, indistinct, paired
from smog.errors import UsageError
from smog.store import read_json, result_path

Record = dict[str, Any]
Results = dict[tuple[str, str], dict[str, Any]]  # (run, task) -> what the task wrote
FIELDS = ("grid", "id", "title", "command", "mode", "axes", "baseline", "seeds", "metric", "tasks", "cells", "context")
TASKS = {
    "knn": "k-NN", "linear": "linear", "finetune": "fine-tuned", "semi": "semi-supervised", "coco": "detection",
    "ade20k": "segmentation",
}  # fmt: skip
METRICS = {
    "top1": "top-1 (%)", "top5": "top-5 (%)", "box_ap": "box AP", "mask_ap": "mask AP",
    "miou": "mIoU (%)", "macc": "mAcc (%)", "aacc": "aAcc (%)",
}  # fmt: skip
HEADLINES = {"coco": ("box_ap", "mask_ap"), "ade20k": ("miou",)}  # of the others top-1
MODES = ("one_factor", "factorial", "zip")
MISSING = "--"
MINUS = "\u2212"


@dataclass(frozen=True)
class Column:
    """A column: its key, its title, and the decimals that its error and its test set allow."""

    key: str
    title: str
    decimals: int = 0
    text: bool = False


@dataclass(frozen=True)
class Cell:
    """What is drawn at one place: text, its number in full, marks (best, incomplete, missing), notes, run ids."""

    text: str
    value: float | None = None
    marks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A cell of the grid: what it is, its drawn cells, its measures, its comparison to the baseline.

    ``point`` is its value on every axis; ``axis`` and ``value`` are the one axis along which it differs from the
    baseline, where there is such a one.
    """

    label: str
    kind: Literal["reference", "baseline", "cell"]
    axis: str | None
    value: Any
    point: dict[str, Any]
    cells: tuple[Cell, ...]
    measures: tuple[Measure, ...]
    comparison: Paired | None = None
    adjusted: float | None = None


@dataclass(frozen=True)
class Table:
    """A grid's table; ``missing`` counts planned results that the store lacks."""

    grid: str
    id: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    headline: int
    planned: int
    missing: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Every note once, with the row and the column it belongs to."""
        places = (
            (row, column, cell) for row in self.rows for column, cell in zip(self.columns, row.cells, strict=True)
        )
        return tuple(f"{row.label}, {column.title}: {note}" for row, column, cell in places for note in cell.notes)


def grid_table(store: str | Path, record: Record, results: Results | None = None) -> Table:
    """Compute a grid's table from its record and the results in the store, where they are not read already."""
    check_record(record)
    results = read_results(Path(store), record) if results is None else results
    wanted = headlines(record)
    cells = in_order(record)
    measures = [tuple(measure(results, record, cell, *pair) for pair in wanted) for cell in cells]
    headline = [".".join(pair) for pair in wanted].index(record["metric"])
    rows = [_bare_row(record, cell, found) for cell, found in zip(cells, measures, strict=True)]
    rows = _compared(rows, headline)
    columns = (*_label_columns(record), *_number_columns(rows, wanted, headline))
    best = [_best(rows, place) for place in range(len(wanted))]
    rows = [dataclasses.replace(row, cells=_drawn(record, row, columns, headline, best)) for row in rows]
    planned = sum(len(one.runs) for row in rows for one in row.measures)
    missing = sum(one.missing for row in rows for one in row.measures)
    caption = _caption(record, rows, columns, missing, planned)
    return Table(
        record["grid"], record["id"], record["title"], caption, columns, tuple(rows), headline, planned, missing
    )


def check_record(record: Record) -> None:
    """Refuse a record that this version cannot read."""
    lacks = [field for field in FIELDS if field not in record]
    if lacks:
        raise UsageError(f"the record of grid {record.get('grid')!r} lacks {', '.join(lacks)}; run the grid again")
    if record["mode"] not in MODES:
        raise UsageError(f"grid {record['grid']!r} has the mode {record['mode']!r}; known: {', '.join(MODES)}")
    if record.get("family", "holm") != "holm":
        raise UsageError(f"grid {record['grid']!r} declares the family {record['family']!r}; known: holm")
    if record["metric"].partition(".")[0] not in record["tasks"]:
        raise UsageError(f"grid {record['grid']!r} has the metric {record['metric']!r} of a task that it does not run")


def headlines(record: Record) -> list[tuple[str, str]]:
    """Return the (task, metric) pairs that get a column: top-1 of probes, AP of detectors, mIoU of segmentors,
    the grid's own metric."""
    own, metric = record["metric"].split(".", 1)
    found = []
    for task in record["tasks"]:
        names = HEADLINES.get(task, ("top1",)) if task in TASKS else ()
        found += [(task, name) for name in (names if task != own or metric in names else (metric,))]
    return found


def read_results(store: Path, record: Record) -> Results:
    """Read each result of the grid that the store has, once."""
    runs = dict.fromkeys(run for cell in record["cells"] for run in cell["runs"].values())
    paths = {
        (run, task): result_path(store / run, task, protocol)
        for run in runs
        for task, protocol in record["tasks"].items()
    }
    return {key: read_json(path) for key, path in paths.items() if path.is_file()}


def in_order(record: Record) -> list[Record]:
    """Return the grid's cells: the reference rows first, then the cells in the order of the axes and their values.

    Cells that the grid includes beside its axes come last, in the order of the record.
    """
    places = _places(record)

    def place(cell: Record) -> tuple[int, Any]:
        if cell["reference"]:
            return 0, cell["label"]
        if cell["baseline"] and record["mode"] == "one_factor" and cell["axis"] is None:
            return 1, -1
        number = places.get(_key(record, cell))
        return (2, 0) if number is None else (1, number)

    return sorted(record["cells"], key=place)


def _places(record: Record) -> dict[tuple[str, ...], int]:
    """Return what tells each point of the grid, in order. A value is told by its text: 1 and true are two values."""
    axes = record["axes"]
    if record["mode"] == "one_factor":
        points: Iterator[tuple[Any, ...]] = ((axis, value) for axis, values in axes.items() for value in values)
    else:
        crossed = record["mode"] == "factorial"
        points = itertools.product(*axes.values()) if crossed else zip(*axes.values(), strict=False)
    return {tuple(map(str, point)): number for number, point in enumerate(points)}


def _key(record: Record, cell: Record) -> tuple[str, ...]:
    if record["mode"] == "one_factor":
        return str(cell["axis"]), str(cell["value"])
    point = cell["point"]
    on_grid = _on_grid(record, point, cell["baseline"])
    return tuple(str(point[axis]) for axis in record["axes"]) if on_grid else ()


def _on_grid(record: Record, point: dict[str, Any], baseline: bool) -> bool:
    """Tell whether a cell lies on crossed or zipped axes. Included ones have the baseline's place, or more keys."""
    return point.keys() == record["axes"].keys() and (baseline or point != record["baseline"])


def point_of(record: Record, cell: Record) -> dict[str, Any]:
    """Return a cell's value on each axis; records that do not say it are old, and of one-factor grids."""
    if "point" in cell or cell["reference"]:
        return dict(cell.get("point", {}))
    return record["baseline"] | ({} if cell["axis"] is None else {cell["axis"]: cell["value"]})


def runs_of(cell: Record) -> dict[int, str]:
    """Return a cell's runs by seed. A run that serves several seeds (raw pixels) counts once."""
    runs: dict[int, str] = {}
    for seed in sorted(cell["runs"], key=int):
        if cell["runs"][seed] not in runs.values():
            runs[int(seed)] = cell["runs"][seed]
    return runs


def measure(results: Results, record: Record, cell: Record, task: str, metric: str) -> Measure:
    """Return one metric of one cell."""
    runs = runs_of(cell)
    found = {seed: results[run, task] for seed, run in runs.items() if (run, task) in results}
    values = {seed: result["metrics"][metric] for seed, result in found.items() if metric in result["metrics"]}
    images = min((result["inputs"]["val"] for result in found.values()), default=None)
    return Measure(task, record["tasks"][task], metric, runs, values, images)


def _bare_row(record: Record, cell: Record, measures: tuple[Measure, ...]) -> Row:
    kind: Literal["reference", "baseline", "cell"]
    kind = "reference" if cell["reference"] else "baseline" if cell["baseline"] else "cell"
    return Row(cell["label"], kind, cell["axis"], cell["value"], point_of(record, cell), (), measures)


def _compared(rows: list[Row], headline: int) -> list[Row]:
    """Add the paired difference to the baseline and Holm's p over the grid's comparisons."""
    baseline = next((row.measures[headline].values for row in rows if row.kind == "baseline"), {})
    pairs = {place: paired(row.measures[headline].values, baseline) for place, row in _comparisons(rows)}
    adjusted = dict(zip(pairs, holm([pair.p for pair in pairs.values()]), strict=True))
    return [
        dataclasses.replace(row, comparison=pairs.get(place), adjusted=adjusted.get(place))
        for place, row in enumerate(rows)
    ]


def _comparisons(rows: list[Row]) -> list[tuple[int, Row]]:
    return [(place, row) for place, row in enumerate(rows) if row.kind == "cell"]


def _best(rows: list[Row], place: int) -> dict[int, float] | None:
    """Return the values of the highest mean among the complete cells; None where one seed decides nothing."""
    found = [row.measures[place] for row in rows if row.kind != "reference" and not row.measures[place].missing]
    best = max(found, key=lambda one: one.summary.mean or -math.inf, default=None)
    return best.values if best and best.summary.n > 1 else None


def _is_plane(record: Record) -> bool:
    """Tell whether a grid crosses two axes, so that each gets a column."""
    return record["mode"] == "factorial" and len(record["axes"]) == 2


def _label_columns(record: Record) -> list[Column]:
    if _is_plane(record):
        first, second = record["axes"]
        return [Column("axis", first, text=True), Column("cell", second, text=True)]
    axes = {cell["axis"] for cell in record["cells"]} - {None}
    if len(axes) > 1:
        return [Column("axis", "axis", text=True), Column("cell", "value", text=True)]
    return [Column("cell", axes.pop() if axes else "cell", text=True)]


def _number_columns(rows: list[Row], wanted: list[tuple[str, str]], headline: int) -> Iterator[Column]:
    for place, (task, metric) in enumerate(wanted):
        shown = decimals(row.measures[place] for row in rows if row.kind != "reference")
        yield Column(f"{task}.{metric}", column_title(task, metric), shown)
    yield Column("n", "n")
    shown = decimals(row.measures[headline] for row in rows if row.kind != "reference")
    yield Column("difference", "difference [95 %]", shown)
    yield Column("p", "p (Holm)")


def column_title(task: str, metric: str) -> str:
    """Return the words for a metric of a task, such as ``k-NN top-1 (%)``."""
    return f"{TASKS.get(task, task)} {METRICS.get(metric, metric)}"


def _labels(record: Record, row: Row, several: bool) -> list[str]:
    """Return what stands in the label columns; what is not on the axes keeps its own label, in the last one."""
    if _is_plane(record) and _on_grid(record, row.point, row.kind == "baseline"):
        return [str(row.point[axis]) for axis in record["axes"]]
    return [row.axis or "", row.label] if several else [row.label]


def _drawn(
    record: Record, row: Row, columns: tuple[Column, ...], headline: int, best: list[dict[int, float] | None]
) -> tuple[Cell, ...]:
    texts = _labels(record, row, columns[0].key == "axis")
    suffix = " (baseline)" if row.kind == "baseline" and row.label != "baseline" else ""
    labels = [Cell(text) for text in (*texts[:-1], texts[-1] + suffix)]
    shown = columns[len(labels) : len(labels) + len(best)]
    numbers = [
        _measure_cell(one, column.decimals, row.kind != "reference" and top is not None and indistinct(one.values, top))
        for one, column, top in zip(row.measures, shown, best, strict=True)
    ]
    return (*labels, *numbers, *_comparison_cells(row, row.measures[headline], columns[-2].decimals))


def _measure_cell(one: Measure, digits: int, tied: bool) -> Cell:
    count = f" ({one.summary.n}/{len(one.runs)})" if one.missing else ""
    runs = tuple(one.runs[seed] for seed in one.values)
    notes = (f"{one.summary.n} of {len(one.runs)} results",) if one.missing else ()
    if one.summary.mean is None:
        return Cell(MISSING + count, None, ("missing",), notes)
    marks = ("incomplete",) if one.missing else ("best",) if tied else ()
    return Cell(_with_error(one.summary, digits) + count, one.summary.mean, marks, notes, runs)


def _with_error(summary: Summary, digits: int) -> str:
    text = _number(summary.mean or 0.0, digits)
    if summary.sd is None:
        return text
    # A spread that rounds to 0 would read as none at all, so it keeps its first digit.
    own = digits if not summary.sd or round(summary.sd, digits) else math.ceil(-math.log10(summary.sd))
    return f"{text} ± {_number(summary.sd, own)}"


def _comparison_cells(row: Row, one: Measure, digits: int) -> list[Cell]:
    n = Cell(f"{one.summary.n}/{len(one.runs)}" if one.missing else str(one.summary.n), one.summary.n)
    pair = row.comparison
    if pair is None:
        return [n, Cell(""), Cell("")]
    if pair.difference is None:
        return [n, Cell(MISSING, marks=("missing",)), Cell(MISSING, marks=("missing",))]
    interval = (
        "" if pair.low is None or pair.high is None else f" [{_signed(pair.low, digits)}, {_signed(pair.high, digits)}]"
    )
    fewer = pair.n < len(one.runs)
    notes = [f"{pair.n} of {len(one.runs)} seeds in common with the baseline"] if fewer else []
    count = f" (n = {pair.n})" if fewer else ""
    if pair.n > 1 and pair.low is None:
        notes.append("the differences are all equal, so there is no t interval")
    text = _signed(pair.difference, digits) + interval + count
    return [n, Cell(text, pair.difference, notes=tuple(notes)), Cell(_p_text(row.adjusted), row.adjusted)]


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def _signed(value: float, digits: int) -> str:
    return ("+" if round(value, digits) > 0 else "") + _number(value, digits)


def _p_text(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _caption(record: Record, rows: list[Row], columns: tuple[Column, ...], missing: int, planned: int) -> str:
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    several = len(record["seeds"]) > 1
    context = "; ".join(f"{name} {value}" for name, value in record["context"].items())
    metric = column_title(*record["metric"].split(".", 1))
    parts = [
        f"{record['title']}.",
        f"Mean ± standard deviation over n = {len(record['seeds'])} seeds ({seeds})."
        if several
        else f"One seed ({seeds}): no standard deviation, no interval, no p.",
        f"Difference: {metric} minus that of the baseline at the same seed"
        + (" with its paired 95 % t interval; p of the paired t-test," if several else "."),
        f"Holm-adjusted over the grid's {len(_comparisons(rows))} comparisons." if several else "",
        "Bold: the highest mean, and every entry whose paired 95 % t interval to it contains 0." if several else "",
        f"{missing} of {planned} results are missing ({MISSING}; n/N)." if missing else "",
        f"Unless the axis says otherwise: {context}.",
    ]
    return " ".join(part for part in parts if part)
