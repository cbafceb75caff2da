"""Which figures a grid has, what they show of the metric, and the files that they become."""

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_logs import with_diagnostics, write_groups
from made_store import AXIS, TASKS, cell, crossed_grid, made_grid, named_cell, record, run_id
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from reports import plots
from reports.effects import effects_figure, effects_words, means_along
from reports.figures import drawings
from reports.metric import metric_figure, metric_words
from reports.tables import grid_table
from smog.errors import UsageError
from smog.store import write_json

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<b>$\\frac{1}{2}$</b> & \"'_\n\u202e\ud800 \U0001f600 " + "long " * 40


def drawn(store, made, **more):
    return drawings(store, made, grid_table(store, made), "name", **more)


def ticks(panel):
    return [label.get_text() for label in panel.get_xticklabels()]


def within(figure):
    """Whether every text of a figure lies on it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    room, renderer = figure.bbox, canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in [*figure.texts, *(t for ax in figure.axes for t in ax.texts)]]
    return all(room.x0 <= b.x0 and b.x1 <= room.x1 and room.y0 <= b.y0 and b.y1 <= room.y1 for b in boxes)


def lines(panel, marker):
    """Every place of the panel with this marker, as (x, y)."""
    found = [line for line in panel.get_lines() if line.get_marker() == marker]
    return sorted((float(x), float(y)) for line in found for x, y in zip(*line.get_data(), strict=True))


def test_a_drawing_is_there_where_the_store_has_what_it_shows(tmp_path):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    assert [one.name for one in drawings(tmp_path, made, table, "g")] == [
        "g", "g-curves", "g-groups-over-time", "g-cost",
    ]  # fmt: skip
    for run in {run for one in made["cells"] for run in one["runs"].values()}:
        (tmp_path / run / "metrics.jsonl").unlink(missing_ok=True)
    assert [one.name for one in drawings(tmp_path, made, table, "g")] == ["g", "g-cost"]
    made = with_diagnostics(tmp_path, made, {run_id(label, seed): 9.0 for label in ("30", "100") for seed in range(3)})
    assert [one.name for one in drawn(tmp_path, made)] == ["name", "name-cost", "name-rankme"]
    for run in {run for one in made["cells"] for run in one["runs"].values()}:
        (tmp_path / run / "done").unlink()
    assert [one.name for one in drawn(tmp_path, made)] == ["name", "name-rankme"]


@pytest.mark.parametrize(
    ("axes", "mode", "title"),
    [
        ({"method.a": [1, 2], "b": ["x", "y"]}, "factorial", "Both axes"),
        ({"method.a": [1, 2], "b": ["x", "y"], "c": [1, 2]}, "factorial", "Each axis over the others"),
        ({"method.a": list(range(8)), "b": list(range(8))}, "zip", "Differences to the baseline"),
        ({"method.a": [1, 2, 3], "b": [1, 2, 3]}, "zip", "Metric"),
    ],
)
def test_a_grid_is_drawn_as_its_axes_want_it(tmp_path, axes, mode, title):
    first, *_ = drawn(tmp_path, crossed_grid(tmp_path, axes, mode))
    assert first.title == title
    assert within(first.draw())


def test_inputs_are_plain_data_that_tell_every_number(tmp_path):
    made = made_grid(tmp_path)
    before = [json.dumps(one.inputs, allow_nan=False) for one in drawn(tmp_path, made)]
    assert before == [json.dumps(one.inputs, allow_nan=False) for one in drawn(tmp_path, made)]
    path = tmp_path / run_id("100", 1)
    log = (path / "metrics.jsonl").read_text().splitlines()
    log[7] = log[7].replace('"loss": ', '"loss": 1')
    (path / "metrics.jsonl").write_text("\n".join(log) + "\n")
    write_json(path / "done", {"seconds": 61.0, "device": "cpu"})
    after = [json.dumps(one.inputs, allow_nan=False) for one in drawn(tmp_path, made)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False, False]


def test_a_grid_that_has_not_begun_still_draws(tmp_path):
    pair = {"a": [1, 2], "b": [1, 2]}
    grids = [
        (pair, "one_factor"),
        (pair, "factorial"),
        ({**pair, "c": [1, 2]}, "factorial"),
        ({"a": [*range(9)]}, "zip"),
    ]
    for axes, mode in grids:
        made = made_grid(tmp_path) if mode == "one_factor" else crossed_grid(tmp_path, axes, mode, name="other")
        for one in made["cells"]:
            one["runs"] = {seed: run_id("nothing", one["label"], seed) for seed in one["runs"]}
        [drawing] = drawn(tmp_path, made)
        assert plots.save(drawing.draw(), "svg")


def test_numbers_that_are_none_are_missing(tmp_path):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    values = {0: 45.0, 1: math.nan, 2: math.inf}
    spoiled = [dataclasses.replace(one, values=values) for one in table.rows[3].measures]
    rows = [*table.rows[:3], dataclasses.replace(table.rows[3], measures=tuple(spoiled)), *table.rows[4:]]
    for drawing in drawings(tmp_path, made, dataclasses.replace(table, rows=tuple(rows)), "g"):
        assert b"nan" not in json.dumps(drawing.inputs, allow_nan=False).encode().lower()
        assert not re.search(rb'd="[^"]*(nan|inf)', plots.save(drawing.draw(), "svg"))


def test_points_of_the_metric_lie_where_the_store_says(tmp_path):
    made = made_grid(tmp_path)
    knn, linear = metric_figure(grid_table(tmp_path, made), made).axes
    seeds = {30: [40.3, 41.0, 39.9], 100: [44.7, 45.9, 44.1], 1000: [45.1, 46.9, 45.0]}
    expected = sorted((x, value) for x, values in seeds.items() for value in [*values, sum(values) / 3])
    assert [list(place) for place in lines(knn, "o")] == [pytest.approx(place) for place in expected]
    assert lines(knn, "D") == [(300, 45.2), (300, pytest.approx(45.8333333)), (300, 45.9), (300, 46.4)]
    assert len(lines(linear, "o")) == 12
    dashed = sorted(line.get_ydata()[0] for line in knn.get_lines() if line.get_linestyle() == "--")
    assert dashed == pytest.approx([(31.1 + 30.2 + 31.9) / 3, 38.4])


def test_every_seed_lies_within_its_panel(tmp_path):
    cells = [cell(tmp_path, "a", 1, {"knn": [50.0]}, baseline=True), cell(tmp_path, "b", 90, {"knn": [70.0]})]
    made = record(cells, tasks={"knn": TASKS["knn"]})
    (panel,) = metric_figure(grid_table(tmp_path, made), made).axes
    assert panel.get_ylim()[0] < 50 < 70 < panel.get_ylim()[1]
    assert panel.get_xlim()[0] < 1 < 90 < panel.get_xlim()[1]


@pytest.mark.parametrize(
    ("values", "scale"), [([30, 1000], "log"), ([30, 300], "linear"), (["a", "b"], "linear"), ([0, 100], "linear")]
)
def test_only_wide_numbers_stand_on_a_log_axis(tmp_path, values, scale):
    cells = [cell(tmp_path, str(value), value, {"knn": [50.0, 51.0]}, baseline=value == values[0]) for value in values]
    made = record(cells, tasks={"knn": TASKS["knn"]}, baseline={AXIS: values[0]})
    (panel,) = metric_figure(grid_table(tmp_path, made), made).axes
    assert panel.get_xscale() == scale
    assert ticks(panel) == [str(value) for value in values]


def test_cells_beside_an_axis_get_a_panel_of_their_own_with_the_baseline(tmp_path):
    made = made_grid(tmp_path)
    made["cells"].append(named_cell(tmp_path, {AXIS: 30, "optim.lr": 2}))
    axis, beside, *_ = metric_figure(grid_table(tmp_path, made), made).axes
    assert ticks(axis) == ["30", "100", "300", "1000"]
    assert ticks(beside) == ["num_groups 300", "num_groups 30,\nlr 2"]


def test_words_of_the_metric_say_what_is_there(tmp_path):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    assert {"interval", "diamond", "dashed"} <= set(metric_words(table, made).replace(";", "").split())
    assert "hollow" not in metric_words(table, made)
    cells = [cell(tmp_path, "a", 1, {"knn": [50.0]}, baseline=True), cell(tmp_path, "b", 90, {"knn": [70.0]})]
    alone = record(cells, tasks={"knn": TASKS["knn"]})
    words = metric_words(grid_table(tmp_path, alone), alone)
    assert not any(word in words for word in ("interval", "mean", "dashed"))


def test_each_axis_has_the_mean_over_the_others(tmp_path):
    made = crossed_grid(tmp_path, {"method.a": [1, 2], "b": ["x", "y"], "c": [1, 2, 3]})
    table = grid_table(tmp_path, made)
    figure = effects_figure(table, made)
    assert [ticks(panel) for panel in figure.axes] == [["1", "2"], ["x", "y"], ["1", "2", "3"]]
    means = {tuple(row.point.values()): row.measures[0].summary.mean for row in table.rows}
    over = next(line.get_ydata() for line in figure.axes[2].get_lines() if line.get_linestyle() == "-")
    assert list(over) == pytest.approx([sum(means[a, b, c] for a in (1, 2) for b in "xy") / 4 for c in (1, 2, 3)])
    assert [len(own) for own in means_along(made, list(table.rows), 0, "c")] == [4, 4, 4]
    assert "left out" not in effects_words(table, made)


def test_hostile_names_are_text_and_nothing_more(tmp_path):
    names = [HOSTILE + str(place) for place in range(3)]
    cells = [cell(tmp_path, name, name, {"knn": [50.0, 51.0]}, baseline=name == names[0]) for name in names]
    cells.append(cell(tmp_path, "_" + HOSTILE, None, {"knn": [30.0, 31.0]}, axis=None, reference=True))
    made = record(cells, tasks={"knn": TASKS["knn"]}, baseline={AXIS: HOSTILE + "0"})
    for one in made["cells"]:
        for run in one["runs"].values():
            write_groups(tmp_path, run, 30)
    for drawing in drawn(tmp_path, made):
        figure = drawing.draw()
        assert within(figure)
        svg = plots.save(figure, "svg", HOSTILE.encode("ascii", "replace").decode()).decode()
        assert "<b>" not in re.sub(r"<!--.*?-->", "", svg, flags=re.S)
        assert all(plots.save(figure, kind) for kind in ("pdf", "png"))


CHILD = """
import hashlib, json, sys
from pathlib import Path
from reports import plots
from reports.figures import drawings
from reports.tables import grid_table
from smog.store import grids
[made] = grids(Path(sys.argv[1]))
table = grid_table(sys.argv[1], made)
for one in drawings(Path(sys.argv[1]), made, table, "g"):
    figure = one.draw()
    found = [hashlib.sha256(plots.save(figure, kind, "kept")).hexdigest() for kind in ("pdf", "svg", "png")]
    print(one.name, one.words, json.dumps(one.inputs), *found)
