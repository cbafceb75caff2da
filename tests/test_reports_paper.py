import json

import pytest
from made_store import AXIS, TASKS, cell, configured, made_grid, record, run_id, write_result, write_run
from scipy import stats

from reports.build import main
from reports.collect import collect
from smog.store import result_path, write_grid


@pytest.fixture
def store(tmp_path):
    configured(tmp_path / "store", made_grid(tmp_path / "store"))
    return tmp_path / "store"


def table_of(store, name="knn-garments"):
    return next(section.table for section in collect(store, ()).report.sections if section.name == name)


def shown(table):
    return {row.label: [cell.text for cell in row.cells] for row in table.rows}


TRAINED = "SMoG, resnet10_small, 5.5 epochs, batch 128, 2x32, demo"


def test_the_baseline_and_the_references_stand_in_the_tables_of_tasks(store):
    report = collect(store, ()).report
    assert [section.name for section in report.sections] == ["linear-garments", "knn-garments", "num_groups"]
    table = report.sections[1].table
    assert [row.kind for row in table.rows] == ["reference", "reference", "cell", "delta"]
    rows = shown(table)
    assert rows[TRAINED] == ["SMoG", "resnet10_small", "5.5", "128", "2x32", "demo", "45.8 ± 0.6", "3"]
    assert table.title == "k-NN, garments"
    assert "6,000 training images, 2,000 images for the number" in table.caption


def test_the_row_beneath_is_the_paired_difference_to_the_untrained_network(store):
    rows = shown(table_of(store))
    pair = stats.ttest_rel([45.9, 46.4, 45.2], [31.1, 30.2, 31.9]).confidence_interval(0.95)
    assert rows[f"{TRAINED} \u2212 untrained"][6] == f"+14.8 [+{pair.low:.1f}, +{pair.high:.1f}]"
    pixels = next(label for label in rows if label.startswith("raw pixels"))
    assert rows[pixels][:3] == ["raw pixels", "pixels", "0"]


def test_a_run_of_no_grid_has_a_row_with_what_differs_from_its_recipe(store):
    from smog.config import compose, dump

    for seed in (0, 1):
        run = run_id("alone", seed)
        write_run(store, run, 10, 1.0)
        write_result(store, run, seed, "knn", 60.0 + seed, group=run_id("alone"))
        config = compose(["recipe=demo", f"seed={seed}", "method.temperature=0.2", "data.fingerprint=abcdef012345"])
        (store / run / "config.yaml").write_text(dump(config))
    table = table_of(store)
    row = next(row for row in table.rows if "temperature" in row.label)
    assert row.cells[5].text == "demo, temperature 0.2"
    assert (row.cells[6].text, row.cells[6].marks) == ("60.5 ± 0.7", ("best",))
    assert next(row for row in table.rows if row.label == TRAINED).cells[6].marks == ("second",)


def test_a_strangers_checkpoint_has_a_row_of_its_own(store):
    run = run_id("stranger")
    write_result(store, run, 0, "knn", 70.0)
    path = result_path(store / run, "knn", TASKS["knn"])
    content = json.loads(path.read_text()) | {"seed": None, "group_id": None, "checkpoint": {"id": "a file"}}
    path.write_text(json.dumps(content))
    assert shown(table_of(store))["a file"] == ["a file", "", "", "", "", "", "70.0", "1"]


def test_named_axes_are_subjects_and_other_cells_are_not(tmp_path):
    named = {"axis": "objective"}
    cells = [
        cell(tmp_path, "ours", "ours", {"knn": [50.0, 51.0]}, baseline=True, **named),
        cell(tmp_path, "theirs", "theirs", {"knn": [40.0, 42.0]}, **named),
    ]
    made = record(cells, axes={"objective": ["ours", "theirs"]}, tasks={"knn": TASKS["knn"]}, baseline={})
    for one in made["cells"]:
        one["point"] = {"objective": one["label"]}
    write_grid(tmp_path, made)
    grid = [cell(tmp_path, str(v), v, {"knn": [45.0, 46.0]}, baseline=v == 3) for v in (3, 4)]
    write_grid(tmp_path, record(grid, "other", tasks={"knn": TASKS["knn"]}, baseline={AXIS: 3}))
    [table] = [one.table for one in collect(tmp_path, ()).report.sections if one.kind == "paper"]
    assert [row.cells[0].text for row in table.rows if row.kind == "cell"] == [run_id("3", 0), "ours", "theirs"]


