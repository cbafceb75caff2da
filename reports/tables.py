"""One model of a grid's table, computed once from the store, and writers that only draw it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reports.stats import Measure, Paired, Summary, decimals, holm, indistinct, paired
from smog.errors import UsageError
from smog.store import read_json, result_path

Record = dict[str, Any]
FIELDS = ("grid", "id", "title", "command", "mode", "axes", "baseline", "seeds", "metric", "tasks", "cells", "context")
TASKS = {"knn": "k-NN", "linear": "linear", "finetune": "fine-tuned", "semi": "semi-supervised"}
METRICS = {"top1": "top-1 (%)", "top5": "top-5 (%)"}
MISSING = "--"
MINUS = "\u2212"
TAG = re.compile("<(?=[a-zA-Z/!?])")  # what Markdown would take for HTML; "< 0.001" is none


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
    """A cell of the grid: what it is, its drawn cells, its measures, its comparison to the baseline."""

    label: str
    kind: Literal["reference", "baseline", "cell"]
    axis: str | None
    value: Any
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


def grid_table(store: str | Path, record: Record) -> Table:
    """Compute a grid's table from its record and the results in the store."""
    check_record(record)
    wanted = headlines(record)
    cells = in_order(record)
    measures = [tuple(measure(Path(store), record, cell, *pair) for pair in wanted) for cell in cells]
    headline = [".".join(pair) for pair in wanted].index(record["metric"])
    rows = [_bare_row(cell, found) for cell, found in zip(cells, measures, strict=True)]
    rows = _compared(rows, headline)
    columns = (*_label_columns(record), *_number_columns(rows, wanted, headline))
    best = [_best(rows, place) for place in range(len(wanted))]
    rows = [dataclasses.replace(row, cells=_drawn(row, columns, headline, best)) for row in rows]
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
    if record.get("family", "holm") != "holm":
        raise UsageError(f"grid {record['grid']!r} declares the family {record['family']!r}; known: holm")
    if record["metric"].partition(".")[0] not in record["tasks"]:
        raise UsageError(f"grid {record['grid']!r} has the metric {record['metric']!r} of a task that it does not run")


def headlines(record: Record) -> list[tuple[str, str]]:
    """Return the (task, metric) pairs that get a column: top-1 of the probes, and the grid's own metric."""
    own = tuple(record["metric"].split(".", 1))
    return [(task, own[1] if task == own[0] else "top1") for task in record["tasks"] if task in TASKS or task == own[0]]


def in_order(record: Record) -> list[Record]:
    """Return the grid's cells: the reference rows first, then the cells in the order of the axes and their values."""
    axes = list(record["axes"])

    def place(cell: Record) -> tuple[Any, ...]:
        if cell["reference"]:
            return (0, cell["label"])
        if cell["axis"] not in axes:
            return (1, -1, -1)
        values = list(record["axes"][cell["axis"]])
        return (1, axes.index(cell["axis"]), values.index(cell["value"]) if cell["value"] in values else len(values))

    return sorted(record["cells"], key=place)


def measure(store: Path, record: Record, cell: Record, task: str, metric: str) -> Measure:
    """Read one metric of one cell. A run that serves several seeds (raw pixels) counts once."""
    runs: dict[int, str] = {}
    for seed in sorted(cell["runs"], key=int):
        if cell["runs"][seed] not in runs.values():
            runs[int(seed)] = cell["runs"][seed]
    protocol = record["tasks"][task]
    paths = {seed: result_path(store / run, task, protocol) for seed, run in runs.items()}
    found = {seed: read_json(path) for seed, path in paths.items() if path.is_file()}
    values = {seed: result["metrics"][metric] for seed, result in found.items() if metric in result["metrics"]}
    images = min((result["inputs"]["val"] for result in found.values()), default=None)
    return Measure(task, protocol, metric, runs, values, images)


def _bare_row(cell: Record, measures: tuple[Measure, ...]) -> Row:
    kind: Literal["reference", "baseline", "cell"] = "baseline" if cell["baseline"] else "cell"
    return Row(cell["label"], "reference" if cell["reference"] else kind, cell["axis"], cell["value"], (), measures)


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


def _label_columns(record: Record) -> list[Column]:
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


def _drawn(
    row: Row, columns: tuple[Column, ...], headline: int, best: list[dict[int, float] | None]
) -> tuple[Cell, ...]:
    suffix = " (baseline)" if row.kind == "baseline" and row.label != "baseline" else ""
    labels = [Cell(row.axis or "")] if columns[0].key == "axis" else []
    labels.append(Cell(row.label + suffix))
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


def to_markdown(table: Table) -> str:
    """Draw the table as Markdown, which is also its text for a terminal."""
    from tabulate import tabulate

    rows = [[_markdown(cell) for cell in row.cells] for row in table.rows]
    titles = [_plain(column.title) for column in table.columns]
    sides = ["left" if column.text else "right" for column in table.columns]
    drawn = tabulate(rows, titles, tablefmt="pipe", disable_numparse=True, colalign=sides)
    notes = "".join(f"\n* {_plain(note)}" for note in table.notes)
    return f"{drawn}\n\n{_plain(table.caption)}\n{notes}".rstrip() + "\n"


