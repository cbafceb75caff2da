"""Writers that only draw a table: Markdown, LaTeX, CSV, HTML, JSON. What is in it was computed by reports/tables.py."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any

from reports.stats import Paired
from reports.tables import MINUS, Cell, Row, Table

TAG = re.compile("<(?=[a-zA-Z/!?])")  # what Markdown would take for HTML; "< 0.001" is none


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


def to_dict(table: Table) -> dict[str, Any]:
    """Return the whole model as plain data."""
    return dataclasses.asdict(table) | {"notes": table.notes}


def to_json(table: Table) -> str:
    """Write the whole model as one JSON document."""
    return json.dumps(to_dict(table), indent=1, allow_nan=False)