def test_two_protocols_of_one_task_are_two_tables(store):
    write_result(store, run_id("300", 0), 0, "knn", 44.0, group=run_id("300"))
    path = result_path(store / run_id("300", 0), "knn", TASKS["knn"])
    content = json.loads(path.read_text()) | {"protocol": "cccccccc"}
    path.with_name("knn@cccccccc.json").write_text(json.dumps(content))
    names = [section.name for section in collect(store, ()).report.sections]
    assert {"knn-garments-aaaaaaaa", "knn-garments-cccccccc"} <= set(names)


def test_only_the_asked_grids_are_in_it(store, tmp_path):
    cells = [cell(store, "z", 1, {"knn": [50.0, 51.0]}, baseline=True)]
    write_grid(store, record(cells, "other", tasks={"knn": TASKS["knn"]}))
    assert main([f"store={store}", f"out={tmp_path / 'out'}", "grids=[other]"]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "tables").glob("*.md")) == ["knn-made.md", "other.md"]


def test_published_numbers_of_the_same_protocol_stand_beside_ours(store):
    """A made result under ImageNet's sizes and DINO's protocol, by a method that is called DINO."""
    for path in store.glob("*/results/knn@*.json"):
        content = json.loads(path.read_text())
        content["inputs"] |= {"train": 1_281_167, "val": 50_000}
        content["settings"] = {"k": 20, "temperature": 0.07}
        path.write_text(json.dumps(content))
    table = table_of(store)
    assert [row.kind for row in table.rows] == ["reference", "reference", "cell", "delta", "reported"]
    dino = table.rows[-1]
    assert [cell.text for cell in dino.cells][:3] == ["DINO", "ResNet-50", "3200 effective"]
    assert (dino.cells[6].text, dino.cells[6].marks) == ("67.5", ("reported",))
    assert table.notes == ("facebookresearch/dino README: reported",)
    assert "best" not in dino.cells[6].marks


def test_a_rival_of_the_very_subject_gives_the_gap(store, monkeypatch):
    from reports import paper
    from reports.published import Rival

    words = ("SMoG", "resnet10_small", "5.5", "", "", "theirs")
    rival = Rival("SMoG", words, {"top1": 46.0}, "a paper: reported", exact=True)
    monkeypatch.setattr(paper, "rivals_of", lambda *_: [rival])
    table = table_of(store)
    row = next(row for row in table.rows if row.label == TRAINED)
    assert [column.title for column in table.columns][-2:] == ["reported", "gap"]
    assert [cell.text for cell in row.cells[-2:]] == ["46", "\u22120.2 (within 2.0)"]
    assert row.cells[-2].marks == ("reported",)
    assert not any(row.kind == "reported" for row in table.rows)


@pytest.mark.parametrize(("crops", "stands"), [("2x32", True), ("", True), ("2x32+6x16", False)])
def test_a_rival_of_other_crops_is_no_measure_of_ours(store, monkeypatch, crops, stands):
    from reports import paper
    from reports.published import Rival

    words = ("SMoG", "resnet10_small", "5.5", "128", crops, "theirs")
    rival = Rival("SMoG", words, {"top1": 46.0, "top5": 77.0}, "a paper: reported", exact=True)
    monkeypatch.setattr(paper, "rivals_of", lambda *_: [rival])
    table = table_of(store)
    assert (table.columns[-1].title == "gap") == stands
    assert [row.kind for row in table.rows][-1] == "reported"  # its other number is nowhere else


def test_what_a_method_does_not_have_is_blank_and_sets_no_digits(store):
    """Raw pixels have no groups; and a reference that varies widely does not cost the others their digits."""
    made = json.loads(next((store / "grids").glob("*.json")).read_text())
    for one in made["cells"]:
        for seed, run in one["runs"].items():
            path = result_path(store / run, "knn", TASKS["knn"])
            noise = int(seed) * (10 if one["reference"] else 0.01)
            metrics = {"rankme": 50.0 + noise} | ({} if one["label"] == "raw pixels" else {"nmi": 0.5})
            content = json.loads(path.read_text()) | {"task": "diagnostics", "metrics": metrics}
            path.with_name(f"diagnostics@{TASKS['knn']}.json").write_text(json.dumps(content))
    rows = shown(table_of(store, "diagnostics-garments"))
    assert rows["raw pixels, pixels, demo"][6:8] == ["60.000 \u00b1 10.000", ""]
    assert rows[TRAINED][6] == "50.010 \u00b1 0.010"
