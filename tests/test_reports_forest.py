"""Grids of many axes are drawn as paired differences, one line a cell."""

import pytest
from made_store import TASKS, cell, crossed_grid, record

from reports.forest import forest_figure, suits
from reports.tables import grid_table

AXES = {f"method.key_{number}": [0, 1] for number in range(6)}


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
    means = [line.get_xdata()[0] for line in ax.lines if line.get_markersize() == 4.5]
    assert means == pytest.approx([i + 0.5 / 3 for i in range(6)] + [30.333333 - 51.0])
    seeds = [list(line.get_xdata()) for line in ax.lines if line.get_markersize() == 2.6]
    assert seeds[0] == pytest.approx([0.0, 0.5, 0.0])
