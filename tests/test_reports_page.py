import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import made_report as make
import pytest
from made_store import AXIS, TASKS, cell, made_grid, record, run_id, write_result
from test_reports_tables import HOSTILE

from reports import page
from reports.costs import hours, origins, section_cost, whole_cost
from reports.embedded import embedded
from reports.markup import to_html
from reports.report import Picture, Report
from reports.spent import Spent
from reports.tables import grid_table

VOID = {"meta", "link", "img", "br", "use", "path"}


class Elements(HTMLParser):
    """Every element of a page with its attributes and the text within it."""

    def __init__(self, text):
        super().__init__()
        self.all, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in VOID:
            self.open.append(self.all[-1])

    def handle_startendtag(self, tag, attrs):
        self.all.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for one in self.open:
            one["text"] += data

    def named(self, tag, **attributes):
        return [one for one in self.all if one["tag"] == tag and attributes.items() <= one.items()]


def data_of(drawn):
    return json.loads(Elements(drawn).named("script", type="application/json")[0]["text"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = tmp_path_factory.mktemp("page")
    return store, make.documented(store, made_grid(store))


@pytest.fixture(scope="module")
def report(made):
    return make.report(*made)


def test_the_same_report_gives_the_same_bytes(made, report):
    assert page.render(report) == page.render(make.report(*made))


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(report):
    drawn = Elements(page.render(report).decode())
    asking = [one for one in drawn.all if {"src", "srcset", "data", "poster", "background"} & one.keys()]
    links = [one for one in drawn.named("a") if re.match(r"\w+:|//", one["href"])]
    assert (asking, links, drawn.named("link")) == ([], [], [])
    (script,) = [one for one in drawn.named("script") if "type" not in one]
    rule = drawn.named("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode() in rule
    assert "default-src 'none'" in rule


def test_every_link_leads_somewhere(tmp_path, report):
    path = make.write(tmp_path, report, page.render(report))
    drawn = Elements(path.read_text())
    places = [one["id"] for one in drawn.all if "id" in one]
    assert len(places) == len(set(places))
    for link in drawn.named("a"):
        target = link["href"]
        assert target[1:] in places if target.startswith("#") else (tmp_path / target).is_file(), target
    for one in drawn.named("use"):
        assert one["href"][1:] in places


def test_every_part_carries_its_digest(report):
    drawn, table = Elements(page.render(report).decode()), report.sections[0].table
    digests = {one.get("data-digest") for one in drawn.all}
    assert {table.digest, "f" * 12, *(row.digest for row in table.rows)} <= digests
    assert drawn.named("meta", name="smog-digest")[0]["content"] == page.whole_digest(report)
    changed = replace(report, sections=(replace(report.sections[0], table=replace(table, caption="other")),))
    dropped = replace(report, dropped={"a": "b"})
    assert len({page.whole_digest(one) for one in (report, changed, dropped)}) == 3


def test_the_json_holds_the_runs_of_the_store_to_the_last_digit(made, report):
    store, record_ = made
    data = data_of(page.render(report).decode())
    for one in record_["cells"]:
        for seed, run in one["runs"].items():
            group, own, command, seconds, device, commit, _, results = data["runs"][run]
            assert (own, seconds, data["words"][device], data["words"][commit]) == (int(seed), 60.0, "cpu", "d" * 10)
            assert data["words"][command].replace("\u0001", seed) == report.runs[run].command
            config = data["base"] | data["groups"][group][0]
            config = {name: value for name, value in config.items() if name not in data["groups"][group][1]}
            assert config == report.runs[run].config
            for place, words, took, _, changed, created, metric, value in results:
                task, settings = data["protocols"][place]
                stored = json.loads((store / run / "results" / f"{task}.json").read_text())
                assert (data["metrics"][metric], value, took) == ("top1", stored["metrics"]["top1"], 2.0)
                assert (settings, data["words"][changed], created) == ({"k": 20}, "c" * 10 + "+", 1767225600)
                assert data["words"][words].replace("\u0001", run) == report.runs[run].commands[task]
            assert len(results) == 2


def test_a_strangers_checkpoint_has_no_configuration(report):
    run = next(iter(report.runs.values()))
    runs = dict(report.runs) | {run.run: replace(run, config={}, seed=None, group="", command="", training={})}
    data = json.loads(embedded(replace(report, runs=runs)))
    assert data["runs"][run.run][:2] == [-1, None]
    assert len(data["groups"]) == 6


def test_rows_name_their_runs_and_cells_only_what_is_other(made):
    table = grid_table(*made)
    drawn = Elements(to_html(table))
    for row in table.rows:
        (line,) = drawn.named("tr", **{"data-digest": row.digest})
        assert line["data-runs"].split() == list(row.measures[0].runs.values())
    assert not [one for one in drawn.all if one["tag"] in ("td", "th") and "data-runs" in one]
    assert [(one["data-task"], one["data-metric"]) for one in drawn.named("th") if "data-task" in one] == [
        (make.PROTOCOLS["knn"], "top1"), (make.PROTOCOLS["linear"], "top1"),
    ]  # fmt: skip
    full = [float(one["data-v"]) for one in drawn.named("td") if "data-v" in one]
    assert sum(row.measures[0].summary.mean for row in table.rows if row.kind == "baseline") in full


def test_a_cell_that_lacks_a_run_of_its_row_says_so(tmp_path):
    cells = [cell(tmp_path, "a", 3, {"knn": [50.0, None, 52.0], "linear": [50.0, 51.0, 52.0]}, baseline=True)]
    drawn = Elements(to_html(grid_table(tmp_path, record(cells))))
    own = [one["data-runs"].split() for one in drawn.named("td") if "data-runs" in one]
    assert own == [[run_id("a", 0), run_id("a", 2)]]


def test_kinds_and_marks_are_drawn_apart(made):
    drawn = Elements(to_html(make.with_others(grid_table(*made)), "name"))
    assert [one["class"] for one in drawn.named("tbody")] == ["reference", "ours", "reported"]
    assert {one["text"] for one in drawn.named("strong")} == {
        "44.9 ± 0.9", "45.8 ± 0.6", "45.7 ± 1.1", "51.9 ± 0.9", "52.7 ± 0.3",
    }  # fmt: skip
    assert [one["text"] for one in drawn.named("u")] == ["40.4 ± 0.6", "51.5 ± 0.5"]
    assert [one["class"] for one in drawn.named("tr") if one.get("class") in ("delta", "baseline")] == [
        "baseline", "delta",
    ]  # fmt: skip
    notes = {one["id"]: one["text"] for one in drawn.named("li")}
    assert [notes[one["href"][1:]] for one in drawn.named("a")] == ["B et al., table 3", "A et al., table 3"]


def test_what_is_missing_is_said_three_times(tmp_path):
    cells = [
        cell(tmp_path, "a", 5, {"knn": [50.0, 51.0, 52.0]}, baseline=True),
        cell(tmp_path, "b", 6, {"knn": [70.0, None, 72.0]}),
        cell(tmp_path, "c", 7, {"knn": [None] * 3}),
    ]
    grid = make.documented(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}))
    report = make.report(tmp_path, grid)
    drawn = Elements(page.render(report).decode())
    assert drawn.named("body", **{"class": "draft"})
    assert "4 of 9 planned numbers are missing" in drawn.named("p", **{"class": "warning"})[0]["text"]
    lines = [one["text"] for one in drawn.named("tr") if "out of memory" in one["text"]]
    assert len(lines) == 4
    assert all(run_id("c", seed) in "".join(lines) for seed in range(3))
    assert [one["class"] for one in drawn.named("td") if "(0/3)" in one["text"]] == ["missing"]


def test_a_complete_report_is_no_draft(report):
    drawn = Elements(page.render(report).decode())
    assert not drawn.named("body", **{"class": "draft"})
    assert not drawn.named("p", **{"class": "warning"})


def test_hostile_texts_stay_texts(tmp_path):
    cells = [cell(tmp_path, HOSTILE, 5, {"knn": [50.0, 51.0, None]}, baseline=True)]
    grid = make.documented(tmp_path, record(cells, tasks={"knn": TASKS["knn"]}, title=HOSTILE, axes={HOSTILE: [5]}))
    report = make.report(tmp_path, grid, dropped={"<i>a</i>": HOSTILE}, notes=(HOSTILE,))
    config = next(iter(report.runs.values())).config | {"a": "</script><script>alert(1)</script><!--"}
    runs = {name: replace(run, config=config, command=HOSTILE) for name, run in report.runs.items()}
    report = replace(report, runs=runs)
    drawn = Elements(page.render(report).decode())
    assert len(drawn.named("script")) == 2
    assert not drawn.named("b")
    assert not drawn.named("i")
    assert sum(HOSTILE in one["text"] for one in drawn.named("p")) == 1
    data = data_of(page.render(report).decode())
    assert HOSTILE in data["words"]
    assert data["base"]["a"] == config["a"]


def test_figures_stand_in_the_page_and_large_ones_as_png(made, report):
    drawn = page.render(report).decode()
    assert '<use href="#num_groups-a"' in drawn
    assert 'id="num_groups-a"' in drawn
    assert "fill: var(--blue)" in drawn
    assert "stroke: currentColor" in drawn
    large = {"svg": make.SVG + b" " * page.LARGEST_SVG, "png": make.PNG}
    picture = Picture("x", "Large", '"quoted" words', "e" * 12, large)
    section = make.section(*made, pictures=(picture,))
    (image,) = Elements(page.render(replace(report, sections=(section,))).decode()).named("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == make.PNG
    assert image["alt"] == 'Large: Number of groups. "quoted" words'


def test_a_page_shows_the_first_figures_of_all_sections_before_it_grows_too_large(made, report, monkeypatch):
    pictures = [replace(report.sections[0].pictures[0], name=name) for name in ("a", "b", "c", "d")]
    first = make.section(*made, pictures=tuple(pictures[:2]))
    second = make.section(*made, name="other", pictures=tuple(pictures[2:]))
    whole = page.render(replace(report, sections=(first, second)))
    monkeypatch.setattr(page, "LARGEST_PAGE", len(whole) - 2 * len(make.SVG))
    drawn = page.render(replace(report, sections=(first, second))).decode()
    assert [f'id="{name}-a"' in drawn for name in "abcd"] == [True, False, True, False]
    assert len(drawn.encode()) <= page.LARGEST_PAGE
    assert all(f'href="figures/{name}.pdf"' in drawn for name in "abcd")


def test_costs_count_what_sections_share_once(made, report):
    store, grid = made
    both = replace(report, sections=(*report.sections, make.section(store, grid, name="again")))
    one, whole = section_cost(both, both.sections[1]), whole_cost(both)
    assert (one.runs, one.training, one.tasks) == (whole.runs, whole.training, whole.tasks) == (18, 18 * 60.0, 36 * 2.0)
    run = next(iter(report.runs.values()))
    failed = replace(run, spent=Spent(4, 3, 7.5))
    found = whole_cost(replace(both, runs=dict(both.runs) | {run.run: failed}))
    assert (found.attempts, found.failed, found.waste) == (4, 3, 7.5)


def test_a_section_counts_the_tasks_of_its_table_and_the_whole_counts_all(made, report):
    table = grid_table(made[0], made[1] | {"tasks": {"knn": TASKS["knn"]}})
    only = Report((make.section(*made, table),), report.runs)
    assert (section_cost(only, only.sections[0]).tasks, whole_cost(only).tasks) == (36.0, 72.0)


def test_origins_are_counted_by_run(report):
    assert origins(report) == [
        ("device", "cpu", 18), ("commit", "c" * 10 + "+", 18), ("commit", "d" * 10, 18), ("torch", "2.9", 18),
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0.000"), (5.4, "0.002"), (3600, "1.000"), (90000, "25.0")])
def test_hours(seconds, text):
    assert hours(seconds) == text


def test_tables_of_tasks_come_first(made, report):
    paper = make.section(*made, name="knn", kind="paper")
    assert [one.name for one in page.ordered(replace(report, sections=(*report.sections, paper)))] == [
        "knn", "num_groups",
    ]  # fmt: skip


def test_a_dropped_run_is_listed_with_its_reason(made):
    run = run_id("30", 1)
    drawn = Elements(page.render(make.report(*made, dropped={run: "a disk fault"})).decode())
    (line,) = [one["text"] for one in drawn.named("tr") if "a disk fault" in one["text"]]
    assert line.split("\n")[0].startswith(run + "1a disk")


def test_two_protocols_of_a_task_stay_apart(tmp_path):
    grid = made_grid(tmp_path)
    run = run_id("30", 0)
    TASKS["knn"], own = "dddddddd", TASKS["knn"]
    try:
        write_result(tmp_path, run, 0, "knn", 99.0)
    finally:
        TASKS["knn"] = own
    data = json.loads(embedded(make.report(tmp_path, make.documented(tmp_path, grid))))
    assert [data["protocols"][one[0]][0] for one in data["runs"][run][7]] == list(make.PROTOCOLS.values())
    assert AXIS in data["base"]
