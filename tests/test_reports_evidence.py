import json
import math

import pytest
from made_store import AXIS, TASKS, cell, made_grid, record, run_id, write_result

from reports.build import main
from reports.collect import collect
from reports.evidence import read_results
from reports.tables import grid_table
from smog.config import compose, dump
from smog.errors import UsageError
from smog.store import RESULT_SCHEMA, result_path, write_grid, write_json

KNN = {"knn": TASKS["knn"]}


def changed(store, run, change):
    path = result_path(store / run, "knn", TASKS["knn"])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def refused(store, out, capsys, *words):
    """Check that a build ends with 2, one line that has the words, and nothing written."""
    assert main([f"store={store}", f"out={out}"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    for word in words:
        assert str(word) in printed.err
    assert not out.exists()


@pytest.fixture
def store(tmp_path):
    made_grid(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, None, "50", True])
def test_a_metric_that_is_no_finite_number_is_named(store, tmp_path, capsys, number):
    path = changed(store, run_id("100", 1), lambda content: content["metrics"].update(top1=number))
    refused(store, tmp_path / "out", capsys, path, "top1", "run the task again")


def test_a_result_of_a_future_schema_is_refused(store, tmp_path, capsys):
    path = changed(store, run_id("100", 1), lambda content: content.update(schema=RESULT_SCHEMA + 1))
    refused(store, tmp_path / "out", capsys, path, f"schema {RESULT_SCHEMA + 1}", "update the suite")


def test_a_grid_record_of_a_future_schema_is_refused(tmp_path, capsys):
    made_grid(tmp_path / "store", schema=2)
    refused(tmp_path / "store", tmp_path / "out", capsys, "num_groups", "schema 2", "update the suite")


def test_results_without_a_schema_are_of_the_first(store):
    changed(store, run_id("100", 1), lambda content: content.pop("schema", None))
    assert len(read_results(store)) == 36


def test_two_results_under_one_identity_are_named(store, tmp_path, capsys):
    """A run's folder copied under another name, as from another store."""
    source, other = run_id("100", 0), run_id("somewhere else")
    write_result(store, other, 0, "knn", 70.0)
    content = result_path(store / source, "knn", TASKS["knn"]).read_text()
    wrong = result_path(store / other, "knn", TASKS["knn"])
    wrong.write_text(content)
    refused(store, tmp_path / "out", capsys, wrong, source, "which has one already")


def test_a_second_file_of_one_result_is_named(store, tmp_path, capsys):
    path = result_path(store / run_id("100", 0), "knn", TASKS["knn"])
    twice = path.with_name("knn@copy.json")
    twice.write_bytes(path.read_bytes())
    refused(store, tmp_path / "out", capsys, twice, "which has one already", path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"run_id": 1}'])
def test_a_damaged_result_is_named(store, tmp_path, capsys, content):
    path = result_path(store / run_id("100", 0), "knn", TASKS["knn"])
    path.write_text(content)
    refused(store, tmp_path / "out", capsys, path, "move it away")


def test_an_empty_store_is_one_line(tmp_path, capsys):
    (tmp_path / "store").mkdir()
    refused(tmp_path / "store", tmp_path / "out", capsys, "no results in the store", "ablations/run.py")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["inputs"].update(data="other"), ("inputs.data", "made and other")),
        (lambda content: content["inputs"].update(val=1000), ("inputs.val", "2000 and 1000")),
        (lambda content: content.update(version=2), ("version", "None and 2")),
    ],
)
def test_seeds_that_differ_in_more_than_the_seed_are_never_averaged(store, tmp_path, capsys, change, words):
    changed(store, run_id("100", 1), change)
    refused(store, tmp_path / "out", capsys, "cell 100", "seeds 0 and 1", *words)


def test_the_key_in_which_two_runs_differ_is_named(tmp_path):
    """Another cell's run in the place of a seed: the records say one group, the configurations two."""
    cells = [cell(tmp_path, "300", 300, {"knn": [50.0, 51.0]}, baseline=True)]
    made = record(cells, tasks=KNN, baseline={AXIS: 300})
    write_grid(tmp_path, made)
    for seed, groups in ((0, 30), (1, 20)):
        run = run_id("300", seed)
        config = compose(["recipe=smoke", f"seed={seed}", f"method.num_groups={groups}", "data.fingerprint=abc"])
        (tmp_path / run / "config.yaml").write_text(dump(config))
        changed(tmp_path, run, lambda content, seed=seed: content.update(group_id=f"{seed}" * 12))
    with pytest.raises(UsageError, match=r"seeds 0 and 1 .* differ in method\.num_groups \(30 and 20\)"):
        grid_table(tmp_path, made)


