import json
import re
import shlex

import pytest
import yaml
from made_store import config_text, configured, made_grid, run_id, write_result

from reports.build import main
from reports.collect import collect
from reports.reproduce import to_model_index, to_reproduce
from smog.attempts import attempt
from smog.config import compose, load
from smog.identity import group_id
from smog.store import result_path, write_grid


@pytest.fixture
def store(tmp_path):
    configured(tmp_path / "store", made_grid(tmp_path / "store"))
    return tmp_path / "store"


def text_of(store):
    return to_reproduce(collect(store, ()).report)


def part(text, heading):
    return text.partition(f"### {heading}")[2].partition("###")[0]


def test_every_row_has_its_commands_and_they_compose_its_runs(store):
    text = text_of(store).partition("## Number of groups")[2]
    assert "    python ablations/run.py grid=num_groups recipe=demo\n" in text
    for label in ("30", "100", "300", "1000", "untrained", "raw pixels"):
        [train] = re.findall(r"for seed in 0 1 2; do (smog train .*?); done", part(text, f"{label}: "))
        for seed in (0, 1, 2):
            words = shlex.split(train.replace("$seed", str(seed)))[2:]
            again = compose([*words, "data.fingerprint=abcdef012345"])
            assert again.seed == seed
            assert group_id(again) == group_id(load(store / run_id(label, seed) / "config.yaml"))


def test_the_numbers_stand_beside_the_commands(store):
    text = text_of(store)
    assert "### 300: 45.8 ± 0.6; 51.9 ± 0.9" in text
    runs = " ".join(run_id("300", seed) for seed in (0, 1, 2))
    assert f"    for run in {runs}; do smog eval knn $run; done" in text


def answers(text):
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", text.partition("## Reproducibility checklist")[2], re.MULTILINE)
    return dict(rows)


def test_the_checklist_is_filled_in(store):
    found = answers(text_of(store))
    assert found["hyper-parameters considered in num_groups"] == "method.num_groups: 30, 100, 300, 1000"
    assert found["number of training runs"] == "12 finished, seeds 0, 1, 2"
    assert found["number of evaluation runs"] == "36"
    assert found["seeds that were left out"] == "none"
    assert found["average training time of a run"] == "60 s"
    assert found["data 1"] == "garments: 6000 train, 2000 val, fingerprint made"
    assert not any(answer in ("", "None") for answer in found.values())


def test_failed_attempts_count_as_runs_and_as_waste(store):
    run = store / run_id("30", 0)
    with pytest.raises(RuntimeError), attempt(run, "knn@aaaaaaaa"):
        raise RuntimeError("no")
    with attempt(run, "knn@aaaaaaaa"):
        pass
    found = answers(text_of(store))
    assert found["attempts, with those that failed"] == "2, of which 1 failed or were cut off"


def test_the_model_index_is_yaml_of_the_tables_numbers(store):
    [model] = yaml.safe_load(to_model_index(collect(store, ()).report))["model-index"]
    assert model["name"].startswith("SMoG, resnet10_small")
    first = next(one for one in model["results"] if one["task"]["name"] == "k-NN, garments")
    assert first["dataset"] == {"type": "garments", "name": "garments", "revision": "made"}
    assert first["metrics"][0]["type"] == "accuracy"
    assert first["metrics"][0]["value"] == pytest.approx((45.9 + 46.4 + 45.2) / 3)
    assert len(model["results"]) == 2  # knn and linear


def test_hostile_text_is_no_markup(store, tmp_path):
    hostile = "<script>alert(1)</script> | x\n# y"
    made_grid(store, title=hostile, command=hostile)
    text = text_of(store)
    assert "<script" not in text.replace("    <script>alert(1)</script> | x # y", "")  # a block of code is no markup
    assert main([f"store={store}", f"out={tmp_path / 'out'}"]) == 0


def test_a_draft_says_so(store, tmp_path):
    result_path(store / run_id("30", 0), "knn", "aaaaaaaa").unlink()
    assert "**DRAFT**" in text_of(store)
    assert "**DRAFT**" not in to_reproduce(collect(tmp_path / "store", ()).report).replace("**DRAFT**", "", 1)


def as_segmentor(store, label):
    """Turn the k-NN results of a cell into those of a segmentor, whose protocol is told in words with a comma."""
    for seed in (0, 1, 2):
        path = result_path(store / run_id(label, seed), "knn", "aaaaaaaa")
        settings = {"data": "made", "decoder": "upernet", "name": "smoke"}
        content = {"task": "ade20k", "metrics": {"miou": 40.0 + seed}, "settings": settings}
        path.with_name("ade20k@aaaaaaaa.json").write_text(json.dumps(json.loads(path.read_text()) | content))


def test_the_model_index_names_the_images_and_no_untrained_network(store):
    as_segmentor(store, "300")
    as_segmentor(store, "untrained")
    (path,) = (store / "grids").glob("*.json")
    made = json.loads(path.read_text())
    cells = [one for one in made["cells"] if one["label"] in ("300", "untrained")]
    for one in cells:
        one |= {"axis": "start", "value": one["label"], "reference": False}
    write_grid(store, made | {"grid": "starts", "cells": cells, "axes": {"start": ["300", "untrained"]}})
    models = yaml.safe_load(to_model_index(collect(store, ()).report))["model-index"]
    assert [model["name"].partition(",")[0] for model in models] == ["SMoG"]
    one = next(one for one in models[0]["results"] if one["task"]["type"] == "image-segmentation")
    assert one["task"]["name"] == "Segmentation, made (upernet, smoke)"
    assert one["dataset"]["name"] == "made"


def test_models_of_one_name_stay_apart(store):
    for label in ("a", "b"):
        for seed in (0, 1):
            run = run_id(label, seed)
            write_result(store, run, seed, "knn", 60.0, group=run_id(label))
            text = config_text("method.temperature=0.3").replace("seed: 0\n", f"seed: {seed}\n", 1)
            (store / run / "config.yaml").write_text(text.replace("abcdef012345", label * 12))
    models = yaml.safe_load(to_model_index(collect(store, ()).report))["model-index"]
    assert [len(model["results"]) for model in models if "temperature" in model["name"]] == [1, 1]


def test_a_run_that_never_began_is_of_no_commit(store):
    before = re.search("The runs are of the code at .*", text_of(store))[0]
    (path,) = (store / "grids").glob("*.json")
    made = json.loads(path.read_text())
    made["cells"][2]["runs"]["3"] = run_id("never")
    path.write_text(json.dumps(made))
    assert re.search("The runs are of the code at .*", text_of(store))[0] == before
