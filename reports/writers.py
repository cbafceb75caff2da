"""Writers that only draw a table: Markdown, LaTeX, CSV, JSON. What is in it was computed by reports/tables.py."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from reports.cells import BOLD, MINUS, SECOND, Cell, Row, Table
from reports.stats import Paired

if TYPE_CHECKING:
    from jinja2 import Environment

WIDE = 95  # characters that fit a column of text in footnote size
TAG = re.compile("<(?=[a-zA-Z/!?])")  # what Markdown would take for HTML; "< 0.001" is none


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
    return f"{drawn}\n\n{plain(table.caption)}\n{notes}".rstrip() + "\n"


def _marked(table: Table, cell: Cell, second: str, note: str) -> str:
    text = plain(cell.text)
    text = f"**{text}**" if BOLD in cell.marks else second.format(text) if SECOND in cell.marks else text
    return text + "".join(note.format(number) for number in table.numbers(cell))


def plain(text: str) -> str:
    """Return text of the store as one line that Markdown takes for no markup of a table or of HTML."""
    return TAG.sub("&lt;", " ".join(text.split()).replace("|", "\\|"))


def to_latex(table: Table) -> str:
    """Draw the table as LaTeX (booktabs, threeparttable); above it, in comments, the runs behind every number."""
    import pandas as pd

    frame = pd.DataFrame([[_latex_cell(table, cell) for cell in row.cells] for row in table.rows])
    style = frame.style.hide(axis="index")
    style = style.format_index(lambda place: _latex(table.columns[int(str(place))].title), axis="columns")
    columns = "".join("l" if column.text else "r" for column in table.columns)
    body = style.to_latex(hrules=True, column_format=columns).rstrip("\n")
    return _environment().from_string(LATEX_TABLE).render(
        table=table, body=_ruled(table, body), caption=_latex(table.caption), comments=list(_comments(table)),
        notes=[_latex(note) for note in table.notes],
        size=r"\footnotesize" if _width(table) <= WIDE else r"\scriptsize",
        label=re.sub(r"[^\w.-]+", "-", table.grid, flags=re.ASCII),
    )  # fmt: skip


LATEX_TABLE = r"""((% for line in comments %))% ((( line )))
((% endfor %))
\begin{table}
\centering
\begin{threeparttable}
\caption{((( caption )))}
\label{tab:((( label )))}
((( size )))\setlength{\tabcolsep}{4pt}
((( body )))
((% if notes %))
\begin{tablenotes}
((% for note in notes %))
\item[((( loop.index )))] ((( note )))
((% endfor %))
\end{tablenotes}
((% endif %))
\end{threeparttable}
\end{table}
"""


@cache
def _environment() -> Environment:
    """Return jinja2 with brackets that LaTeX does not use. Nothing is escaped by it: what is written is LaTeX."""
    from jinja2 import Environment

    return Environment(
        block_start_string="((%", block_end_string="%))", variable_start_string="(((", variable_end_string=")))",
        comment_start_string="((#", comment_end_string="#))", trim_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip


def _width(table: Table) -> int:
    """Return how many characters a line of the table takes."""
    titles = [len(column.title) for column in table.columns]
    return sum(
        2 + max([titles[place], *(len(row.cells[place].text) for row in table.rows)]) for place in range(len(titles))
    )


def _latex_cell(table: Table, cell: Cell) -> str:
    text = _latex(cell.text)
    text = rf"\textbf{{{text}}}" if BOLD in cell.marks else rf"\underline{{{text}}}" if SECOND in cell.marks else text
    return text + "".join(rf"\tnote{{{number}}}" for number in table.numbers(cell))


def _ruled(table: Table, body: str) -> str:
    """Put a rule between the rows that are read against and ours, and between ours and what others report."""
    lines = body.split("\n")
    first = lines.index(r"\midrule") + 1
    for place in reversed(range(1, len(table.rows))):
        if parts(table.rows[place - 1]) != parts(table.rows[place]):
            lines.insert(first + place, r"\midrule")
    return "\n".join(lines)


def parts(row: Row) -> int:
    """Return which part of a table a row belongs to: references, ours, reported. A rule stands between two parts."""
    return {"reference": 0, "reported": 2}.get(row.kind, 1)


def _comments(table: Table) -> Iterator[str]:
    yield rf"rows sha256:{table.digest}; needs \usepackage{{booktabs,threeparttable}}"
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.runs:
                yield " ".join(f"{row.label}, {column.key}: {' '.join(cell.runs)}".split())


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "±": r"$\pm$", MINUS: "$-$", "\u00d7": r"$\times$", "\u0394": r"$\Delta$", "\u00b7": r"$\cdot$",
    "[": "{[}", "*": "{*}",  # at a row's beginning both would be arguments of the line break before it
}  # fmt: skip


def _latex(text: str) -> str:
    """Escape any text; a character that pdflatex may not know is named by its code point."""
    return "".join(
        LATEX.get(sign, sign if " " <= sign <= "~" else f"(U+{ord(sign):04X})") for sign in " ".join(text.split())
    )


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