def test_a_configuration_that_is_no_ones_own_is_said(tmp_path):
    cells = [cell(tmp_path, "300", 300, {"knn": [50.0, 51.0]}, baseline=True)]
    made = record(cells, tasks=KNN, baseline={AXIS: 300})
    changed(tmp_path, run_id("300", 1), lambda content: content.update(group_id="1" * 12))
    with pytest.raises(UsageError, match="differ in group_id"):
        grid_table(tmp_path, made)


def test_a_run_folder_without_results_is_no_result(store):
    write_json(store / run_id("new") / "env.json", {})
    (store / run_id("new") / "results").mkdir()
    (store / run_id("new") / "results" / ".knn@x.json.12.tmp").write_text("{")
    assert len(read_results(store)) == 36


def test_a_run_of_another_version_keeps_its_values_and_has_no_command(store):
    path = store / run_id("300", 0) / "config.yaml"
    path.write_text("recipe: old\nmethod: {num_groups: 300, gone: true}\n")
    run = collect(store, ()).report.runs[run_id("300", 0)]
    assert (run.recipe, run.config, run.command) == ("old", {"method.num_groups": 300, "method.gone": True}, "")


def test_a_configuration_that_is_no_yaml_is_named(store, tmp_path, capsys):
    path = store / run_id("300", 0) / "config.yaml"
    path.write_text("a: [")
    refused(store, tmp_path / "out", capsys, path, "can't be read")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("schema", "2", "no whole number"), ("cost", None, "lacks cost"), ("cost", {}, "lacks cost"),
        ("cost.seconds", math.nan, "no finite number"), ("cost.seconds", "3", "no finite number"),
        ("cost.device", ["x"], "no text"), ("inputs", None, "lacks inputs"), ("inputs.val", "x", "no whole number"),
        ("metrics", {}, "lacks metrics"), ("metrics", [1], "no record"), ("provenance", None, "lacks provenance"),
        ("provenance.versions", [1], "no record"), ("created", 5, "no text"), ("seed", "1", "no whole number"),
        ("group_id", 7, "no text"), ("settings", [], "no record"), ("inputs.data", "\ud800", "not readable"),
        ("seed", 7, "should be seed 1"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_one_line(store, tmp_path, capsys, name, value, words):
    def change(content):
        *parts, last = name.split(".")
        for part in parts:
            content = content[part]
        content[last] = value

    path = changed(store, run_id("100", 1), change)
    refused(store, tmp_path / "out", capsys, path.parent.parent.name, words)


@pytest.mark.parametrize("change", [{"settings": None}, {"seed": None}, {"schema": None}])
def test_what_a_result_may_leave_open(store, change):
    changed(store, run_id("100", 1), lambda content: content.update(change))
    assert len(collect(store, ()).results) == 36


@pytest.mark.parametrize(
    ("name", "content"),
    [("done", "[1]"), ("done", '{"seconds": NaN, "steps": 3}'), ("done", '{"seconds": "a"}'), ("env.json", "[]"),
     ("env.json", '{"versions": [1]}'), ("env.json", '{"commit": 5}'), ("env.json", '{"device": "\\ud800"}')],
)  # fmt: skip
def test_a_file_of_a_run_that_is_of_another_kind_is_one_line(store, tmp_path, capsys, name, content):
    path = store / run_id("100", 1) / name
    path.write_text(content)
    refused(store, tmp_path / "out", capsys, path, "move it away")


@pytest.mark.parametrize(
    "change",
    [{"grid": 5}, {"cells": None}, {"cells": []}, {"cells": [7]}, {"metric": "knn"}, {"tasks": ["knn"]}, {"title": 5},
     {"context": None}, {"seeds": None}, {"axes": None}, {"id": "../x"}, {"schema": "1"}],
)  # fmt: skip
def test_a_record_of_another_kind_is_one_line(store, tmp_path, capsys, change):
    (path,) = (store / "grids").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(store, tmp_path / "out", capsys, "grid")


@pytest.mark.parametrize("runs", [{"0": "../../etc"}, {"x": "0" * 12}, {"0": 5}])
def test_a_record_leads_to_no_place_outside_the_store(store, tmp_path, capsys, runs):
    (path,) = (store / "grids").glob("*.json")
    content = json.loads(path.read_text())
    content["cells"][0]["runs"] = runs
    path.write_text(json.dumps(content))
    refused(store, tmp_path / "out", capsys, "has the run", "run the grid again")
