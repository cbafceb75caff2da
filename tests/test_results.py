"""``action=results``: tidy rows, comparisons and power of any grid, from the store and the record alone."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from made_store import AXIS, TASKS, cell, crossed_grid, made_grid, named_cell, record, run_id
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from ablations.results import COLUMNS, comparisons, power, power_line, tidy, to_json, to_text
from reports import writers
from reports.tables import grid_table
from smog.errors import UsageError
from smog.store import read_json, result_path, write_json

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "pandas", "matplotlib", "scipy.stats", "statsmodels", "jinja2", "hydra", "timm")


def test_tidy_has_a_row_for_every_cell_seed_task_and_metric(tmp_path):
    made = made_grid(tmp_path)
    rows = tidy(tmp_path, made)
    assert len({(row["cell"], row["seed"], row["task"], row["metric"]) for row in rows}) == len(rows) == 6 * 3 * 2
    [row] = [row for row in rows if (row["cell"], row["seed"], row["task"]) == ("100", 1, "linear")]
    assert row == {
        "grid": "num_groups", "cell": "100", AXIS: 100, "baseline": False, "reference": False, "seed": 1,
        "run_id": run_id("100", 1), "group_id": run_id("100"), "task": "linear", "protocol": TASKS["linear"],
        "metric": "top1", "value": 51.7, "seconds": 2.0, "commit": "c" * 40, "dirty": True,
    }  # fmt: skip
    assert set(COLUMNS) | {AXIS} == set(row)
    assert [row["cell"] for row in rows[::6]] == ["raw pixels", "untrained", "30", "100", "300", "1000"]
    assert {row[AXIS] for row in rows if row["reference"]} == {None}
    assert {row["cell"] for row in rows if row["baseline"]} == {"300"}


def test_tidy_takes_all_metrics_and_leaves_out_what_is_missing(tmp_path):
    made = made_grid(tmp_path)
    path = result_path(tmp_path / run_id("30", 0), "knn", TASKS["knn"])
    result = read_json(path)
    write_json(path, result | {"metrics": {"top1": 1.0, "top5": 2.0}})
    result_path(tmp_path / run_id("30", 1), "knn", TASKS["knn"]).unlink()
    own = [row for row in tidy(tmp_path, made) if (row["cell"], row["task"]) == ("30", "knn")]
    assert [(row["seed"], row["metric"], row["value"]) for row in own] == [
        (0, "top1", 1.0), (0, "top5", 2.0), (2, "top1", 39.9),
    ]  # fmt: skip
    assert json.loads(to_json(tmp_path, made))["missing"] == 1
    assert "1 of 36 results are missing" in to_text(tmp_path, made)


def test_a_run_that_serves_all_seeds_has_one_row(tmp_path):
    made = made_grid(tmp_path)
    raw = next(one for one in made["cells"] if one["label"] == "raw pixels")
    raw["runs"] = dict.fromkeys(raw["runs"], raw["runs"]["0"])
    assert [row["seed"] for row in tidy(tmp_path, made) if row["cell"] == "raw pixels"] == [0, 0]  # two tasks


def test_tidy_has_a_column_for_each_axis_of_any_grid(tmp_path):
    beside = named_cell(tmp_path, {"method.a": 3, "seed": 7})
    rows = tidy(tmp_path, crossed_grid(tmp_path, {"method.a": [1, 2], "task": ["x", "y"]}, included=[beside]))
    points = {row["cell"]: (row["method.a"], row["axis task"], row["axis seed"]) for row in rows}
    assert list(points.values()) == [
        (1, "x", None), (1, "y", None), (2, "x", None), (2, "y", None), (3, None, 7),
    ]  # fmt: skip
    assert {row["task"] for row in rows} == {"knn"}
    assert {row["seed"] for row in rows} == {0, 1, 2}


def test_comparisons_are_those_of_scipy_and_statsmodels(tmp_path):
    made = made_grid(tmp_path)
    values = {}
    for row in tidy(tmp_path, made):
        if row["task"] == "knn":
            values.setdefault(row["cell"], []).append(row["value"])
    found = {row["cell"]: row for row in comparisons(grid_table(tmp_path, made))}
    tests = {label: stats.ttest_rel(values[label], values["300"]) for label in ("30", "100", "1000")}
    adjusted = multipletests([test.pvalue for test in tests.values()], method="holm")[1]
    for (label, test), p in zip(tests.items(), adjusted, strict=True):
        interval, own = test.confidence_interval(0.95), values[label]
        differences = [a - b for a, b in zip(own, values["300"], strict=True)]
        oracle = {
            "n": 3, "mean": statistics.fmean(own), "sd": statistics.stdev(own), "common": 3,
            "difference": statistics.fmean(differences), "sd_difference": statistics.stdev(differences),
            "low": interval.low, "high": interval.high, "p": test.pvalue, "p_holm": p,
        }  # fmt: skip
        assert {name: found[label][name] for name in oracle} == pytest.approx(oracle, rel=1e-10)
    assert found["30"]["point"] == {AXIS: 30}
    for label, kind in (("300", "baseline"), ("untrained", "reference")):
        assert found[label]["kind"] == kind
        assert found[label]["mean"] == pytest.approx(statistics.fmean(values[label]))
        assert (found[label]["difference"], found[label]["p_holm"]) == (None, None)


def test_the_power_stands_on_the_pooled_spread_of_the_differences(tmp_path):
    table = grid_table(tmp_path, made_grid(tmp_path))
    sds = [row["sd_difference"] for row in comparisons(table) if row["kind"] == "cell"]
    pooled = math.sqrt(sum(sd**2 for sd in sds) / 3)
    seeds = math.ceil(TTestPower().solve_power(effect_size=0.5 / pooled, alpha=0.05, power=0.8))
    assert power(table) == pytest.approx({"effect": 0.5, "power": 0.8, "seeds": seeds, "sd": pooled, "comparisons": 3})
    assert power_line(table) == (
        f"to see 0.5 points (80 % power): {seeds} seeds; "
        f"the paired differences spread by sd {pooled:.3g} (pooled over 3 comparisons)"
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[50.0], [51.0]], "unknown until a cell and the baseline have two seeds in common"),
        ([[50.0, None], [None, 51.0]], "unknown until"),
        ([[50.0, 51.0], [51.0, 52.0]], "unknown; the paired differences spread by sd 0 (pooled over 1 comparison)"),
    ],
)
def test_a_power_that_cannot_be_said_is_not(tmp_path, values, words):
    one, other = ({"knn": own} for own in values)
    cells = [cell(tmp_path, "a", 1, one, baseline=True), cell(tmp_path, "b", 2, other)]
    table = grid_table(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    assert power_line(table).startswith(f"to see 0.5 points (80 % power): {words}")
    assert power(table)["seeds"] is None


def test_text_is_the_table_and_the_power(tmp_path):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    assert to_text(tmp_path, made) == f"{writers.to_text(table)}\n{power_line(table)}\n"


def test_json_is_the_tables_document_and_more(tmp_path):
    made = made_grid(tmp_path)
    document = json.loads(to_json(tmp_path, made, failed=[]))
    table = grid_table(tmp_path, made)
    own = {"tidy": tidy(tmp_path, made), "comparisons": comparisons(table), "power": power(table), "failed": []}
    assert document == json.loads(writers.to_json(table)) | own


def test_a_damaged_result_is_named(tmp_path):
    made = made_grid(tmp_path)
    path = result_path(tmp_path / run_id("30", 0), "knn", TASKS["knn"])
    path.write_text("{")
    for render in (to_text, to_json):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            render(tmp_path, made)


CODE = """
import collections, sys
opened = collections.Counter()
sys.addaudithook(lambda event, args: event == "open" and "@" in str(args[0]) and opened.update([str(args[0])]))
from pathlib import Path
from ablations.results import to_json, to_text
from smog.store import grids
(record,) = grids(Path(sys.argv[1]))
{"text": to_text, "json": to_json}[sys.argv[2]](Path(sys.argv[1]), record)
print(len(opened), max(opened.values()), *sys.modules)
"""


@pytest.mark.parametrize("kind", ["text", "json"])
def test_each_result_is_read_once_and_nothing_heavy_imported(tmp_path, kind):
    made_grid(tmp_path)
    command = [sys.executable, "-c", CODE, str(tmp_path), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    files, most, *modules = done.stdout.split()
    assert (files, most) == ("36", "1")
    assert set(HEAVY) & set(modules) == set()
