import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from made_store import AXIS, TASKS, cell, crossed_grid, made_grid, named_cell, record, run_id
from scipy import stats
from statsmodels.stats.multitest import multipletests

from reports.latex import to_latex
from reports.markup import to_html
from reports.tables import grid_table, point_of
from reports.writers import plain, to_csv, to_json, to_markdown
from smog.errors import UsageError
from smog.store import result_path

HOSTILE = '<script>alert("1")</script> \\input{x} & 5% $_^~#{}| [a] \u4e2d\n*b*'


def rows_of(text):
    return {row["cell"] + "/" + row["task"]: row for row in csv.DictReader(io.StringIO(text))}


def texts(table):
    return {row.label: [one.text for one in row.cells] for row in table.rows}


def test_rows_stand_in_order_with_the_references_first(tmp_path):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    assert [row.label for row in table.rows] == ["raw pixels", "untrained", "30", "100", "300", "1000"]
    assert grid_table(tmp_path, made | {"cells": made["cells"][::-1]}) == table
    assert texts(table)["300"][0] == "300 (baseline)"
    assert (table.planned, table.missing) == (36, 0)


def test_numbers_are_those_of_scipy_and_statsmodels(tmp_path):
    lines = rows_of(to_csv(grid_table(tmp_path, made_grid(tmp_path))))
    values = {
        label: list(map(float, lines[f"{label}/knn"]["values"].split())) for label in ("30", "100", "300", "1000")
    }
    tests = {label: stats.ttest_rel(values[label], values["300"]) for label in ("30", "100", "1000")}
    adjusted = multipletests([test.pvalue for test in tests.values()], method="holm")[1]
    for (label, test), p in zip(tests.items(), adjusted, strict=True):
        line, interval = lines[f"{label}/knn"], test.confidence_interval(0.95)
        assert [float(line[name]) for name in ("low", "high", "p", "p_holm")] == pytest.approx(
            [interval.low, interval.high, test.pvalue, p]
        )
    assert lines["300/knn"]["difference"] == lines["30/linear"]["difference"] == ""


def test_csv_names_the_runs(tmp_path):
    made = made_grid(tmp_path)
    line = rows_of(to_csv(grid_table(tmp_path, made)))["100/linear"]
    runs = next(one["runs"] for one in made["cells"] if one["label"] == "100")
    assert line["runs"].split() == [runs[seed] for seed in line["seeds"].split()]
    assert (line["n"], line["planned"], line["values"]) == ("3", "3", "50.9 51.7 51.8")


def test_bold_marks_the_ties_and_never_a_reference(tmp_path):
    reference = {"axis": None, "reference": True}
    cells = [
        cell(tmp_path, "oracle", None, {"knn": [99.0, 99.1, 99.3]}, **reference),
        cell(tmp_path, "low", 1, {"knn": [10.0, 11.1, 12.0]}, baseline=True),
        cell(tmp_path, "tie", 2, {"knn": [49.6, 51.4, 51.5]}),
        cell(tmp_path, "best", 3, {"knn": [50.0, 51.0, 52.0]}),
    ]
    table = grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    assert {row.label for row in table.rows if "best" in row.cells[1].marks} == {"tie", "best"}
    assert to_markdown(table).count("**") == to_latex(table).count(r"\textbf") * 2 == 4


def test_missing_results_are_said_and_never_best(tmp_path):
    cells = [
        cell(tmp_path, "a", 1, {"knn": [50.0, 51.0, 52.0]}, baseline=True),
        cell(tmp_path, "b", 2, {"knn": [70.0, None, 72.0]}),
        cell(tmp_path, "c", 3, {"knn": [None, None, None]}),
        cell(tmp_path, "tie", 4, {"knn": [50.5, None, 51.0]}),
    ]
    table = grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    shown = texts(table)
    assert table.missing == 5
    assert shown["b"][1] == "71.0 ± 1.4 (2/3)"
    assert shown["b"][2] == "2/3"
    assert shown["b"][3].endswith("(n = 2)")
    assert shown["c"][1:] == ["-- (0/3)", "0/3", "--", "--"]
    assert not any("best" in row.cells[1].marks for row in table.rows)  # of one that is whole nobody knows
    assert "5 of 12 results are missing" in table.caption
    for drawn in (to_markdown(table), to_latex(table), to_html(table)):
        assert "2 of 3 results" in drawn
    assert rows_of(to_csv(table))["c/knn"]["mean"] == ""


