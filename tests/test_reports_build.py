import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_store import AXIS, TASKS, cell, crossed_grid, made_grid, named_cell, record, run_id

from reports.build import chosen, duration, main, parse
from reports.plots import curves_figure, metric_figure, read_curves
from reports.tables import grid_table
from smog.store import result_path, write_grid

SCRIPT = Path(__file__).resolve().parent.parent / "reports" / "build.py"
KINDS = {"tables": ["csv", "html", "md", "tex"], "figures": ["pdf", "png", "svg"]}


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    expected = {f"tables/num_groups.{kind}" for kind in KINDS["tables"]} | {"index.html"}
    expected |= {f"figures/num_groups{part}.{kind}" for part in ("", "-curves") for kind in KINDS["figures"]}
    assert code == 0
    assert set(files_of(out)) == expected


def test_building_again_gives_the_same_bytes_and_json_names_them(built, tmp_path, capsys):
    store, out, _ = built
    assert build(store, tmp_path / "again", "--json") == 0
    assert files_of(tmp_path / "again") == files_of(out)
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"tables", "figures", "page", "missing"}
    assert document["missing"] == 0
    named = {str(Path(path).relative_to(tmp_path / "again")) for path in document["tables"] + document["figures"]}
    assert named | {"index.html"} == set(files_of(out))


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
        (["store=nowhere"], "no grids in the store nowhere"),
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


def test_a_missing_result_is_counted_and_exits_1(tmp_path, capsys):
    small_grid(tmp_path / "store", "one")
    result_path(tmp_path / "store" / run_id("a", 1), "knn", TASKS["knn"]).unlink()
    assert build(tmp_path / "store", tmp_path / "out", "format=json") == 1
    assert json.loads(capsys.readouterr().out)["missing"] == 1
    assert "(1/2)" in (tmp_path / "out" / "index.html").read_text()


def test_grids_are_chosen_and_names_that_are_shared_carry_the_id(tmp_path):
    for number in ("1" * 12, "2" * 12):
        small_grid(tmp_path / "store", "twice", id=number)
    small_grid(tmp_path / "store", "once")
    names = [
        [name for name, _ in chosen(parse([f"store={tmp_path / 'store'}", *more]))] for more in ([], ["grids=[twice]"])
    ]
    assert names == [["once", "twice-111111111111", "twice-222222222222"], ["twice-111111111111", "twice-222222222222"]]


def test_a_store_cannot_name_a_file_elsewhere(tmp_path, capsys):
    small_grid(tmp_path / "store", "fine")
    path = next((tmp_path / "store" / "grids").glob("*.json"))
    path.write_text(path.read_text().replace('"fine"', '"../../fine"'))
    assert build(tmp_path / "store", tmp_path / "out") == 2
    assert "unusable name" in capsys.readouterr().err


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
            if name in ("src", "href") and (value.startswith(("http", "//")) or tag in ("script", "link")):
                self.outside.append(value)


def test_the_page_is_self_contained_and_escapes(tmp_path):
    small_grid(tmp_path / "store", "one", title="<script>alert(1)</script>", command="python 'a&b' <img src=x>")
    small_grid(tmp_path / "store", "two")
    assert build(tmp_path / "store", tmp_path / "out") == 0
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert f"4 runs,\n{duration(4 * 62)} of" in text  # both grids have the same four
    assert not {"script", "img", "link", "b"} & set(page.tags)
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4
    assert page.tags.count("caption") == page.tags.count("table") == 4


def test_a_grid_that_has_not_begun_still_draws(tmp_path):
    cells = [
        {"label": label, "axis": AXIS, "value": value, "baseline": value == 30, "reference": False,
         "group_id": "0" * 12, "runs": {"0": run_id(label), "1": run_id(label, 1)}}
        for label, value in (("30", 30), ("1000", 1000))
    ]  # fmt: skip
    write_grid(tmp_path / "store", record(cells))
    assert build(tmp_path / "store", tmp_path / "out") == 1
    assert not (tmp_path / "out" / "figures" / "num_groups-curves.svg").exists()


