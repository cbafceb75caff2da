"""Writers that only draw a table: Markdown, CSV, JSON. What is in it was computed by reports/tables.py."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any

from reports.cells import BOLD, SECOND, Cell, Row, Table
from reports.stats import Paired

MARKUP = re.compile(  # what Markdown would take for HTML, code, formulae, emphasis or links; "< 0.001" is none of it
    r"<(?=[a-zA-Z/!?])|&(?=#?\w+;)|[\\`*|$~]|(?<![^\W_])_+|_+(?![^\W_])|\](?=[(\[:])"
)
BLOCK = re.compile(r"[#>+=-]|(?<=\d)[.)]")  # at the beginning of a paragraph: a heading, a quotation, a list


def to_markdown(table: Table) -> str:
    """Draw the table as Markdown."""
    return _pipes(table, "<ins>{}</ins>", "<sup>{}</sup>")


def to_text(table: Table) -> str:
    """Draw the table for a terminal: Markdown without tags."""
    return _pipes(table, "_{}_", " [{}]")


def _pipes(table: Table, second: str, note: str) -> str:
    from tabulate import tabulate

    rows = [[_marked(table, cell, second, note) for cell in row.cells] for row in table.rows]
    titles = [plain(column.title) for column in table.columns]
    sides = ["left" if column.text else "right" for column in table.columns]
    drawn = tabulate(rows, titles, tablefmt="pipe", disable_numparse=True, colalign=sides)
    notes = "".join(f"\n{number}. {plain(note)}" for number, note in enumerate(table.notes, start=1))
    return f"{drawn}\n\n{_paragraph(table.caption)}\n{notes}".rstrip() + "\n"


def _marked(table: Table, cell: Cell, second: str, note: str) -> str:
    text = plain(cell.text)
    text = f"**{text}**" if BOLD in cell.marks else second.format(text) if SECOND in cell.marks else text
    return text + "".join(note.format(number) for number in table.numbers(cell))


def plain(text: str) -> str:
    """Return text of the store as one line in which Markdown finds no markup."""
    return MARKUP.sub(_harmless, " ".join(text.split()))


def _harmless(found: re.Match[str]) -> str:
    named = {"<": "&lt;", "&": "&amp;"}
    return named.get(found[0]) or "".join(f"\\{sign}" for sign in found[0])


def _paragraph(text: str) -> str:
    """Return text of the store as a paragraph of its own."""
    line = plain(text)
    start = BLOCK.match(line, len(line) - len(line.lstrip("0123456789")))
    return line[: start.start()] + "\\" + line[start.start() :] if start else line


def parts(row: Row) -> int:
    """Return which part of a table a row belongs to: references, ours, reported. A rule stands between two parts."""
    return {"reference": 0, "reported": 2}.get(row.kind, 1)


CSV_COLUMNS = (
    "grid", "cell", "axis", "value", "kind", "task", "protocol", "metric", "n", "planned", "mean", "sd",
    "difference", "low", "high", "p", "p_holm", "seeds", "values", "runs", "row",
)  # fmt: skip


def to_csv(table: Table) -> str:
    """Write one line for every measure of every row, in full precision, with the runs it comes from.

    The value on each axis follows as a column of its own; ``row`` is the digest of the table's row.
    """
    axes = dict.fromkeys(axis for row in table.rows for axis in row.point)
    names = {axis: f"axis {axis}" if axis in CSV_COLUMNS else axis for axis in axes}
    file = io.StringIO()
    writer = csv.DictWriter(file, [*CSV_COLUMNS, *names.values()], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        points = {name: row.point.get(axis) for axis, name in names.items()}
        writer.writerows(csv_row(table, row, place) | points for place in range(len(row.measures)))
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
        "runs": " ".join(one.runs[seed] for seed in one.values), "row": row.digest,
    }  # fmt: skip


def to_dict(table: Table) -> dict[str, Any]:
    """Return the whole model as plain data."""
    return dataclasses.asdict(table) | {"notes": table.notes}


def to_json(table: Table) -> str:
    """Write the whole model as one JSON document."""
    return json.dumps(to_dict(table), indent=1, allow_nan=False)
