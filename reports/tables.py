"""One model of a grid's table, computed once from the store; reports/writers.py draws it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reports.cells import MISSING, Cell, Column, Kind, Row, Table, comparison_cells, marked, measure_cell
from reports.evidence import Result, misshapen, read_result, same_but_seed
from reports.stats import Measure, counted_results, decimals, holm, paired
from smog.errors import UsageError
from smog.store import RUN_ID, result_path

__all__ = ["MISSING", "Cell", "Column", "Row", "Table"]  # of reports/cells.py: what a table consists of

Record = dict[str, Any]
Results = dict[tuple[str, str], Result]  # (run, task) -> what the task wrote
Dropped = Mapping[str, str]  # run -> why it does not count
RECORD = {
    "grid": str, "id": str, "title": str, "command": str, "mode": str, "axes": dict, "baseline": dict, "seeds": list,
    "metric": str, "tasks": dict, "cells": list, "context": dict,
}  # fmt: skip
CELL = {"label": str, "baseline": bool, "reference": bool, "group_id": str, "runs": dict}
TASKS = {
    "knn": "k-NN", "linear": "linear", "finetune": "fine-tuned", "semi": "semi-supervised", "coco": "detection",
    "ade20k": "segmentation", "supervised": "supervised", "diagnostics": "",
}  # fmt: skip
METRICS = {
    "top1": "top-1 (%)", "top5": "top-5 (%)", "box_ap": "box AP", "box_ap50": "box AP50", "box_ap75": "box AP75",
    "mask_ap": "mask AP", "mask_ap50": "mask AP50", "mask_ap75": "mask AP75",
    "miou": "mIoU (%)", "macc": "mAcc (%)", "aacc": "aAcc (%)", "rankme": "RankMe", "feature_std": "std of features",
    "group_entropy": "entropy of groups", "group_dead": "dead groups", "nmi": "NMI of groups and classes",
}  # fmt: skip
HEADLINES = {"coco": ("box_ap", "mask_ap"), "ade20k": ("miou",), "diagnostics": ("rankme",)}  # of the others top-1
UNRANKED = ("diagnostics",)  # more of it is not better
MODES = ("one_factor", "factorial", "zip")


def grid_table(
    store: str | Path, record: Record, results: Results | None = None, dropped: Dropped = MappingProxyType({})
) -> Table:
    """Compute a grid's table from its record and the results in the store, where they are not read already.

    ``dropped`` are runs that do not count, with the reason, which the table prints. Raises UsageError for results of a
    cell that differ in anything but the seed.
    """
    check_record(record)
    results = read_results(Path(store), record) if results is None else results
    wanted = headlines(record)
    cells = in_order(record)
    for cell in cells:
        _check_cell(Path(store), record, cell, results, dropped)
    measures = [tuple(measure(results, record, cell, *pair, dropped) for pair in wanted) for cell in cells]
    headline = [".".join(pair) for pair in wanted].index(record["metric"])
    rows = [_bare_row(record, cell, found) for cell, found in zip(cells, measures, strict=True)]
    rows = _compared(rows, headline)
    columns = (*_label_columns(record), *_number_columns(rows, wanted, headline))
    notes = [_dropped(cell, dropped) for cell in cells]
    drawn = _drawn(record, rows, columns, headline, notes)
    rows = [dataclasses.replace(row, cells=own) for row, own in zip(rows, drawn, strict=True)]
    planned, missing = counted_results(one for row in rows for one in row.measures)
    caption = _caption(record, rows, missing, planned)
    return Table(
        record["grid"], record["id"], record["title"], caption, columns, tuple(rows), headline, planned, missing
    )


def _check_cell(store: Path, record: Record, cell: Record, results: Results, dropped: Dropped) -> None:
    counted = {seed: run for seed, run in runs_of(cell).items() if run not in dropped}
    for task in record["tasks"]:
        found = {seed: results[run, task] for seed, run in counted.items() if (run, task) in results}
        same_but_seed(f"grid {record['grid']}, cell {cell['label']}, {task}", found, store)


def _dropped(cell: Record, dropped: Dropped) -> tuple[str, ...]:
    """Return what to say of the seeds of a cell that do not count."""
    return tuple(f"without seed {seed}: {dropped[run]}" for seed, run in cell["runs"].items() if run in dropped)


def check_record(record: Record) -> None:
    """Refuse a record that this version cannot read."""
    name = record.get("grid") if isinstance(record, dict) else None
    _check_shape(record, f"the record of grid {name!r}", RECORD)
    for cell in record["cells"]:
        _check_shape(cell, f"a cell of grid {record['grid']!r}", CELL)
        for seed, run in cell["runs"].items():
            if not (seed.isdecimal() and RUN_ID.fullmatch(str(run))):
                raise UsageError(f"grid {record['grid']!r} has the run {run!r} as seed {seed!r}; run the grid again")
    if record["mode"] not in MODES:
        raise UsageError(f"grid {record['grid']!r} has the mode {record['mode']!r}; known: {', '.join(MODES)}")
    if record.get("family", "holm") != "holm":
        raise UsageError(f"grid {record['grid']!r} declares the family {record['family']!r}; known: holm")
    task, _, metric = record["metric"].partition(".")
    if task not in record["tasks"] or not metric:
        raise UsageError(f"grid {record['grid']!r} has the metric {record['metric']!r} of a task that it does not run")


def _check_shape(found: Any, what: str, shape: Mapping[str, type]) -> None:
    if not isinstance(found, dict):
        raise UsageError(f"{what} is none; run the grid again")
    if lacks := [name for name in shape if found.get(name) is None or (name == "cells" and not found[name])]:
        raise UsageError(f"{what} lacks {', '.join(lacks)}; run the grid again")
    if problem := misshapen(found, shape):
        raise UsageError(f"{what}: {problem}; run the grid again")


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
    """Read each result of the grid that the store has, once. Raises UsageError for one that is damaged."""
    runs = dict.fromkeys(run for cell in record["cells"] for run in cell["runs"].values())
    paths = {
        (run, task): result_path(store / run, task, protocol)
        for run in runs
        for task, protocol in record["tasks"].items()
    }
    return {key: read_result(path) for key, path in paths.items() if path.is_file()}


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
    point = point_of(record, cell)
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


def measure(
    results: Results, record: Record, cell: Record, task: str, metric: str, dropped: Dropped = MappingProxyType({})
) -> Measure:
    """Return one metric of one cell, without the runs that do not count."""
    runs = {seed: run for seed, run in runs_of(cell).items() if run not in dropped}
    found = {seed: results[run, task] for seed, run in runs.items() if (run, task) in results}
    values = {seed: result["metrics"][metric] for seed, result in found.items() if metric in result["metrics"]}
    images = min((one["inputs"]["val"] for one in found.values() if one["inputs"].get("val")), default=None)
    return Measure(task, record["tasks"][task], metric, runs, values, images)


def _bare_row(record: Record, cell: Record, measures: tuple[Measure, ...]) -> Row:
    kind: Kind = "reference" if cell["reference"] else "baseline" if cell["baseline"] else "cell"
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
    return f"{TASKS.get(task, task)} {METRICS.get(metric, metric)}".strip()


def _labels(record: Record, row: Row, several: bool) -> list[str]:
    """Return what stands in the label columns; what is not on the axes keeps its own label, in the last one."""
    if _is_plane(record) and _on_grid(record, row.point, row.kind == "baseline"):
        return [str(row.point[axis]) for axis in record["axes"]]
    return [row.axis or "", row.label] if several else [row.label]


def _drawn(
    record: Record, rows: list[Row], columns: tuple[Column, ...], headline: int, notes: list[tuple[str, ...]]
) -> Iterator[tuple[Cell, ...]]:
    """Yield the cells of each row; which of a column are the best is known once all rows are."""
    several = columns[0].key == "axis"
    shown = columns[1 + several :][: len(rows[0].measures)]
    ranked = [row.kind != "reference" for row in rows]
    marks = [
        marked(
            [row.measures[place] for row in rows],
            [one and column.key.partition(".")[0] not in UNRANKED for one in ranked],
        )
        for place, column in enumerate(shown)
    ]
    for number, row in enumerate(rows):
        texts = _labels(record, row, several)
        suffix = " (baseline)" if row.kind == "baseline" and row.label != "baseline" else ""
        labels = [Cell(text) for text in (*texts[:-1], texts[-1] + suffix)]
        numbers = [
            measure_cell(one, column.decimals, own[number], notes[number])
            for one, column, own in zip(row.measures, shown, marks, strict=True)
        ]
        yield (*labels, *numbers, *comparison_cells(row, row.measures[headline], columns[-2].decimals))


def _caption(record: Record, rows: list[Row], missing: int, planned: int) -> str:
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    several, count = len(record["seeds"]) > 1, len(_comparisons(rows))
    context = "; ".join(f"{name} {value}" for name, value in record["context"].items())
    metric = column_title(*record["metric"].split(".", 1))
    parts = [
        f"DRAFT: {missing} of {planned} results are missing ({MISSING}; n/N)." if missing else "",
        f"{record['title']}.",
        f"Mean ± standard deviation over n = {len(record['seeds'])} seeds ({seeds})."
        if several
        else f"One seed ({seeds}): no standard deviation, no interval, no p.",
        f"Difference: {metric} minus that of the baseline at the same seed"
        + (" with its paired 95 % t interval; p of the paired t-test," if several else "."),
        f"Holm-adjusted over the grid's {count} comparison{'s' * (count != 1)}." if several else "",
        "Bold: the highest mean, and every entry whose paired 95 % t interval to it contains 0; underlined: the next."
        if several
        else "",
        f"Unless the axis says otherwise: {context}.",
    ]
    return " ".join(part for part in parts if part)
