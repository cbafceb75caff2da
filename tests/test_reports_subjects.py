import pytest
from made_store import TASKS, cell, config_text, configured, made_grid, record, run_id, write_result, write_run

from reports.build import main
from reports.collect import collect
from smog.errors import UsageError
from smog.store import result_path, write_grid

KNN = {"knn": TASKS["knn"]}


def section_of(store, name="knn-made"):
    return next(one for one in collect(store, ()).report.sections if one.name == name)


def numbers(store, name="knn-made"):
    """The n of each row by its first words."""
    return {row.cells[0].text: row.cells[-1].text for row in section_of(store, name).table.rows}


def small(store, name, **more):
    cells = [cell(store, "base", 1, {"knn": [50.0, 51.0, 52.0]}, baseline=True), cell(store, "b", 2, {"knn": [60.0]})]
    write_grid(store, record(cells, name, **{"tasks": KNN} | more))
    return cells


def test_grids_that_plan_other_seeds_of_a_shared_cell_lack_nothing(tmp_path, capsys):
    store = tmp_path / "store"
    cells = [cell(store, "base", 1, {"knn": [50.0, 51.0, 52.0], "linear": [60.0, None, None]}, baseline=True)]
    write_grid(store, record(cells, "many", tasks=KNN))
    one = cells[0] | {"runs": {"0": cells[0]["runs"]["0"]}}
    write_grid(store, record([one], "few", tasks=TASKS, seeds=[0]))
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0
    assert "linear-made: 1 of 1 results" in capsys.readouterr().out


def test_a_run_that_serves_the_seeds_of_two_grids_counts_once(tmp_path):
    cells = small(tmp_path, "one")
    run = run_id("pixels", 0)
    write_run(tmp_path, run, 0, 1.0)
    write_result(tmp_path, run, 0, "knn", 40.0, group="a" * 12)
    pixels = {"label": "raw pixels", "axis": None, "value": None, "point": {}, "baseline": False, "reference": True,
              "group_id": "a" * 12}  # fmt: skip
    for name, seeds in (("first", "012"), ("second", "345")):
        write_grid(tmp_path, record([*cells, pixels | {"runs": dict.fromkeys(seeds, run)}], name, tasks=KNN))
    assert numbers(tmp_path)["raw pixels"] == "1"


def test_a_result_that_no_grid_planned_is_shown(tmp_path):
    """Of a cell that stands in its grid's table alone, and of a seed of the baseline that the grid does not have."""
    cells = small(tmp_path, "one")
    write_result(tmp_path, cells[1]["runs"]["0"], 0, "linear", 70.0, group=cells[1]["group_id"])
    write_result(tmp_path, run_id("base", 9), 9, "knn", 53.0, group=cells[0]["group_id"])
    assert numbers(tmp_path) == {run_id("base", 0): "4"}
    assert numbers(tmp_path, "linear-made") == {run_id("b", 0): "1"}
    assert [section.table.draft for section in collect(tmp_path, ()).report.sections] == [False] * 3


def test_strangers_of_one_group_without_seeds_all_have_rows(tmp_path):
    small(tmp_path, "one")
    for number in range(3):
        write_result(tmp_path, run_id("stranger", number), None, "knn", 40.0 + number, group="theirs")
    assert {run_id("stranger", number) for number in range(3)} <= numbers(tmp_path).keys()


def test_two_runs_that_say_they_are_one_seed_are_refused(tmp_path):
    cells = small(tmp_path, "one")
    other = run_id("copy")
    write_result(tmp_path, other, 1, "knn", 90.0, group=cells[0]["group_id"])
    with pytest.raises(UsageError, match=f"{other}.* both say that they are seed 1"):
        collect(tmp_path, ())


def test_a_baseline_without_any_result_stands_as_missing(tmp_path):
    small(tmp_path, "one")
    cells = [cell(tmp_path, "late", 1, {"knn": [None, None]}, baseline=True)]
    write_grid(tmp_path, record(cells, "two", tasks=KNN))
    late = next(row for row in section_of(tmp_path).table.rows if row.cells[0].text == run_id("late", 0))
    assert (late.cells[6].text, late.cells[6].marks) == ("-- (0/2)", ("missing",))
    assert [gap.seed for gap in section_of(tmp_path).gaps] == [0, 1]


def test_a_result_without_the_grids_metric_is_missing_and_named(tmp_path, capsys):
    store = tmp_path / "store"
    small(store, "one", metric="knn.top5")
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 1
    printed = capsys.readouterr().err
    assert "done, its result has no top5" in printed
    assert "failed: 4 planned results are missing" in printed


def test_a_subject_stands_once_where_a_seed_has_lost_its_configuration(tmp_path):
    made = configured(tmp_path, made_grid(tmp_path))
    base = next(one for one in made["cells"] if one["baseline"])
    (tmp_path / min(base["runs"].values()) / "config.yaml").unlink()  # the first that is read
    labels = [row.label for row in section_of(tmp_path, "knn-garments").table.rows if row.kind == "cell"]
    assert len(labels) == 1
    assert numbers(tmp_path, "knn-garments")["SMoG"] == "3"


def test_a_configuration_of_other_keys_is_not_called_untrained(tmp_path):
    store = tmp_path / "store"
    cells = small(store, "one")
    (store / cells[0]["runs"]["0"] / "config.yaml").write_text("old: 2020-01-01\nc: {1: .nan}\nmethod: {name: x}\n")
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0
    assert numbers(store) == {"x": "3"}


@pytest.mark.parametrize(
    ("data", "names"),
    [("cifar10", {"knn-cifar10", "knn-garments"}),
     ("garments", {f"knn-garments-{TASKS['knn']}-{one}" for one in ("made", "others")})],
)  # fmt: skip
def test_names_of_files_say_no_more_than_tells_tables_apart(tmp_path, data, names):
    for label, name, images in (("a", "garments", "made"), ("b", data, "others")):
        cells = [cell(tmp_path, label, 1, {"knn": [50.0]}, baseline=True)]
        write_grid(tmp_path, record(cells, label, tasks=KNN))
        folder = tmp_path / cells[0]["runs"]["0"]
        (folder / "config.yaml").write_text(config_text().replace("name: garments", f"name: {name}"))
        path = result_path(folder, "knn", TASKS["knn"])
        path.write_text(path.read_text().replace('"data": "made"', f'"data": "{images}"'))
    assert {section.name for section in collect(tmp_path, ()).report.sections if section.kind == "paper"} == names


def test_an_untrained_network_stands_once_in_each_table_that_has_it(tmp_path):
    """Of two grids that would train it in two ways, each with a task that the other has not."""
    for label, task, more in (("a", "knn", []), ("b", "linear", ["method.num_groups=30"])):
        cells = [cell(tmp_path, f"untrained {label}", None, {task: [50.0]}, axis=None, reference=True)]
        cells[0]["label"] = "untrained"
        cells.append(cell(tmp_path, label, 1, {task: [60.0]}, baseline=True))
        write_grid(tmp_path, record(cells, label, tasks={task: TASKS[task]}, metric=f"{task}.top1"))
        (tmp_path / cells[0]["runs"]["0"] / "config.yaml").write_text(config_text("optim.epochs=0", *more))
        (tmp_path / cells[1]["runs"]["0"] / "config.yaml").write_text(config_text(*more))
    for name in ("knn-garments", "linear-garments"):
        assert [row.kind for row in section_of(tmp_path, name).table.rows] == ["reference", "cell", "delta"]