def test_duration():
    assert [duration(seconds) for seconds in (3.4, 59.6, 200, 7500)] == ["3 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_every_seed_lies_within_its_panel(tmp_path):
    cells = [cell(tmp_path, "a", 1, {"knn": [50.0]}, baseline=True), cell(tmp_path, "b", 90, {"knn": [70.0]})]
    made = record(cells, tasks={"knn": TASKS["knn"]})
    (panel,) = metric_figure(grid_table(tmp_path, made), made).axes
    assert panel.get_ylim()[0] < 50 < 70 < panel.get_ylim()[1]
    assert panel.get_xlim()[0] < 1 < 90 < panel.get_xlim()[1]


def test_the_key_lies_within_the_figure(tmp_path):
    cells = [cell(tmp_path, name, name, {"knn": [50.0, 51.0]}, baseline=name == "a") for name in ("a", "b")]
    made = record(cells, tasks={"knn": TASKS["knn"]}, baseline={AXIS: "a"})
    figure = metric_figure(grid_table(tmp_path, made), made)
    figure.draw_without_rendering()
    [key], room = [legend.get_window_extent() for legend in figure.legends], figure.bbox
    assert room.x0 <= key.x0 < key.x1 <= room.x1
    assert room.y0 <= key.y0 < key.y1 <= room.y1


@pytest.mark.parametrize(
    ("values", "scale"), [([30, 1000], "log"), ([30, 300], "linear"), (["a", "b"], "linear"), ([0, 100], "linear")]
)
def test_only_wide_numbers_stand_on_a_log_axis(tmp_path, values, scale):
    cells = [cell(tmp_path, str(value), value, {"knn": [50.0, 51.0]}, baseline=value == values[0]) for value in values]
    made = record(cells, tasks={"knn": TASKS["knn"]}, baseline={AXIS: values[0]})
    (panel,) = metric_figure(grid_table(tmp_path, made), made).axes
    assert panel.get_xscale() == scale
    assert [label.get_text() for label in panel.get_xticklabels()] == [str(value) for value in values]


def ticks(panel):
    return [label.get_text() for label in panel.get_xticklabels()]


def test_cells_of_several_axes_stand_by_their_labels(tmp_path):
    made = crossed_grid(tmp_path, {"method.a": [1, 2], "b": ["x", "y"]})
    (panel,) = metric_figure(grid_table(tmp_path, made), made).axes
    assert ticks(panel) == ["a 1,\nb x", "a 1,\nb y", "a 2,\nb x", "a 2,\nb y"]
    assert panel.get_xlabel() == "cell"


def test_cells_beside_an_axis_get_a_panel_of_their_own_with_the_baseline(tmp_path):
    made = made_grid(tmp_path)
    made["cells"].append(named_cell(tmp_path, {AXIS: 30, "optim.lr": 2}))
    axis, beside, *_ = metric_figure(grid_table(tmp_path, made), made).axes
    assert ticks(axis) == ["30", "100", "300", "1000"]
    assert ticks(beside) == ["num_groups 300", "num_groups 30,\nlr 2"]


def test_a_crossed_grid_of_many_cells_is_drawn_whole(tmp_path):
    axes = {"method.number": [1, 2, 3], "temperature": [1, 2, 3], "optim.lr": [1, 2]}
    made = crossed_grid(tmp_path / "store", axes)
    assert build(tmp_path / "store", tmp_path / "out") == 0  # with warnings as errors: the panels keep their room
    assert len(read_curves(tmp_path / "store", made)) == 18
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("number 3, temperature 3, lr 2") >= 2


def test_curves_average_the_seeds_at_common_epochs(tmp_path):
    made = made_grid(tmp_path)
    run = tmp_path / run_id("30", 2) / "metrics.jsonl"
    run.write_text("".join(run.read_text().splitlines(keepends=True)[:30]))  # cut short
    curves = read_curves(tmp_path, made)
    assert set(curves) == {"30", "100", "300", "1000"}  # the references have no steps
    panel = curves_figure(curves).axes[0]
    line = next(line for line in panel.get_lines() if line.get_label() == "30")
    losses = [seed[3.0]["loss"] for seed in curves["30"]]
    assert line.get_xdata()[-1] == 3.0
    assert line.get_ydata()[-1] == pytest.approx(sum(losses) / 3)
