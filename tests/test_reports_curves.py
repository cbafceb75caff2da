"""Training curves and groups over time: what is read of the logs, and what is drawn of it."""

import json

import numpy as np
import pytest
from made_logs import write_groups
from made_store import TASKS, cell, crossed_grid, made_grid, record, run_id

from reports import plots
from reports.curves import OF_GROUPS, curves_panels, curves_words, figure_of, groups_panels, looks
from reports.logs import POINTS, Reader, points_of, read_logs, stride_of
from reports.tables import grid_table
from smog.errors import UsageError


def courses_of(store, made):
    return read_logs(store, grid_table(store, made))


def panel_of(figure, title):
    return next(ax for ax in figure.axes if ax.get_title("left") == title)


def solid(panel):
    return [line for line in panel.get_lines() if line.get_linestyle() == "-"]


def two_cells(store, lines=30):
    cells = [cell(store, str(k), k, {"knn": [50.0, 51.0]}, baseline=k == 30) for k in (30, 100)]
    made = record(cells, tasks={"knn": TASKS["knn"]}, baseline={})
    for one in made["cells"]:
        for run in one["runs"].values():
            write_groups(store, run, one["value"], lines=lines)
    return made


def test_curves_average_the_seeds_at_common_epochs(tmp_path):
    made = made_grid(tmp_path)
    run = tmp_path / run_id("30", 2) / "metrics.jsonl"
    run.write_text("".join(run.read_text().splitlines(keepends=True)[:30]))  # cut short
    courses = courses_of(tmp_path, made)
    assert [course.label for course in courses] == ["30", "100", "300", "1000"]  # the references have no steps
    line = solid(figure_of(courses, curves_panels(courses)).axes[0])[0]
    losses = [next(p["loss"] for p in points_of(log) if p["epoch"] == 3.0) for log in courses[0].logs]
    assert line.get_xdata()[-1] == 3.0
    assert line.get_ydata()[-1] == pytest.approx(sum(losses) / 3)


def test_seeds_that_log_at_other_epochs_still_have_a_mean(tmp_path):
    made = two_cells(tmp_path)
    write_groups(tmp_path, run_id("30", 1), 30, lines=7)
    courses = courses_of(tmp_path, made)
    line = solid(figure_of(courses, curves_panels(courses)).axes[0])[0]
    assert line.get_xdata()[0] == pytest.approx(0.5)  # the first epoch of the first seed after the other one's 3 / 7
    assert line.get_ydata() == pytest.approx(5 - line.get_xdata() / 3)  # a straight line, in both


def test_a_log_that_is_being_written_counts_up_to_its_last_whole_line(tmp_path):
    made = two_cells(tmp_path)
    path = tmp_path / run_id("30", 0) / "metrics.jsonl"
    before = courses_of(tmp_path, made)[0].logs[0]
    path.write_text(path.read_text() + '{"step": 31, "epo')
    log = courses_of(tmp_path, made)[0].logs[0]
    assert log == before
    path.write_text(path.read_text() + 'ch": 3.1, "loss": 4.0}\n')
    assert len(points_of(log)) == 30
    assert courses_of(tmp_path, made)[0].logs[0].digest != before.digest


def test_a_damaged_line_is_named(tmp_path):
    made = two_cells(tmp_path)
    path = tmp_path / run_id("30", 0) / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 9,', '{"step" 9,'))
    courses = courses_of(tmp_path, made)
    with pytest.raises(UsageError, match=r"metrics\.jsonl has a line that is no JSON"):
        figure_of(courses, curves_panels(courses))


def test_what_is_no_number_is_not_drawn(tmp_path):
    made = two_cells(tmp_path)
    path = tmp_path / run_id("30", 0) / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0].replace('"loss": ', '"loss": NaN, "was": '), *rows[1:]]) + "\n")
    courses = courses_of(tmp_path, made)
    figure = figure_of(courses, curves_panels(courses))
    drawn = [line.get_ydata() for ax in figure.axes for line in solid(ax)]
    assert all(np.isfinite(y).all() for y in drawn)
    assert "loss" not in points_of(courses[0].logs[0])[0]


