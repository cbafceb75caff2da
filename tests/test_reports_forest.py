"""Grids of many axes are drawn as paired differences, one line a cell."""

import pytest
from made_store import TASKS, cell, crossed_grid, record
from matplotlib.collections import LineCollection
from scipy.stats import t

from reports.forest import forest_figure, forest_words, lines_of, suits
from reports.tables import grid_table
from smog.store import result_path

AXES = {f"method.key_{number}": [0, 1] for number in range(6)}


def marks(ax, size):
    """Where the marks of this size stand, by line."""
    found = {}
    for line in ax.lines:
        for x, y in zip(*line.get_data(), strict=True) if line.get_markersize() == size else ():
            found.setdefault(int(y), []).append(float(x))
    return {y: sorted(found[y]) for y in sorted(found)}


@pytest.fixture
def made(tmp_path):
    cells = [cell(tmp_path, "baseline", None, {"knn": [50.0, 51.0, 52.0]}, axis=None, baseline=True)]
    cells += [
        {**cell(tmp_path, f"{axis} on", 1, {"knn": [50.0 + i, 51.5 + i, 52.0 + i]}, axis=axis), "label": "1"}
        for i, axis in enumerate(AXES)
    ]
    cells.append(cell(tmp_path, "floor", None, {"knn": [30.0, 31.0, 30.0]}, axis=None, reference=True))
    baseline = dict.fromkeys(AXES, 0)
    return grid_table(tmp_path, grid := record(cells, axes=AXES, baseline=baseline, tasks={"knn": TASKS["knn"]})), grid


def test_few_axes_keep_their_panels(made):
    _, grid = made
    assert suits(grid)
    assert not suits({**grid, "axes": dict(list(AXES.items())[:4])})
    assert not suits({**grid, "cells": [one for one in grid["cells"] if not one["baseline"]]})


def test_many_named_cells_have_a_line_each_with_room_for_their_names(tmp_path):
    few = crossed_grid(tmp_path / "few", {"method.a": [1, 2], "b": [1, 2, 3]})
    many = crossed_grid(tmp_path / "many", {"method.a_long_name": [1, 2], "another_long_name": [1, 2, 3, 4]})
    assert [suits(few), suits(many)] == [False, True]
    figure = forest_figure(grid_table(tmp_path / "many", many))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "a_long_name 1, another_long_name 2"
    assert len(names) == 7
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width * figure.get_figwidth() > 2


def test_every_cell_and_reference_has_its_line_at_its_paired_difference(made):
    (ax,) = forest_figure(made[0]).axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [*(f"key {number}: 1" for number in range(6)), "floor"]
    means = [x for found in marks(ax, 4).values() for x in found]
    assert means == pytest.approx([i + 0.5 / 3 for i in range(6)] + [30.333333 - 51.0])
    assert marks(ax, 2.4)[0] == pytest.approx([0.0, 0.0, 0.5])
    [bars, _] = [one for one in ax.collections if isinstance(one, LineCollection)]
    ends = {segment[0, 1]: segment[:, 0] for segment in bars.get_segments()}
    half = t.ppf(0.975, 2) * 0.5 / 3  # the standard deviation of 0, 0.5 and 0 is 0.5 / √3
    assert ends[0] == pytest.approx([0.5 / 3 - half, 0.5 / 3 + half])


def test_of_very_many_cells_the_highest_and_the_lowest_are_drawn_and_the_words_say_so(tmp_path):
    made = crossed_grid(tmp_path, {"a": [*range(90)], "b": [*range(90)]}, "zip")
    table = grid_table(tmp_path, made)
    rows, left = lines_of(table)
    differences = {row.label: row.comparison.difference for row in table.rows if row.kind == "cell"}
    ranked = sorted(differences, key=differences.get, reverse=True)
    assert [row.label for row in rows] == [*ranked[:30], *ranked[-30:]]
    assert left == 29
    assert "60 of 89 cells" in forest_words(table)
    assert forest_figure(table).get_figheight() < 9


def test_a_long_axis_of_names_is_a_forest_too(made):
    _, grid = made
    few = {**grid, "axes": {"method.a": list(range(60))}}
    assert [suits(few), suits({**few, "axes": {"method.a": list(range(61))}})] == [False, True]


def test_a_cell_without_a_result_is_told(made, tmp_path):
    _, grid = made
    lost = next(one for one in grid["cells"] if one["axis"] == "method.key_2")
    for run in lost["runs"].values():
        result_path(tmp_path / run, "knn", TASKS["knn"]).unlink()
    (ax,) = forest_figure(grid_table(tmp_path, grid)).axes
    assert [text.get_position()[1] for text in ax.texts if text.get_text() == "missing"] == [2]
