import json

import pytest
from made_store import TASKS, cell, made_grid, record, run_id, write_result

from reports.build import main
from reports.check import _stale_rows
from smog.errors import UsageError
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


def test_a_cell_that_is_no_longer_the_best_is_named(built, capsys):
    """Its own text stays: another one is better now."""
    for seed, value in enumerate([61.0, 61.5, 61.2]):
        change(built, "30", seed, value)
    _, lines = check(built, capsys)
    assert any(", row 1000, k-NN top-1 (%): 45.7 ± 1.1 was best tie, and is now not marked" in line for line in lines)


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


def edit(path, *keys, value):
    content = json.loads(path.read_text())
    *parents, last = keys
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "files"),
    [
        (("cost", "seconds"), 999.0, ["REPRODUCE.md", "index.html: what it shows has changed"]),
        (("cost", "device"), "abacus", ["index.html: what it shows has changed"]),
        (("created",), "2020-01-01T00:00:00+00:00", ["index.html: what it shows has changed"]),
        (("provenance", "commit"), "f" * 40, ["index.html: what it shows has changed"]),
        (("cost", "peak_memory"), 1, []),  # which nothing shows
        (("metrics", "other"), 1.0, []),
    ],
)
def test_what_only_the_page_shows_makes_only_that_stale(built, capsys, keys, value, files):
    edit(result_path(built / "store" / run_id("100", 1), "knn", TASKS["knn"]), *keys, value=value)
    code, lines = check(built, capsys)
    assert (code, lines[:-1]) == (int(bool(files)), [f"stale: {name}" for name in files])


@pytest.mark.parametrize(
    "change", [lambda old: old.replace(b"\n", b"\r\n"), lambda old: old[:-1], lambda old: old + b"\n"]
)
def test_an_edit_that_no_reader_sees_is_named(built, capsys, change):
    path = built / "out" / "tables" / "num_groups.md"
    path.write_bytes(change(path.read_bytes()))
    code, lines = check(built, capsys)
    assert code == 1
    assert all(line.startswith("edited: tables/num_groups.md, line ") for line in lines[:-1])


def test_an_edited_manifest_is_named(built, capsys):
    path = built / "out" / "report.json"
    path.write_text(path.read_text().replace("45.8 \u00b1 0.6", "99.8 \u00b1 0.6"))
    assert check(built, capsys) == (1, ["edited: report.json", "1 problems"])
    path.write_text('{"files": []}')
    assert main([f"store={built / 'store'}", f"out={built / 'out'}", "check=true"]) == 2


def test_rows_of_one_label_are_told_apart():
    """By the label alone a change of the first would hide behind the second."""

    def table(*texts):
        rows = [{"row": "same", "digest": text, "cells": [text], "values": {}} for text in texts]
        return {"caption": "", "columns": ["top-1"], "rows": rows}

    assert list(_stale_rows("t", table("1", "2"), table("9", "2"))) == ["stale: table t, row same, top-1: 1 is now 9"]
    assert list(_stale_rows("t", table("1", "2"), table("1", "9"))) == [
        "stale: table t, row same (2), top-1: 2 is now 9"
    ]
    assert list(_stale_rows("t", table("1", "2"), table("1"))) == ["stale: table t, row same (2): no longer there"]


def test_a_figure_that_could_not_be_drawn_is_no_problem_of_the_report(built, capsys, monkeypatch):
    from reports import sheets
    from reports.figures import Drawing

    def gone():
        raise UsageError("the images are gone")

    sheet = Drawing("num_groups-neighbours", "Neighbours", "words", {"run": 1}, gone)
    monkeypatch.setattr(sheets, "drawings", lambda *_: ([sheet], []))
    for _ in range(2):  # and again: nothing tells when images come back
        assert main([f"store={built / 'store'}", f"out={built / 'out'}"]) == 0
        assert "not drawn: num_groups: Neighbours: the images are gone" in capsys.readouterr().out
        assert check(built, capsys)[0] == 0
    assert "Not drawn: Neighbours: the images are gone" in (built / "out" / "REPRODUCE.md").read_text()


def test_a_part_of_the_store_is_checked_as_it_was_built(built, capsys):
    made_grid(built / "store", grid="other", id="0" * 12)
    out = built / "part"
    assert main([f"store={built / 'store'}", f"out={out}", "grids=[other]", "venue=cvpr"]) == 0
    assert main([f"store={built / 'store'}", f"out={out}", "check=true"]) == 0


def test_two_outputs_of_one_name_are_refused(tmp_path, capsys):
    for name in ("one", "one-curves"):
        cells = [cell(tmp_path / "store", name, 1, {"knn": [50.0]}, baseline=True)]
        write_grid(tmp_path / "store", record(cells, name, tasks={"knn": TASKS["knn"]}))
    assert main([f"store={tmp_path / 'store'}", f"out={tmp_path / 'out'}"]) == 2
    assert "figures/one-curves" in capsys.readouterr().err
