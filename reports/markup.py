"""A table as HTML: a fragment that reads well by itself, and that the page makes sortable and its numbers to open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby

from reports.cells import BOLD, MINUS, SECOND, Cell, Column, Row, Table
from reports.writers import parts

PARTS = {0: "reference", 1: "ours", 2: "reported"}
LONG = 30  # characters of a text that may take several lines
OTHERS = "Reported by others"
UNFIT = re.compile(r"[^\w.-]+")  # for the name of a place in a page
Measured = tuple[str, str]  # task@protocol, metric


def to_html(table: Table, name: str = "") -> str:
    """Draw the table and its notes as an HTML fragment.

    Each row has its digest and the ids of its runs in ``data-digest`` and ``data-runs``; a cell has ids of its own only
    where they are others. A column of measured numbers says which they are in ``data-task`` and ``data-metric``, and a
    cell its number in full in ``data-v`` where its text is shorter. ``name`` tells the notes of several tables in one
    page apart.
    """
    anchor = UNFIT.sub("-", name or table.grid)
    measured = measured_columns(table)
    head = "".join(map(_heading, table.columns, measured))
    base = next((_runs(row) for row in table.rows if row.kind == "baseline"), ())
    own = f' data-baseline="{escape(base[0])}"' if base else ""
    bodies = "".join(_body(part, list(rows), table, measured, anchor) for part, rows in groupby(table.rows, key=parts))
    return (
        f'<table class="grid" data-digest="{table.digest}"{own}>\n'
        f"<caption><span>{escape(table.caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n{bodies}</table>\n{_notes(table, anchor)}"
    )


def measured_columns(table: Table) -> list[Measured | None]:
    """Return which measure stands in each column: its task@protocol and its metric, or None for other columns."""
    known = {f"{one.task}.{one.metric}": one for row in table.rows for one in row.measures}
    found = (known.get(column.key) for column in table.columns)
    return [(f"{one.task}@{one.protocol}", one.metric) if one else None for one in found]


def _heading(column: Column, measured: Measured | None) -> str:
    shown = ' class="text"' if column.text else ""
    if measured:
        shown += f' data-task="{escape(measured[0])}" data-metric="{escape(measured[1])}"'
    return f'<th scope="col"{shown}>{escape(column.title)}</th>'


def _body(part: int, rows: list[Row], table: Table, measured: list[Measured | None], anchor: str) -> str:
    lines = "".join(_line(row, table, measured, anchor) for row in rows)
    title = f'<tr class="part"><th scope="rowgroup" colspan="{len(table.columns)}">{OTHERS}</th></tr>\n'
    return f'<tbody class="{PARTS[part]}">\n{title if PARTS[part] == "reported" else ""}{lines}</tbody>\n'


def _line(row: Row, table: Table, measured: list[Measured | None], anchor: str) -> str:
    runs = _runs(row)
    about = f' class="{row.kind}"' if row.kind != "cell" else ""
    about += f' data-digest="{row.digest}"' + (f' data-runs="{escape(" ".join(runs))}"' if runs else "")
    head = next((place for place, one in enumerate(table.columns) if one.key == "cell" and row.cells[place].text), 0)
    cells = (
        _cell(cell, column, place == head, runs if measured[place] else None, _references(table, cell, anchor))
        for place, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True))
    )
    return f"<tr{about}>{''.join(cells)}</tr>\n"


def _runs(row: Row) -> tuple[str, ...]:
    """Return the runs behind any number of a row, once each, in the order of their seeds."""
    shown = [run for cell in row.cells for run in cell.runs]
    planned = [run for one in row.measures for run in one.runs.values()]
    return tuple(run for run in dict.fromkeys([*planned, *shown]) if run in shown)


def _cell(cell: Cell, column: Column, head: bool, runs: tuple[str, ...] | None, references: str) -> str:
    """Draw a cell; ``runs`` are those of the row where numbers are measured, else None."""
    tag = 'th scope="row"' if head else "td"
    classes = [name for name, it_is in (("text", column.text and not head), ("long", len(cell.text) > LONG)) if it_is]
    classes += [mark for mark in cell.marks if mark != "tie"]
    about = f' class="{escape(" ".join(classes))}"' if classes else ""
    if cell.value is not None and not _says(cell.text, cell.value):
        about += f' data-v="{cell.value!r}"'
    if cell.runs != (runs or ()) and not (runs and cell.value is None):
        about += f' data-runs="{escape(" ".join(cell.runs))}"'
    text = escape(cell.text, quote=False)
    text = f"<strong>{text}</strong>" if BOLD in cell.marks else f"<u>{text}</u>" if SECOND in cell.marks else text
    return f"<{tag}{about}>{text}{references}</{tag[:2]}>"


def _says(text: str, value: float) -> bool:
    """Tell whether a text is its number in full."""
    try:
        return float(text.replace(MINUS, "-")) == value
    except ValueError:
        return False


def _references(table: Table, cell: Cell, anchor: str) -> str:
    return "".join(
        f'<sup><a href="#note-{anchor}-{number}" aria-label="note {number}">{number}</a></sup>'
        for number in table.numbers(cell)
    )


def _notes(table: Table, anchor: str) -> str:
    lines = "".join(_note_lines(table, anchor))
    return f'<ol class="notes">\n{lines}</ol>\n' if lines else ""


def _note_lines(table: Table, anchor: str) -> Iterator[str]:
    for number, note in enumerate(table.notes, start=1):
        yield f'<li id="note-{anchor}-{number}">{escape(note, quote=False)}</li>\n'