def test_one_seed_has_no_spread_no_interval_and_no_bold(tmp_path):
    cells = [cell(tmp_path, "a", 1, {"knn": [50.04]}, baseline=True), cell(tmp_path, "b", 2, {"knn": [51.28]})]
    table = grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    assert texts(table) == {"a": ["a (baseline)", "50.0", "1", "", ""], "b": ["b", "51.3", "1", "+1.2", ""]}
    assert "One seed" in table.caption
    assert "**" not in to_markdown(table)
    assert " 50.0 |" in to_markdown(table)


def test_a_spread_that_rounds_to_zero_keeps_a_digit(tmp_path):
    cells = [cell(tmp_path, "a", 1, {"knn": [50.0, 50.02, 50.04]}, baseline=True)]
    assert texts(grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]})))["a"][1] == "50.0 ± 0.02"


def test_equal_differences_are_said(tmp_path):
    cells = [
        cell(tmp_path, "a", 1, {"knn": [50.0, 51.0]}, baseline=True),
        cell(tmp_path, "b", 2, {"knn": [51.0, 52.0]}),
    ]
    table = grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    assert texts(table)["b"][3:] == ["+1.0", ""]
    assert any("no t interval" in note for note in table.notes)


def test_a_run_that_serves_all_seeds_counts_once(tmp_path):
    made = made_grid(tmp_path)
    raw = next(one for one in made["cells"] if one["label"] == "raw pixels")
    raw["runs"] = dict.fromkeys(raw["runs"], raw["runs"]["0"])
    assert texts(grid_table(tmp_path, made))["raw pixels"][1:4] == ["38.4", "41.2", "1"]


def test_several_axes_tell_each_cell(tmp_path):
    cells = [
        cell(tmp_path, "baseline", None, {"knn": [50.0, 51.0]}, axis=None, baseline=True),
        cell(tmp_path, "x", "x", {"knn": [51.0, 52.5]}, axis="optim.b"),
        cell(tmp_path, "9", 9, {"knn": [51.0, 52.5]}, axis="method.a"),
    ]
    axes = {"method.a": [1, 9], "optim.b": ["y", "x"]}
    made = record(cells, tasks={"knn": TASKS["knn"]}, axes=axes, baseline={"method.a": 1, "optim.b": "y"})
    table = grid_table(tmp_path, made)
    assert [[one.text for one in row.cells[:2]] for row in table.rows] == [
        ["", "baseline"], ["method.a", "9"], ["optim.b", "x"],
    ]  # fmt: skip


def labels(table):
    count = sum(column.text for column in table.columns)
    return [tuple(one.text for one in row.cells[:count]) for row in table.rows]


def in_any_order(store, made):
    """Return the table of a grid; its own cells may stand in the record in any order."""
    table = grid_table(store, made)
    assert grid_table(store, made | {"cells": made["cells"][::-1]}) == table
    return table


def test_two_crossed_axes_get_a_column_each_and_included_cells_their_label(tmp_path):
    at_baseline = {**named_cell(tmp_path, {"optim.c": 1}), "label": "no c", "point": {"method.a": 9, "optim.b": "y"}}
    beside = [named_cell(tmp_path, {"method.a": 9, "optim.b": "x", "optim.c": 0}), at_baseline]
    axes = {"method.a": [9, 1], "optim.b": ["y", "x"]}
    made = crossed_grid(tmp_path, axes, included=beside)
    table = grid_table(tmp_path, made)
    assert table.rows[:4] == grid_table(tmp_path, made | {"cells": made["cells"][::-1]}).rows[:4]
    assert [column.title for column in table.columns[:2]] == ["method.a", "optim.b"]
    assert labels(table) == [
        ("9", "y (baseline)"), ("9", "x"), ("1", "y"), ("1", "x"), ("", "a 9, b x, c 0"), ("", "no c"),
    ]  # fmt: skip
    assert to_html(table).count('<th scope="row">') == 6
    assert [row.comparison is None for row in table.rows] == [True] + [False] * 5


