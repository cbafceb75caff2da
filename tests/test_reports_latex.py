import re
import shutil
import subprocess

import pytest
from made_store import TASKS, cell, made_grid, record

from reports.cells import Cell, Column, Row, Table
from reports.latex import to_latex
from reports.tables import grid_table

NEEDED = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def wide(recipe="demo"):
    """A table of a task with all that makes it wide: names, recipes, and intervals in every column."""
    titles = ("method", "backbone", "epochs", "batch", "crops", "recipe", *(f"metric number {one}" for one in range(5)))
    columns = tuple(Column(title, title, text=number in (0, 1, 4, 5)) for number, title in enumerate(titles))
    kinds = ("reference", "cell", "delta", "cell", "delta", "reported")
    rows = []
    for number, kind in enumerate(kinds):
        text = "+0.724 [+0.458, +0.991]" if kind == "delta" else "0.97 \u00b1 0.01"
        words = [f"a method with a long name {number}", "resnet10_small", "6", "128", "2x32", recipe]
        words = ["\u2212 untrained", *[""] * 5] if kind == "delta" else words
        cells = [*map(Cell, words), *(Cell(text, 0.5) for _ in range(5))]
        rows.append(Row(words[0], kind, None, None, {}, tuple(cells), ()))
    return Table("wide", "id", "Wide", "A wide table.", columns, tuple(rows), 0, 1, 0)


def body(text):
    return text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]


def test_a_table_that_fits_is_set_as_it_is(tmp_path):
    cells = [cell(tmp_path, label, 1, {"knn": [50.0, 51.0]}, baseline=label == "a") for label in "ab"]
    drawn = to_latex(grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]})))
    assert r"\footnotesize" in drawn
    assert r"\shortstack" not in drawn


def test_what_is_alike_in_all_rows_is_told_in_the_caption():
    drawn = to_latex(wide())
    assert "In all rows that have it: backbone resnet10\\_small, epochs 6, batch 128, crops 2x32, recipe demo." in drawn
    assert "resnet10" not in body(drawn)
    table = wide()
    other = (*table.rows[1].cells[:1], Cell("resnet50"), *table.rows[1].cells[2:])
    rows = (table.rows[0], Row("x", "cell", None, None, {}, other, ()), *table.rows[2:])
    assert "resnet10" in body(to_latex(Table("w", "i", "W", "W.", table.columns, rows, 0, 1, 0)))


def test_intervals_of_a_wide_table_stand_beneath_their_numbers():
    lines = body(to_latex(wide())).splitlines()
    (place, *_) = [number for number, line in enumerate(lines) if "untrained" in line]
    assert lines[place].count("+0.724") == 5
    assert lines[place + 1].count("{[}+0.458, +0.991]") == 5
    assert [line for line in lines if line.startswith(r"\midrule")] == [r"\midrule"] * 3  # head, references, reported


def compiled(folder, texts, packages):
    document = f"\\documentclass{{article}}\\usepackage{{{packages}}}\n\\begin{{document}}\n{texts}\\end{{document}}\n"
    (folder / "t.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    return [float(one) for one in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]


@NEEDED
def test_no_table_is_wider_than_the_text(tmp_path):
    made = made_grid(tmp_path / "store")
    grid = to_latex(grid_table(tmp_path / "store", made))
    tables = [grid, to_latex(wide()), to_latex(wide("cifar10_2core, predictor online, balanced_targets false"))]
    assert compiled(tmp_path, "".join(tables), "booktabs,threeparttable,graphicx") == []


@NEEDED
def test_notes_stand_beneath_the_table_and_nothing_else_is_needed(tmp_path):
    cells = [cell(tmp_path / "store", "a", 1, {"knn": [50.0, None]}, baseline=True)]
    drawn = to_latex(grid_table(tmp_path / "store", record(cells, tasks={"knn": TASKS["knn"]})))
    assert r"\item[1] 1 of 2 results" in drawn
    compiled(tmp_path, drawn, "booktabs,threeparttable")
