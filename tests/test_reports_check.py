import json

import pytest
from made_store import TASKS, cell, made_grid, record, run_id, write_result

from reports.build import main
from smog.store import result_path, write_grid


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    made_grid(folder / "store")
    assert main([f"store={folder / 'store'}", f"out={folder / 'out'}"]) == 0
    return folder


@pytest.fixture
def built(fresh, tmp_path):
    """A copy that a test may spoil, and how its check ends."""
    import shutil

    shutil.copytree(fresh, tmp_path / "copy")
    return tmp_path / "copy"


def check(folder, capsys, *more):
    capsys.readouterr()
    code = main([f"store={folder / 'store'}", f"out={folder / 'out'}", "check=true", *more])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, printed.out.splitlines()


def change(folder, label, seed, value, task="knn"):
    path = result_path(folder / "store" / run_id(label, seed), task, TASKS[task])
    content = json.loads(path.read_text())
    content["metrics"]["top1"] = value
    path.write_text(json.dumps(content))


def test_what_was_built_matches(built, capsys):
    code, lines = check(built, capsys)
    assert (code, len(lines)) == (0, 1)
    assert "matches the store" in lines[0]


def test_one_changed_value_names_the_cells_that_are_stale(built, capsys):
    change(built, "1000", 1, 46.5, "linear")  # was 52.6; no other cell's text hangs on it
    code, lines = check(built, capsys)
    assert code == 1
    [row] = [line for line in lines if line.startswith("stale: table num_groups, row 1000")]
    assert "linear top-1 (%): 52.7 ± 0.3 is now 50.6 ± 3.6" in row
    assert f"linear@{TASKS['linear']}.top1 of run {run_id('1000', 1)}: 52.6 is now 46.5" in row
    assert {"stale: tables/num_groups.md", "stale: tables/num_groups.tex", "stale: tables/num_groups.csv"} <= set(lines)
    assert not any("groups-curves" in line for line in lines)  # they show no result
    assert lines[-1] == f"{len(lines) - 1} problems"


def test_a_value_of_the_baseline_makes_the_differences_to_it_stale(built, capsys):
    change(built, "300", 0, 47.9)
    _, lines = check(built, capsys)
    named = [line for line in lines if "difference [95 %]" in line]
    assert [line.partition("row ")[2].partition(",")[0] for line in named] == ["30", "100", "1000"]


def test_a_value_that_changes_no_text_is_named_too(built, capsys):
    change(built, "1000", 1, 52.6000001, "linear")
    code, lines = check(built, capsys)
    assert code == 1
    assert any("the text of its cells is the same" in line and "52.6000001" in line for line in lines)


@pytest.mark.parametrize("kind", ["md", "tex", "csv", "html"])
def test_an_edited_number_is_named_by_its_line(built, capsys, kind):
    path = built / "out" / "tables" / f"num_groups.{kind}"
    text = path.read_text()
    number = {"csv": "45.9", "html": "51.9"}.get(kind, "51.9")
    assert number in text
    place = text[: text.index(number)].count("\n") + 1
    path.write_text(text.replace(number, "99.9", 1))
    code, lines = check(built, capsys)
    assert code == 1
    assert lines[0].startswith(f"edited: tables/num_groups.{kind}, line {place}: ")
    assert "99.9" in lines[0]
    assert len(lines) == 2


def test_a_line_that_is_gone_is_named(built, capsys):
    path = built / "out" / "tables" / "num_groups.md"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    code, lines = check(built, capsys)
    assert code == 1
    assert "a line that was here is gone" in lines[0]


@pytest.mark.parametrize("name", ["figures/num_groups.pdf", "index.html", "figures/num_groups-curves.png"])
def test_other_bytes_of_a_drawn_file_are_named(built, capsys, name):
    path = built / "out" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert check(built, capsys) == (1, [f"edited: {name}", "1 problems"])
    path.unlink()
    assert check(built, capsys) == (1, [f"missing: {name}", "1 problems"])


def test_a_manifest_that_was_edited_with_a_file_deceives_nobody(built, capsys):
    path, manifest = built / "out" / "tables" / "num_groups.md", built / "out" / "report.json"
    old = path.read_bytes()
    path.write_bytes(old.replace(b"51.9", b"99.9"))
    from reports.output import sha256

    manifest.write_text(manifest.read_text().replace(sha256(old), sha256(path.read_bytes())))
    code, lines = check(built, capsys)
    assert code == 1
    assert "stale: tables/num_groups.md" in lines


def test_a_grid_that_is_new_and_one_that_is_gone(built, capsys):
    (path,) = (built / "store" / "grids").glob("*.json")
    path.unlink()
    cells = [cell(built / "store", "z", 1, {"knn": [50.0, 51.0]}, baseline=True)]
    write_grid(built / "store", record(cells, "other", tasks={"knn": TASKS["knn"]}))
    code, lines = check(built, capsys)
    assert code == 1
    assert "stale: table other is new" in lines
    assert "stale: table num_groups: the store has no such table any more" in lines
    assert "stale: figures/num_groups.pdf is of nothing that the store has" in lines


def test_a_new_seed_is_named(built, capsys):
    (path,) = (built / "store" / "grids").glob("*.json")
    made = json.loads(path.read_text())
    for one in made["cells"]:
        run = one["runs"]["3"] = run_id(one["label"], 3)
        for task in TASKS:
            write_result(built / "store", run, 3, task, 50.0, group=one["group_id"])
    path.write_text(json.dumps(made))
    code, lines = check(built, capsys)
    assert code == 1
    assert any(f"of run {run_id('30', 3)}: nothing is now 50.0" in line for line in lines)


def test_json_and_a_folder_without_a_report(built, tmp_path, capsys):
    assert json.loads("\n".join(check(built, capsys, "--json")[1])) == {"problems": []}
    assert main([f"store={built / 'store'}", f"out={tmp_path / 'nothing'}", "check=true"]) == 2
    assert "build the report before" in capsys.readouterr().err


def test_building_again_mends_it_and_removes_what_is_of_no_grid_any_more(built, capsys):
    (path,) = (built / "store" / "grids").glob("*.json")
    content = json.loads(path.read_text())
    path.unlink()
    write_grid(built / "store", content | {"grid": "renamed"})
    (built / "out" / "tables" / "num_groups.md").write_text("edited")
    (built / "out" / "mine.txt").write_text("not a report's")
    assert main([f"store={built / 'store'}", f"out={built / 'out'}"]) == 0
    assert check(built, capsys)[0] == 0
    assert not (built / "out" / "tables" / "num_groups.md").exists()
    assert (built / "out" / "mine.txt").exists()