"""


def test_files_are_the_same_in_every_process(tmp_path):
    made = made_grid(tmp_path)
    for run in {run for one in made["cells"][2:] for run in one["runs"].values()}:
        write_groups(tmp_path, run, 30)
    found = [
        subprocess.run([sys.executable, "-W", "error", "-c", CHILD, str(tmp_path)], cwd=ROOT, text=True, check=True,
                       capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert found[0].count("\n") == 4


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    made = made_grid(store)
    return metric_figure(grid_table(store, made), made)


def test_keywords_stand_in_each_file(figure):
    pdf, svg, png = (plots.save(figure, kind, "digest 0123abc") for kind in ("pdf", "svg", "png"))
    assert b"/Keywords (digest 0123abc)" in pdf
    assert b"<rdf:li>digest 0123abc</rdf:li>" in svg
    assert Image.open(io.BytesIO(png)).text == {"Keywords": "digest 0123abc"}
    assert b"Keywords" not in plots.save(figure, "pdf")


def test_fonts_are_embedded_as_type_42(figure):
    pdf = plots.save(figure, "pdf")
    assert b"/FontFile2" in pdf
    assert b"/Subtype /Type3" not in pdf


def test_an_svg_is_small_and_has_the_colours_that_the_page_replaces(figure):
    svg = plots.save(figure, "svg").decode()
    assert len(svg) < 60_000
    assert all(colour in svg for colour in (plots.INK, plots.PAPER, plots.BLUE))
    assert not re.search(r' d="[^"]*\.\d{3}', svg)


@pytest.mark.parametrize(
    ("name", "text", "column", "size"), [("eccv", 4.8, 4.8, 8), ("cvpr", 6.875, 3.25, 8), ("neurips", 5.5, 5.5, 9)]
)
def test_a_venue_sets_widths_and_fonts_within_its_context(tmp_path, name, text, column, size):
    made = made_grid(tmp_path)
    table = grid_table(tmp_path, made)
    with plots.venue(name) as venue:
        figure = metric_figure(table, made)
        label = next(text for text in figure.axes[0].texts if text.get_text() == "k-NN top-1 (%)")
        assert (venue.text, venue.column, label.get_fontsize()) == (text, column, size)
        assert figure.get_figwidth() == text
        assert within(figure)
    assert metric_figure(table, made).get_figwidth() == 4.8


def test_an_unknown_venue_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="nearest: neurips"):
        plots.venue("nips")


def test_a_grid_of_its_baseline_alone_has_no_figure_of_its_numbers(tmp_path):
    made = crossed_grid(tmp_path, {"method.num_groups": [10]})
    names = [one.name for one in drawings(tmp_path, made, grid_table(tmp_path, made), "one")]
    assert "one" not in names