def test_more_crossed_axes_share_a_column(tmp_path):
    axes = {"a": [1, 2], "b": [3], "c": [False, True]}
    table = in_any_order(tmp_path, crossed_grid(tmp_path, axes))
    assert table.columns[0].title == "cell"
    assert labels(table)[1:] == [("a 1, b 3, c True",), ("a 2, b 3, c False",), ("a 2, b 3, c True",)]


def test_zipped_axes_stand_in_their_own_order(tmp_path):
    table = in_any_order(tmp_path, crossed_grid(tmp_path, {"a": [3, 1, 3], "b": [1, 2, 2]}, "zip"))
    assert labels(table) == [("a 3, b 1 (baseline)",), ("a 1, b 2",), ("a 3, b 2",)]


def test_cells_beside_one_axis_stand_last_in_the_order_of_the_record(tmp_path):
    made = made_grid(tmp_path)
    beside = [named_cell(tmp_path, {AXIS: 30, "optim.lr": lr}) for lr in (2, 1)]
    table = grid_table(tmp_path, made | {"cells": [*beside, *made["cells"]]})
    assert [label for (label,) in labels(table)][5:] == ["1000", "num_groups 30, lr 2", "num_groups 30, lr 1"]
    assert table.columns[0].title == AXIS


def test_an_axis_of_named_changes_is_told_by_its_names(tmp_path):
    axes = {"crops": {"two": {"views.size": 32}, "many": {"views.size": 20, "views.small": 4}}}
    values = {"knn": [50.0, 51.5]}
    cells = [cell(tmp_path, name, name, values, axis="crops", baseline=name == "many") for name in ("many", "two")]
    table = in_any_order(tmp_path, record(cells, axes=axes, baseline={"crops": "many"}, tasks={"knn": TASKS["knn"]}))
    assert labels(table) == [("two",), ("many (baseline)",)]
    assert table.columns[0].title == "crops"


def test_a_record_from_before_there_were_points_reads_the_same(tmp_path):
    made = made_grid(tmp_path)
    old = [{name: value for name, value in one.items() if name != "point"} for one in made["cells"]]
    assert grid_table(tmp_path, made | {"cells": old}) == grid_table(tmp_path, made)
    several = made | {"baseline": {"a": 1, "b": 2}}
    assert point_of(several, old[2] | {"axis": "b", "value": 5}) == {"a": 1, "b": 5}
    assert point_of(several, old[2] | {"axis": None, "baseline": True}) == {"a": 1, "b": 2}


def test_the_caption_says_how(tmp_path):
    caption = grid_table(tmp_path, made_grid(tmp_path)).caption
    for words in ("Mean ± standard deviation", "n = 3 seeds (0, 1, 2)", "paired 95 % t interval", "Holm",
                  "3 comparisons", "recipe demo", "data made", "epochs 6", "batch 256"):  # fmt: skip
        assert words in caption


def test_json_is_one_document_with_the_runs(tmp_path):
    made = made_grid(tmp_path)
    document = json.loads(to_json(grid_table(tmp_path, made)))
    assert document["rows"][2]["measures"][0]["runs"] == next(o["runs"] for o in made["cells"] if o["label"] == "30")


@pytest.mark.parametrize("change", [{"mode": "zap"}, {"metric": "coco.ap"}, {"family": "bonferroni"}, {"cells": None}])
def test_a_record_that_cannot_be_read_is_one_line(tmp_path, change):
    made = {name: value for name, value in (made_grid(tmp_path) | change).items() if value is not None}
    with pytest.raises(UsageError, match="num_groups"):
        grid_table(tmp_path, made)


def test_a_damaged_result_is_named(tmp_path):
    made = made_grid(tmp_path)
    path = result_path(tmp_path / run_id("30", 0), "knn", TASKS["knn"])
    path.write_text("{")
    with pytest.raises(UsageError, match=str(path)):
        grid_table(tmp_path, made)


