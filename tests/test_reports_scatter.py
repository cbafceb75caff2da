"""Accuracy over cost, RankMe against accuracy, and heat maps: every mark where the store says."""

import pytest
from made_logs import with_diagnostics, write_seconds
from made_store import crossed_grid, made_grid, named_cell, run_id
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle
from scipy.stats import spearmanr

from reports import plots
from reports.heat import heat_figure, heat_words, suits
from reports.scatter import Cloud, Spot, cost_cloud, front, rankme_cloud, scatter_figure, scatter_words
from reports.tables import grid_table
from smog.store import result_path

SECONDS = {"30": 10.0, "100": 20.0, "300": 30.0, "1000": 15.0}


@pytest.fixture
def made(tmp_path):
    made = made_grid(tmp_path)
    for label, seconds in SECONDS.items():
        for seed in range(3):
            write_seconds(tmp_path, run_id(label, seed), seconds + seed)
    return made


def places(panel, marker, size):
    found = [line for line in panel.get_lines() if line.get_marker() == marker and line.get_markersize() == size]
    return sorted((float(x), float(y)) for line in found for x, y in zip(*line.get_data(), strict=True))


def test_cost_is_the_seconds_of_training_of_each_run(tmp_path, made):
    cloud = cost_cloud(tmp_path, grid_table(tmp_path, made))
    assert {spot.label: spot.mean[0] for spot in cloud.spots} == {label: s + 1 for label, s in SECONDS.items()}
    panel = scatter_figure(cloud).axes[0]
    assert (10.0, 40.3) in places(panel, "o", 2.4)
    assert places(panel, "D", 4.5) == [(31.0, pytest.approx(45.8333333))]
    assert cloud.notes == ("Seconds of Some CPU, 2 threads a process",)


def test_seconds_of_other_machines_are_left_out_and_said(tmp_path, made):
    write_seconds(tmp_path, run_id("100", 0), 1.0, threads=8)
    write_seconds(tmp_path, run_id("30", 1), 1.0, packed=4)
    cloud = cost_cloud(tmp_path, grid_table(tmp_path, made))
    assert min(x for spot in cloud.spots for x, _ in spot.seeds.values()) == 10.0
    assert "2 of 12 runs were trained otherwise and are left out" in scatter_words(cloud)


def test_one_finished_cell_makes_no_figure_of_cost(tmp_path, made):
    for label in ("30", "100", "1000"):
        for seed in range(3):
            (tmp_path / run_id(label, seed) / "done").unlink()
    assert cost_cloud(tmp_path, grid_table(tmp_path, made)) is None


def test_the_front_holds_what_nothing_cheaper_beats():
    cells = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 7.0), "d": (3.0, 8.0), "e": (9.0, 8.0)}
    spots = [Spot(name, "cell", {name: place}) for name, place in cells.items()]
    assert [spot.label for spot in front(spots)] == ["a", "d"]
    panel = scatter_figure(Cloud(tuple(spots), "x", "y", front=True)).axes[0]
    corners = next(line for line in panel.get_lines() if line.get_linestyle() == "-")
    assert list(zip(*corners.get_data(), strict=True)) == [(1.0, 5.0), (3.0, 5.0), (3.0, 8.0)]


def test_names_of_crowded_cells_do_not_touch():
    spots = tuple(Spot(f"a long name {i}", "cell", {str(i): (1 + i % 4 / 50, i / 9)}) for i in range(14))
    figure = scatter_figure(Cloud(spots, "x", "y"))
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in figure.axes[0].texts if note.get_text().startswith("a long name")]
    assert len(boxes) > 3
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_rankme_stands_against_linear_accuracy_with_its_rank_correlation(tmp_path, made):
    ranks = {"30": 5.0, "100": 9.0, "300": 7.0, "1000": 11.0}
    runs = {run_id(label, seed): rank + seed for label, rank in ranks.items() for seed in range(3)}
    made = with_diagnostics(tmp_path, made, runs | {run_id("untrained", 0): 2.0})
    cloud = rankme_cloud(tmp_path, made, grid_table(tmp_path, made))
    assert (cloud.x, cloud.y) == ("RankMe", "linear top-1 (%)")
    assert [spot.label for spot in cloud.spots] == ["30", "100", "300", "1000"]  # no references: other networks
    assert cloud.spots[0].seeds[run_id("30", 0)] == (5.0, 47.9)
    linear = {"30": 47.933, "100": 51.467, "300": 51.867, "1000": 52.667}
    rho = spearmanr([ranks[label] for label in ranks], [linear[label] for label in ranks]).statistic
    assert f"over the n = 4 cells (without references): {rho:.2f}." in scatter_words(cloud)