def test_the_loss_has_the_line_of_guessing_in_the_colour_of_its_cell(tmp_path):
    courses = courses_of(tmp_path, two_cells(tmp_path))
    panels = curves_panels(courses, OF_GROUPS)
    figure = figure_of(courses, panels)
    assert [ax.get_title("left") for ax in figure.axes] == ["loss", "lr"]  # 0 bad images all along say nothing
    dashed = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == pytest.approx(np.log([30, 100]))
    assert [line.get_color() for line in dashed] == [line.get_color() for line in solid(figure.axes[0])]
    assert "ln K" in curves_words(courses, panels, 1)


def test_groups_over_time_are_the_numbers_of_the_log(tmp_path):
    courses = courses_of(tmp_path, two_cells(tmp_path))
    panels = groups_panels(courses)
    figure = figure_of(courses, panels)
    share = np.arange(1, 31) / 30
    expected = {
        "entropy / ln K": 0.5 + share / 2, "dead groups (share)": 1 - share, "duplicates (share)": 0 * share,
        "largest group (share)": 0 * share + 1 / 100, "own = target (share)": share,
        "loss / ln K": (5 - share) / np.log(100),
    }  # fmt: skip
    assert list(panels) == list(expected)
    for title, y in expected.items():
        line = solid(panel_of(figure, title))[1]
        assert line.get_xdata() == pytest.approx(3 * share)
        assert line.get_ydata() == pytest.approx(y)


def test_without_groups_there_is_nothing_over_time(tmp_path):
    made = two_cells(tmp_path)
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace("group_", "other_"))
    assert groups_panels(courses_of(tmp_path, made)) == {}


def test_cells_are_told_apart_by_colour_and_by_marker(tmp_path):
    made = crossed_grid(tmp_path, {"a": [1, 2, 3, 4], "b": [1, 2, 3]})
    own = looks(courses_of(tmp_path, made))
    assert len(set(own)) == len({look.marker for look in own}) == 12


def test_of_many_cells_three_stand_out(tmp_path):
    made = crossed_grid(tmp_path, {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3]})
    courses = courses_of(tmp_path, made)
    own = looks(courses)
    means = [course.mean for course in courses]
    chosen = {0, means.index(max(means)), means.index(min(means))}
    assert {place for place, look in enumerate(own) if look.marker} == chosen
    figure = figure_of(courses, curves_panels(courses))
    assert all(len(solid(ax)) == len(chosen) for ax in figure.axes)
    assert any(text.get_text() == f"{15 - len(chosen)} other cells" for text in figure.texts)
    assert "of 15 cells" in curves_words(courses, curves_panels(courses), 1)


@pytest.mark.parametrize("cells", [2, 60])
def test_long_logs_are_thinned_evenly_and_their_svg_stays_small(tmp_path, cells):
    made = two_cells(tmp_path, 4000) if cells == 2 else crossed_grid(tmp_path, {"a": [*range(6)], "b": [*range(10)]})
    for run in {run for one in made["cells"] for run in one["runs"].values()} if cells > 2 else ():
        write_groups(tmp_path, run, 30, lines=300)
    courses = courses_of(tmp_path, made)
    panels = groups_panels(courses)
    stride = stride_of(courses, len(panels))
    points = points_of(courses[0].logs[0], stride)
    assert len(points) <= POINTS + 1
    assert len(set(np.diff([p["epoch"] for p in points[:-1]]).round(9))) == 1
    assert f"One logged line in {stride} is drawn" in curves_words(courses, panels, stride)
    assert len(plots.save(figure_of(courses, panels), "svg")) < 250_000


def test_two_figures_read_a_log_once_and_forget_it(tmp_path, monkeypatch):
    courses, read = courses_of(tmp_path, two_cells(tmp_path)), []
    monkeypatch.setattr("reports.logs.points_of", lambda log, stride: (read.append(log.run), points_of(log, stride))[1])
    panels = [curves_panels(courses, OF_GROUPS), groups_panels(courses)]
    reader = Reader(courses, *panels)
    first, second, _ = [figure_of(courses, panels[place], reader) for place in (0, 1, 1)]
    assert len(read) == 2 * 4  # the third figure reads again
    assert [len(first.axes), len(second.axes)] == [2, 6]


def test_two_cells_of_one_label_are_two(tmp_path):
    made = two_cells(tmp_path)
    made["cells"][1]["label"] = made["cells"][0]["label"]
    assert [course.label for course in courses_of(tmp_path, made)] == ["30", "30"]
    assert json.dumps([course.mean for course in courses_of(tmp_path, made)]) == "[50.5, 50.5]"
