"""A table as LaTeX (booktabs, threeparttable): as it is where it fits the width of a text, else in a closer form."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from reports.cells import BOLD, MINUS, SECOND, Cell, Row, Table
from reports.writers import parts

if TYPE_CHECKING:
    from jinja2 import Environment

ROOM, CLOSE = 84, 92  # characters that fit a text of 345 pt (article, ECCV) in footnote and in script size
LONG, SHORT = 24, 9  # characters: of a text that is broken, of a line of a heading at least
ALIKE = ("backbone", "epochs", "batch", "crops", "recipe")  # columns that a caption can tell, where all rows agree


def to_latex(table: Table) -> str:
    """Draw the table as LaTeX; above it, in comments, the runs behind every number.

    What is too wide is set closer: columns in which all rows agree are told in the caption, headings are broken; then
    long texts are too, and intervals stand beneath their numbers. What is too wide even then is scaled, where graphicx
    is loaded.
    """
    layout = _layout(table)
    told = ", ".join(f"{table.columns[place].title} {text}" for place, text in layout.alike.items())
    caption = table.caption + (f" In all rows that have it: {told}." if told else "")
    return _environment().from_string(TABLE).render(
        table=table, body=_body(layout), caption=latex(caption), comments=list(_comments(table)),
        notes=[latex(note) for note in table.notes], size=r"\scriptsize" if layout.close else r"\footnotesize",
        space=3 if layout.close else 4, label=re.sub(r"[^\w.-]+", "-", table.grid, flags=re.ASCII),
    )  # fmt: skip


def _layout(table: Table) -> _Layout:
    """Return the first of the layouts that fits, else the closest."""
    wide = _Layout(table)
    if wide.width <= ROOM:
        return wide
    tried = [_Layout(table, True), _Layout(table, True, True), _Layout(table, True, True, True)]
    return next((one for one in tried if one.width <= CLOSE), tried[-1])


@dataclass(frozen=True)
class _Layout:
    """How a table is set: ``close`` without the columns that are alike and with broken headings, ``broken`` with long
    texts in several lines, ``beneath`` with intervals in a line of their own."""

    table: Table
    close: bool = False
    broken: bool = False
    beneath: bool = False

    @property
    def alike(self) -> dict[int, str]:
        """The columns in which all rows that say anything say the same, and what."""
        found = {}
        for place, column in enumerate(self.table.columns if self.close else ()):
            cells = [row.cells[place] for row in self.table.rows]
            texts = {cell.text for cell in cells} - {""}
            if column.title in ALIKE and len(texts) == 1 and not any(cell.notes for cell in cells):
                found[place] = texts.pop()
        return found

    @property
    def places(self) -> list[int]:
        """The columns that are drawn."""
        alike = self.alike
        return [place for place in range(len(self.table.columns)) if place not in alike]

    @property
    def width(self) -> int:
        """How many characters a line takes."""
        return sum(2 + max([self.longest(place), *map(len, self.heading(place))]) for place in self.places)

    def longest(self, place: int) -> int:
        """Return the length of the longest line of a column."""
        lines = (line for row in self.table.rows for line in self.apart(row.cells[place]))
        return min(max(map(len, lines), default=0), LONG if self.wraps(place) else 1000)

    def wraps(self, place: int) -> bool:
        """Say whether a column's text has several lines."""
        long = any(len(row.cells[place].text) > LONG for row in self.table.rows)
        return self.broken and self.table.columns[place].text and long

    def heading(self, place: int) -> list[str]:
        """Return the lines of a heading."""
        title = self.table.columns[place].title
        if not self.close or self.wraps(place):
            return [title]
        words = title.replace(".", ". ")
        return textwrap.wrap(words, max(self.longest(place), SHORT), break_long_words=False) or [""]

    def apart(self, cell: Cell) -> list[str]:
        """Return the text of a cell, its interval apart where that has a line of its own."""
        number, bracket, interval = cell.text.partition(" [")
        return [number, f"[{interval}"] if self.beneath and bracket and cell.value is not None else [cell.text]

    def side(self, place: int) -> str:
        """Return l or r."""
        return "l" if self.table.columns[place].text else "r"


def _body(layout: _Layout) -> str:
    """Return the tabular, with a rule between references, ours and what others report."""
    import pandas as pd

    lines: list[list[str]] = []
    ends: dict[int, str] = {}  # what stands before a line
    for number, row in enumerate(layout.table.rows):
        if number and parts(row) != parts(layout.table.rows[number - 1]):
            ends[len(lines)] = r"\midrule"
        elif number and layout.broken and row.kind != "delta":
            ends[len(lines)] = r"\addlinespace[2pt]"
        lines += _lines(layout, row)
    heads = [_stacked(layout, place) for place in layout.places]
    style = pd.DataFrame(lines).style.hide(axis="index").format_index(lambda place: heads[int(str(place))], axis=1)
    form = "".join(r"p{.2\linewidth}" if layout.wraps(place) else layout.side(place) for place in layout.places)
    drawn = style.to_latex(hrules=True, column_format=form).rstrip("\n").split("\n")
    first = drawn.index(r"\midrule") + 1
    for place in sorted(ends, reverse=True):
        drawn.insert(first + place, ends[place])
    return "\n".join(drawn)


def _stacked(layout: _Layout, place: int) -> str:
    lines = [latex(line) for line in layout.heading(place)]
    return lines[0] if len(lines) == 1 else rf"\shortstack[{layout.side(place)}]{{" + r"\\".join(lines) + "}"


def _lines(layout: _Layout, row: Row) -> Iterator[list[str]]:
    """Yield the lines of a row: its cells, and beneath them its intervals where these have a line of their own."""
    yield [_cell(layout, row.cells[place], layout.wraps(place)) for place in layout.places]
    apart = [layout.apart(row.cells[place])[1:] for place in layout.places]
    if any(apart):
        yield [latex(one[0]) if one else "" for one in apart]


def _cell(layout: _Layout, cell: Cell, wraps: bool) -> str:
    text = latex(layout.apart(cell)[0])
    text = rf"\textbf{{{text}}}" if BOLD in cell.marks else rf"\underline{{{text}}}" if SECOND in cell.marks else text
    text += "".join(rf"\tnote{{{number}}}" for number in layout.table.numbers(cell))
    return rf"\raggedright {text}" if text and wraps else text


TABLE = r"""((% for line in comments %))% ((( line )))
((% endfor %))
\providecommand{\resizebox}[3]{#3}
\begin{table}
\centering
\caption{((( caption )))}
\label{tab:((( label )))}
((( size )))\setlength{\tabcolsep}{((( space )))pt}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{threeparttable}
((( body )))
((% if notes %))
\begin{tablenotes}
((% for note in notes %))
\item[((( loop.index )))] ((( note )))
((% endfor %))
\end{tablenotes}
((% endif %))
\end{threeparttable}}
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


def _comments(table: Table) -> Iterator[str]:
    yield rf"rows sha256:{table.digest}; needs \usepackage{{booktabs,threeparttable}}, and graphicx to scale it"
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


def latex(text: str) -> str:
    """Escape any text; a character that pdflatex may not know is named by its code point."""
    return "".join(
        LATEX.get(sign, sign if " " <= sign <= "~" else f"(U+{ord(sign):04X})") for sign in " ".join(text.split())
    )