def test_rankme_needs_two_cells(tmp_path, made):
    table = grid_table(tmp_path, made)
    assert rankme_cloud(tmp_path, made, table) is None
    made = with_diagnostics(tmp_path, made, {run_id("30", 0): 5.0})
    assert rankme_cloud(tmp_path, made, grid_table(tmp_path, made)) is None


AXES = {"method.a": [10, 2, 300], "b": ["x", "y"]}


def test_a_heat_map_has_each_mean_where_its_values_meet(tmp_path):
    made = crossed_grid(tmp_path, AXES)
    table = grid_table(tmp_path, made)
    (panel,) = heat_figure(table, made).axes
    written = {text.get_position(): text.get_text() for text in panel.texts}
    for y, a in enumerate(AXES["method.a"]):
        for x, b in enumerate(AXES["b"]):
            [row] = [row for row in table.rows if row.point == {"method.a": a, "b": b}]
            assert written[x, y - 0.14] == f"{row.measures[0].summary.mean:.1f}"
            assert written[x, y + 0.26] == f"±{row.measures[0].summary.sd:.1f}"
    [frame] = [patch for patch in panel.patches if isinstance(patch, Rectangle) and patch.get_edgecolor()[0] > 0.8]
    assert (round(frame.get_x()), round(frame.get_y())) == (0, 0)
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["10", "2", "300"]


def test_missing_cells_are_hatched_and_cells_beside_the_axes_are_told(tmp_path):
    beside = named_cell(tmp_path, {"method.a": 10, "b": "x", "optim.lr": 2})
    made = crossed_grid(tmp_path, AXES, included=[beside])
    table = grid_table(tmp_path, made)
    assert "hatched" not in heat_words(table, made)
    assert "1 row beside the two axes" in heat_words(table, made)
    lost = next(one for one in made["cells"] if one["point"] == {"method.a": 2, "b": "y"})
    for run in lost["runs"].values():
        result_path(tmp_path / run, "knn", made["tasks"]["knn"]).unlink()
    table = grid_table(tmp_path, made)
    (panel,) = heat_figure(table, made).axes
    [hatched] = [one for one in panel.collections if isinstance(one, PolyCollection) and one.get_hatch()]
    assert hatched.get_paths()[0].vertices.mean(axis=0).round() == pytest.approx([1, 1])
    assert [text.get_text() for text in panel.texts if text.get_position() == (1, 1)] == ["--"]
    assert "hatched" in heat_words(table, made)


def test_a_large_heat_map_has_colours_alone_and_says_so(tmp_path):
    made = crossed_grid(tmp_path, {"a": list(range(3)), "b": list(range(30))})
    table = grid_table(tmp_path, made)
    figure = heat_figure(table, made)
    assert not any("±" in text.get_text() for text in figure.axes[0].texts)
    assert "the numbers are in the table" in heat_words(table, made)
    assert len(plots.save(figure, "svg")) < 100_000
    assert not suits({**made, "axes": {"a": list(range(3)), "b": list(range(300))}})


def test_brightness_follows_the_mean_in_grey_too(tmp_path):
    made = crossed_grid(tmp_path, AXES)
    table = grid_table(tmp_path, made)
    (panel,) = heat_figure(table, made).axes
    squares = panel.collections[0]
    middles = [tuple(path.vertices[:4].mean(axis=0)) for path in squares.get_paths()]
    grey = dict(zip(middles, squares.get_facecolors()[:, :3] @ [0.299, 0.587, 0.114], strict=True))
    means = {}
    for row in table.rows:
        first, second = row.point.values()
        means[AXES["b"].index(second), AXES["method.a"].index(first)] = row.measures[0].summary.mean
    assert sorted(grey, key=grey.get) == sorted(means, key=means.get)
