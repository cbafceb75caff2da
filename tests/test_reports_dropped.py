import json

import pytest
from made_store import TASKS, made_grid, run_id

from reports.build import main
from reports.dropped import dropped
from reports.tables import grid_table
from smog.errors import UsageError
from smog.store import result_path, write_grid


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def made(store):
    return made_grid(store)


def listed(store, text):
    (store / "dropped.yaml").write_text(text)


def test_nothing_is_dropped_without_the_file(store, made):
    assert dropped(store, [made]) == {}


def test_a_run_a_cells_seed_and_a_grids_seed(store, made):
    listed(
        store,
        f"- {{run: {run_id('30', 0)}, reason: its disk\n    was full}}\n"
        "- {grid: num_groups, cell: '100', seed: 1, reason: x}\n- {grid: num_groups, seed: 2, reason: power cut}\n",
    )
    labels = ("raw pixels", "untrained", "30", "100", "300", "1000")
    expected = {run_id("30", 0): "its disk was full", run_id("100", 1): "x"}
    assert dropped(store, [made]) == expected | {run_id(label, 2): "power cut" for label in labels}


def test_a_run_that_serves_every_seed_belongs_to_none(store, made):
    pixels = next(cell for cell in made["cells"] if cell["label"] == "raw pixels")
    pixels["runs"] = dict.fromkeys(pixels["runs"], pixels["runs"]["0"])
    listed(store, "- {grid: num_groups, seed: 0, reason: x}\n")
    assert pixels["runs"]["0"] not in dropped(store, [made])


def test_the_table_counts_without_it_and_prints_the_reason(store, made):
    listed(store, "- {grid: num_groups, cell: '100', seed: 1, reason: the <b>node</b> failed}\n")
    table = grid_table(store, made, dropped=dropped(store, [made]))
    row = next(row for row in table.rows if row.label == "100")
    assert table.missing == 0
    assert row.cells[1].text.startswith("44.4")  # of 44.7 and 44.1
    assert row.cells[1].notes == ("without seed 1: the <b>node</b> failed",)
    assert row.cells[3].text == "2"
    assert row.comparison.n == 2
    assert "without seed 1: the <b>node</b> failed" in table.notes


def test_every_output_of_the_build_prints_it(store, made, tmp_path):
    listed(store, "- {grid: num_groups, cell: '100', seed: 1, reason: the power failed}\n")
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0
    for name in (
        "tables/num_groups.md",
        "tables/num_groups.tex",
        "tables/num_groups.html",
        "REPRODUCE.md",
        "index.html",
    ):
        assert "the power failed" in (tmp_path / "out" / name).read_text(), name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {grid: num_groups, seed: 2}", "entry 1 has no reason"),
        ("- {grid: num_groups, seed: 2, reason: ' '}", "entry 1 has no reason"),
        ("- {grid: num_groups, reason: x}", "expected: "),
        ("- {grid: num_groups, seed: 7, reason: x}", "nothing in the store is grid num_groups, seed 7"),
        ("- {grid: num_group, seed: 1, reason: x}", "nothing in the store is grid num_group, seed 1"),
        ("- {run: 0123456789ab, reason: x}", "no run 0123456789ab"),
        ("- {grid: num_groups, sed: 2, reason: x}", "nearest: seed"),
        ("- 7", "entry 1 is 7"),
        ("a: b", "must be a list"),
        ("- {", "can't be read"),
        ("- !!python/object/apply:os.system [ls]", "can't be read"),
    ],
)
def test_an_entry_that_says_nothing_is_refused(store, made, text, words):
    listed(store, text)
    with pytest.raises(UsageError) as found:
        dropped(store, [made])
    assert words in str(found.value)
    assert "dropped.yaml" in str(found.value)


def change(store, run, **values):
    path = result_path(store / run, "knn", TASKS["knn"])
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_dropped_run_may_differ_from_the_others(store, made, tmp_path, capsys):
    change(store, run_id("300", 1), version=7)
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 2
    assert "differ in version" in capsys.readouterr().err
    listed(store, f"- {{run: {run_id('300', 1)}, reason: by another version}}\n")
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0


def test_entries_of_grids_that_are_not_asked_for_are_in_order(store, made, tmp_path):
    write_grid(store, made | {"grid": "other"})
    listed(store, "- {grid: other, cell: '30', seed: 1, reason: x}\n- {grid: num_groups, seed: 2, reason: y}\n")
    assert main([f"store={store}", f"out={tmp_path / 'out'}", "grids=[num_groups]"]) == 0


@pytest.mark.parametrize("run", ["grids", "", "../store"])
def test_a_run_is_named_by_its_id(store, made, run):
    listed(store, f"- {{run: '{run}', reason: x}}\n")
    with pytest.raises(UsageError, match="no run"):
        dropped(store, [made])


def test_a_dropped_run_is_on_no_sheet_of_pictures(store, made, tmp_path, monkeypatch):
    from reports import sheets

    seen = []
    monkeypatch.setattr(sheets, "drawings", lambda store, record, results, name: (seen.extend(results), [])[1:] * 2)
    listed(store, f"- {{run: {run_id('300', 0)}, reason: x}}\n")
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0
    assert (run_id("300", 1), "knn") in seen
    assert (run_id("300", 0), "knn") not in seen