def hostile_table(store):
    cells = [
        cell(store, HOSTILE, 1, {"knn": [50.0, 51.0, None]}, baseline=True),
        cell(store, "[2, 3]", 2, {"knn": [50.0, 51.5, 52.0]}),
    ]
    return grid_table(store, record(cells, tasks={"knn": TASKS["knn"]}, title=HOSTILE, axes={HOSTILE: [1, 2]}))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)

    def handle_data(self, data):
        self.text += data


def test_one_seed_is_never_marked_and_one_row_is_no_winner(tmp_path):
    cells = [
        cell(tmp_path, "base", 1, {"knn": [50.0, 51.0, 52.0]}, baseline=True),
        cell(tmp_path, "once", 2, {"knn": [40.0]}),
    ]
    tasks = {"knn": TASKS["knn"]}
    rows = {row.label: row.cells[1].marks for row in grid_table(tmp_path, record(cells, tasks=tasks)).rows}
    assert rows == {"base": ("best",), "once": ()}
    [alone] = grid_table(tmp_path, record(cells[:1], tasks=tasks)).rows
    assert alone.cells[1].marks == ()


def test_several_metrics_of_a_result_are_one_result(tmp_path):
    """A detector has two columns; what lacks one of them is one missing result."""
    cells = [cell(tmp_path, "base", 1, {"knn": [50.0, 51.0]}, baseline=True)]
    for seed, metrics in enumerate(({"box_ap": 1.0, "mask_ap": 2.0}, {"box_ap": 1.0})):
        path = result_path(tmp_path / run_id("base", seed), "knn", TASKS["knn"])
        content = json.loads(path.read_text()) | {"task": "coco", "metrics": metrics}
        path.with_name(f"coco@{TASKS['knn']}.json").write_text(json.dumps(content))
    table = grid_table(tmp_path, record(cells, tasks={"coco": TASKS["knn"]}, metric="coco.box_ap"))
    assert (table.planned, table.missing) == (2, 1)
    assert "1 of 2 results are missing" in table.caption


@pytest.mark.parametrize(
    "text",
    ["*b* and **c**", "_i_ __j__", "`code`", "[a](b)", "[a][b]", "$x^2$", "~~no~~", "&lt;b&gt;", "\\* \\|"],
)
def test_markdown_finds_no_markup_in_text(text):
    drawn = plain(text)
    assert re.sub(r"\\(.)", r"\1", drawn).replace("&amp;", "&") == text  # reads as it was written
    bare = re.sub(r"\\.", "", drawn)
    assert not re.search(r"[*`$~|\\]|(?<!\w)_|_(?!\w)|\]\(|\]\[|&(?!amp;)", bare)


def test_names_of_keys_and_intervals_stay_as_they_are():
    for text in (
        "method.num_groups",
        "\u22123.8 [\u22126.6, \u22121.1]",
        "< 0.001",
        "k-NN top-1 (%)",
        "a & b",
        "100 (baseline)",
    ):
        assert plain(text) == text


@pytest.mark.parametrize("title", ["# a", "> a", "- a", "1. a", "12) a", "=== a"])
def test_a_title_makes_no_block_of_the_caption(tmp_path, title):
    drawn = to_markdown(grid_table(tmp_path, made_grid(tmp_path, title=title)))
    caption = next(line for line in drawn.splitlines() if "Mean \u00b1" in line)
    assert re.match(r"\d*\\", caption)


def test_html_and_markdown_escape(tmp_path):
    table = hostile_table(tmp_path)
    parsed = Tags(to_html(table))
    assert "script" not in parsed.seen
    assert HOSTILE in parsed.text
    assert "<script" not in to_markdown(table)
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 1}
    assert len(lines) == len(table.rows) + 2


def test_latex_escapes(tmp_path):
    drawn = to_latex(hostile_table(tmp_path))
    body = [line for line in drawn.splitlines() if not line.startswith("%")]
    assert not any("\\input" in line for line in body)
    assert drawn.isascii() or all(line.startswith("%") for line in drawn.splitlines() if not line.isascii())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    tables = to_latex(grid_table(tmp_path, made_grid(tmp_path))) + to_latex(hostile_table(tmp_path / "hostile"))
    packages = "\\usepackage{booktabs,threeparttable}"
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\n{tables}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
