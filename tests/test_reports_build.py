import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_store import AXIS, TASKS, cell, crossed_grid, made_grid, record, run_id

from reports import output
from reports.build import main
from reports.collect import chosen
from smog.attempts import attempt
from smog.store import result_path, write_grid

SCRIPT = Path(__file__).resolve().parent.parent / "reports" / "build.py"
KINDS = {"tables": ["csv", "html", "md", "tex"], "figures": ["pdf", "png", "svg"]}
FIGURES = ("", "-curves", "-groups-over-time")
TEXTS = {"REPRODUCE.md", "model-index.yaml", "report.json", "index.html"}
STAMP = ".stamp"


def files_of(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if path != STAMP}  # it holds times of this machine


def build(store, out, *more):
    return main([f"store={store}", f"out={out}", *more])


def small_grid(store, name, **more):
    cells = [
        cell(store, "a", 1, {"knn": [50.0, 51.0]}, baseline=True),
        cell(store, "b", "long <b>text</b> with $\\frac$ in it", {"knn": [51.0, 52.5]}),
    ]
    made = record(cells, name, **{"tasks": {"knn": TASKS["knn"]}} | more)
    write_grid(store, made)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    made_grid(folder / "store")
    return folder / "store", folder / "out", build(folder / "store", folder / "out")


def test_all_outputs_are_written(built):
    _, out, code = built
    names = ("knn-made", "linear-made", "num_groups")
    expected = {f"tables/{name}.{kind}" for kind in KINDS["tables"] for name in names} | TEXTS
    expected |= {f"figures/num_groups{part}.{kind}" for part in FIGURES for kind in KINDS["figures"]}
    assert code == 0
    assert expected <= set(files_of(out))
    assert {path.partition("/")[0] for path in files_of(out)} == {"tables", "figures", *TEXTS}