def _markdown(cell: Cell) -> str:
    return f"**{_plain(cell.text)}**" if "best" in cell.marks else _plain(cell.text)


def _plain(text: str) -> str:
    return TAG.sub("&lt;", " ".join(text.split()).replace("|", "\\|"))


def to_latex(table: Table) -> str:
    """Draw the table as LaTeX (booktabs); the runs behind every number stand above it in comments."""
    import pandas as pd

    frame = pd.DataFrame([[_latex(cell.text) for cell in row.cells] for row in table.rows])
    bold = [["textbf: --rwrap;" if "best" in cell.marks else "" for cell in row.cells] for row in table.rows]
    style = frame.style.hide(axis="index").apply(lambda _: pd.DataFrame(bold), axis=None)
    style = style.format_index(lambda place: _latex(table.columns[int(str(place))].title), axis="columns")
    drawn = style.to_latex(
        hrules=True,
        position_float="centering",
        column_format="".join("l" if column.text else "r" for column in table.columns),
        caption=_latex(" ".join((table.caption, *(f"{note}." for note in table.notes)))),
        label=f"tab:{table.grid}",
    )
    tight = r"\footnotesize\setlength{\tabcolsep}{4pt}"  # six columns then fit a page of text
    return _latex_comments(table) + drawn.replace("\\begin{tabular}", tight + "\n\\begin{tabular}")


def _latex_comments(table: Table) -> str:
    places = [(row, column, cell) for row in table.rows for column, cell in zip(table.columns, row.cells, strict=True)]
    lines = [f"{row.label}, {column.key}: {' '.join(cell.runs)}" for row, column, cell in places if cell.runs]
    return "".join(f"% {' '.join(line.split())}\n" for line in ["needs \\usepackage{booktabs}", *lines])


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "±": r"$\pm$", MINUS: "$-$", "\u00d7": r"$\times$",
    "[": "{[}", "*": "{*}",  # at a row's beginning both would be arguments of the line break before it
}  # fmt: skip


def _latex(text: str) -> str:
    """Escape any text; a character that pdflatex may not know is named by its code point."""
    return "".join(
        LATEX.get(sign, sign if " " <= sign <= "~" else f"(U+{ord(sign):04X})") for sign in " ".join(text.split())
    )


CSV_COLUMNS = (
    "grid", "cell", "axis", "value", "kind", "task", "protocol", "metric", "n", "planned", "mean", "sd",
    "difference", "low", "high", "p", "p_holm", "seeds", "values", "runs",
)  # fmt: skip


def to_csv(table: Table) -> str:
    """Write one line for every measure of every row, in full precision, with the runs it comes from."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_row(table, row, place) for row in table.rows for place in range(len(row.measures)))
    return file.getvalue()


def csv_row(table: Table, row: Row, place: int) -> dict[str, Any]:
    """Return one line of the CSV; the comparison stands beside the grid's own metric alone."""
    one = row.measures[place]
    pair = (row.comparison if place == table.headline else None) or Paired(0)
    return {
        "grid": table.grid, "cell": row.label, "axis": row.axis, "value": row.value, "kind": row.kind,
        "task": one.task, "protocol": one.protocol, "metric": one.metric,
        "n": one.summary.n, "planned": len(one.runs), "mean": one.summary.mean, "sd": one.summary.sd,
        "difference": pair.difference, "low": pair.low, "high": pair.high, "p": pair.p,
        "p_holm": row.adjusted if place == table.headline else None,
        "seeds": " ".join(map(str, one.values)), "values": " ".join(map(repr, one.values.values())),
        "runs": " ".join(one.runs[seed] for seed in one.values),
    }  # fmt: skip


HTML = """\
<table class="grid">
<caption><span>{{ table.caption }}</span></caption>
<thead><tr>{% for column in table.columns %}<th scope="col"{% if column.text %} class="text"{% endif %}>
{{- column.title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr class="{{ row.kind }}">
{% for column, cell in zip(table.columns, row.cells) %}
{% if column.key == "cell" %}<th scope="row">{{ cell.text }}</th>
{% else %}<td class="{{ "text " if column.text }}{{ cell.marks | join(" ") }}"
{%- if cell.runs %} title="runs {{ cell.runs | join(", ") }}"{% endif %}>
{%- if "best" in cell.marks %}<strong>{{ cell.text }}</strong>{% else %}{{ cell.text }}{% endif %}</td>
{% endif %}{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% if table.notes %}<ul class="notes">
{% for note in table.notes %}<li>{{ note }}</li>
{% endfor %}</ul>
{% endif %}"""


def to_html(table: Table) -> str:
    """Draw the table as an HTML fragment; every number carries its runs as a title."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(HTML, globals={"zip": zip})
    return template.render(table=table)


def to_json(table: Table) -> str:
    """Write the whole model as one JSON document."""
    return json.dumps(dataclasses.asdict(table) | {"notes": table.notes}, indent=1, allow_nan=False)