def test_another_process_gives_the_same_bytes(built, tmp_path):
    store, out, _ = built
    command = [sys.executable, str(SCRIPT), f"store={store}", f"out={tmp_path / 'again'}"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert files_of(tmp_path / "again") == files_of(out)


def test_json_names_the_files_and_what_is_missing(built, tmp_path, capsys):
    store, _, _ = built
    assert build(store, tmp_path / "again", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"tables", "figures", "page", "missing", "notes", "changed"}
    assert document["missing"] == 0
    named = {str(Path(path).relative_to(tmp_path / "again")) for path in document["tables"] + document["figures"]}
    assert named | TEXTS == set(files_of(tmp_path / "again"))


def test_every_output_carries_the_digest_of_its_rows(built):
    _, out, _ = built
    known = json.loads((out / "report.json").read_text())
    for path, entry in known["files"].items():
        if path.endswith((".md", ".tex", ".html", ".svg", ".png", ".pdf", ".yaml")):
            digests = [entry["rows"]] if "/" in path else [table["digest"] for table in known["tables"].values()]
            content = (out / path).read_bytes()
            assert all(one.encode() in content for one in digests), path
    csv = (out / "tables/num_groups.csv").read_text()
    assert all(row["digest"] in csv for row in known["tables"]["num_groups"]["rows"])


def test_what_has_not_changed_is_not_made_again(built, capsys):
    store, out, _ = built
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert build(store, out) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_two_processes_draw_the_bytes_that_one_draws(tmp_path, monkeypatch):
    """Each has its own hold on the fonts: with a shared one letters are missing in some figures."""
    for name in ("one", "two", "three", "four"):
        small_grid(tmp_path / "store", name)
    assert build(tmp_path / "store", tmp_path / "forked") == 0
    monkeypatch.setattr(output, "FEW", 1000)
    assert build(tmp_path / "store", tmp_path / "alone") == 0
    assert files_of(tmp_path / "forked") == files_of(tmp_path / "alone")


def test_only_what_a_new_value_touches_is_made_again(tmp_path, capsys):
    store, out = tmp_path / "store", tmp_path / "out"
    made_grid(store)
    build(store, out)
    before = files_of(out)
    path = result_path(store / run_id("30", 1), "linear", TASKS["linear"])
    content = json.loads(path.read_text())
    content["metrics"]["top1"] = 49.9
    path.write_text(json.dumps(content))
    assert build(store, out) == 0
    after = files_of(out)
    changed = {path for path in after if after[path] != before[path]}
    assert {"tables/num_groups.md", "figures/num_groups.png", "index.html", "report.json"} <= changed
    assert not changed & {"tables/knn-made.md", "figures/num_groups-curves.svg"}


@pytest.mark.parametrize("change", ["out", "edit", "request"])
def test_a_change_of_the_outputs_or_the_request_is_no_rest(built, tmp_path, capsys, change):
    store = built[0]
    out = tmp_path / "out"
    build(store, out)
    first = files_of(out)
    if change == "out":
        (out / "figures" / "num_groups.pdf").unlink()
    elif change == "edit":
        (out / "tables" / "num_groups.md").write_text("edited")
    capsys.readouterr()
    assert build(store, out, *(["venue=cvpr"] if change == "request" else [])) == 0
    assert "nothing has changed" not in capsys.readouterr().out
    assert (files_of(out) == first) is (change != "request")


def test_the_script_runs_from_anywhere_and_names_the_page_last(tmp_path):
    small_grid(tmp_path / "runs", "one")
    command = [sys.executable, "-W", "error", str(SCRIPT), "out=there"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "there/index.html"
    assert (tmp_path / "there" / "index.html").is_file()


def test_an_unknown_grid_exits_2_and_writes_nothing(built, tmp_path):
    command = [sys.executable, str(SCRIPT), f"store={built[0]}", "out=there", "grids=[num_group]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nearest: num_groups" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stor=x"], "nearest: store"),
        (["--jsno"], "known: "),
        (["store"], "store needs a value"),
        (["format=yaml"], "known: json"),
        (["store=nowhere"], "no results in the store nowhere"),
        (["draft=yes"], "true or false"),
        (["venue=eccv2"], "nearest: eccv"),
    ],
)
def test_wrong_use_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(built, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert build(built[0], tmp_path / "file") == 2
    assert "cannot write" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys; from reports.build import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent.parent, capture_output=True, text=True)
    assert "usage: python reports/build.py" in done.stdout
    assert not any(f"'{name}'" in done.stdout for name in ("pandas", "matplotlib", "scipy", "numpy", "torch", "jinja2"))


@pytest.fixture
def lacking(tmp_path):
    small_grid(tmp_path / "store", "one")
    result_path(tmp_path / "store" / run_id("a", 1), "knn", TASKS["knn"]).unlink()
    return tmp_path / "store"


def test_a_missing_result_is_an_error_that_says_how_it_stands(lacking, tmp_path, capsys):
    with pytest.raises(RuntimeError), attempt(lacking / run_id("a", 1), f"knn@{TASKS['knn']}"):
        raise RuntimeError("the images\nare gone")
    assert build(lacking, tmp_path / "out") == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith(f"missing: one, a, seed 1, knn (run {run_id('a', 1)}): failed, knn@")
    assert "RuntimeError" in printed[0]
    assert "the images are gone" in printed[0]
    assert "draft=true" in printed[-1]
    assert not (tmp_path / "out").exists()


def test_a_draft_says_so_everywhere(lacking, tmp_path, capsys):
    out = tmp_path / "out"
    assert build(lacking, out, "draft=true", "format=json") == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 1
    for name in ("tables/one.md", "tables/one.html", "index.html"):
        assert "(1/2)" in (out / name).read_text(), name
    for name in ("tables/one.md", "tables/one.tex", "tables/one.html", "index.html", "REPRODUCE.md"):
        assert "DRAFT" in (out / name).read_text(), name
    small_grid(tmp_path / "whole", "one")
    build(tmp_path / "whole", tmp_path / "other")
    assert not any(b"DRAFT" in content for path, content in files_of(tmp_path / "other").items() if "tables" in path)
    figure = "figures/one.png"
    assert (out / figure).read_bytes() != (tmp_path / "other" / figure).read_bytes()


def test_a_grid_that_has_not_begun_still_draws(tmp_path, capsys):
    cells = [
        {"label": label, "axis": AXIS, "value": value, "baseline": value == 30, "reference": False,
         "group_id": run_id(label), "runs": {"0": run_id(label), "1": run_id(label, 1)}}
        for label, value in (("30", 30), ("1000", 1000))
    ]  # fmt: skip
    write_grid(tmp_path / "store", record(cells))
    assert build(tmp_path / "store", tmp_path / "out") == 1
    assert "waiting, never started" in capsys.readouterr().err
    assert build(tmp_path / "store", tmp_path / "out", "draft=true") == 0
    assert not (tmp_path / "out" / "figures" / "num_groups-curves.svg").exists()


def test_grids_are_chosen_and_names_that_are_shared_carry_the_id(tmp_path):
    for number in ("1" * 12, "2" * 12):
        small_grid(tmp_path / "store", "twice", id=number)
    small_grid(tmp_path / "store", "once")
    names = [list(chosen(tmp_path / "store", more)) for more in ((), ("twice",))]
    assert names == [["once", "twice-111111111111", "twice-222222222222"], ["twice-111111111111", "twice-222222222222"]]


def test_a_store_cannot_name_a_file_elsewhere(tmp_path, capsys):
    small_grid(tmp_path / "store", "fine")
    path = next((tmp_path / "store" / "grids").glob("*.json"))
    path.write_text(path.read_text().replace('"fine"', '"../../fine"'))
    assert build(tmp_path / "store", tmp_path / "out") == 2
    assert "unusable name" in capsys.readouterr().err


def test_a_manifest_cannot_make_the_build_remove_a_file_elsewhere(built, tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "out").mkdir()
    listed = {"files": {"../mine": {}, str(tmp_path / "mine"): {}}}
    (tmp_path / "out" / "report.json").write_text(json.dumps(listed))
    assert build(built[0], tmp_path / "out") == 0
    assert (tmp_path / "mine").exists()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href") and (value.startswith(("http", "//")) or tag == "link"):
                self.outside.append(value)


def test_the_page_is_self_contained_and_escapes(tmp_path):
    small_grid(tmp_path / "store", "one", title="<script>alert(1)</script>", command="python 'a&b' <img src=x>")
    small_grid(tmp_path / "store", "two")
    assert build(tmp_path / "store", tmp_path / "out") == 0
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 2  # the page's own, and its data
    assert not {"img", "link", "b"} & set(page.tags)
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))


def test_a_crossed_grid_of_many_cells_is_drawn_whole(tmp_path):
    axes = {"method.number": [1, 2, 3], "temperature": [1, 2, 3], "optim.lr": [1, 2]}
    crossed_grid(tmp_path / "store", axes)
    assert build(tmp_path / "store", tmp_path / "out") == 0
    assert (tmp_path / "out" / "index.html").read_text().count("number 3, temperature 3, lr 2") >= 2
