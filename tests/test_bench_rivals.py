"""The bench against rivals: every arm runs, what is there is not made again, and the numbers are the suite's."""

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from smog.errors import exit_code
from smog.store import read_json
from smog.tasks import evaluate, settings

pytest.importorskip("lightly", reason="the rivals are lightly's")

SCRIPT = Path(__file__).parent / "bench" / "rivals.py"
SMALL = ["recipe=smoke", "data=cifar10", "images=64", "data.val_images=30", "optim.batch=16", "epochs=1.5"]


@pytest.fixture(scope="module")
def rivals():
    sys.path.insert(0, str(SCRIPT.parent))
    import rivals

    sys.path.remove(str(SCRIPT.parent))
    return rivals


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of noise, in CIFAR's folders."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        for number in range(count):
            path = root / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), random.integers(0, 128 + 64 * (number % 2), (20, 20, 3), dtype=np.uint8))
    return root


@pytest.fixture(scope="module")
def done(pictures, tmp_path_factory):
    """The folder, the JSON and the lines on standard error of a finished call."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, SCRIPT, *SMALL, f"data.root={pictures}", f"out={out}", "seeds=[3]", "format=json"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    assert "3 of 3 done" in made.stderr
    return out, json.loads(made.stdout)


def test_every_arm_has_finite_numbers(done):
    _, found = done
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [("ours", 3), ("lightly", 3), ("simclr", 3)]
    for run in found["runs"]:
        assert all(math.isfinite(run[key]) for key in ("top1", "seconds", "cpu_seconds", "steps"))
        assert 0 <= run["top1"] <= 100
        assert run["seconds"] > 0
    assert [pair["pair"] for pair in found["differences"]] == ["ours - lightly", "ours - simclr"]
    assert all(math.isfinite(pair["mean"]) and pair["n"] == 1 for pair in found["differences"])


def test_steps_and_time_are_shared_as_promised(done):
    ours, lightly, simclr = done[1]["runs"]
    assert ours["steps"] == lightly["steps"] == 6
    assert simclr["seconds"] >= ours["seconds"]
    assert simclr["config"]["views"]["first"] == simclr["config"]["views"]["second"]
    assert ours["config"]["data"] == lightly["config"]["data"] == simclr["config"]["data"]


def test_our_number_is_that_of_the_suite(done):
    out, found = done
    [folder] = (path.parent for path in (out / "store").glob("*/done"))
    result = read_json(evaluate(folder, "knn", settings("knn", ["k=20", "temperature=0.07"])))
    assert found["runs"][0]["top1"] == result["metrics"]["top1"]


def test_what_is_there_is_not_made_again(done, rivals, pictures, capsys):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert rivals.main([*SMALL, f"data.root={pictures}", f"out={out}", "seeds=[3]"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == before
    table = capsys.readouterr().out
    assert "| ours - lightly " in table
    assert table.count("\n| simclr ") == 1


def test_a_result_is_named_by_what_can_change_it(rivals, pictures, tmp_path):
    def names(*more):
        asked = rivals.read([*SMALL, f"data.root={pictures}", f"out={tmp_path}", "seeds=[0]", *more])
        return [cell.path.name for cell in rivals.plan(asked)[0]]

    base = names()

    def changed(*more):
        return [one != other for one, other in zip(base, names(*more), strict=True)]

    assert changed() == [False, False, False]
    assert changed("optim.lr=0.3") == [True, False, True], "our rate is no matter to lightly"
    assert changed("simclr_lr=0.3") == [False, False, True]
    assert changed("images=48") == changed("jobs=1") == [True, True, True]


def test_lightly_regroups_as_its_example(rivals, monkeypatch):
    import torch
    from torch import nn

    monkeypatch.setattr(rivals.LightlySmog, "GROUPS", 5)
    monkeypatch.setattr(rivals.LightlySmog, "REGROUP", 3)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
    backbone.num_features = 8
    model = rivals.LightlySmog(backbone, batch=10)
    assert model.cache.bank.shape == (30, 128)
    assert model.groups.group_features.norm(dim=1).min() > 4, "the example's first groups are not normalised"
    optimizer, called = torch.optim.SGD(model.parameters(), lr=0.1), []
    regroup = model.regroup
    monkeypatch.setattr(model, "regroup", lambda: called.append(step))
    for step in range(7):
        x = torch.randn(10, 3, 2, 2)
        model(x, x + 0.1, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert called == [3, 6]
    pairs = list(zip(model.online.parameters(), model.momentum.parameters(), strict=True))
    assert not any(torch.equal(*pair) for pair in pairs)
    regroup()
    assert all(torch.equal(*pair) for pair in zip(model.online.parameters(), model.momentum.parameters(), strict=True))
    torch.testing.assert_close(model.groups.group_features.norm(dim=1), torch.ones(5))


def test_differences_are_paired_by_seed(rivals):
    def run(arm, seed, top1, seconds):
        return {"arm": arm, "seed": seed, "top1": top1, "seconds": seconds, "cpu_seconds": 2 * seconds}

    ours = [run("ours", seed, top1, 10.0) for seed, top1 in ((0, 50.0), (1, 52.0), (2, 54.0))]
    theirs = [run("lightly", seed, top1, 20.0) for seed, top1 in ((2, 40.0), (0, 42.0), (7, 90.0))]
    [pair] = rivals.differences([*ours, *theirs])
    assert (pair["seeds"], pair["n"], pair["mean"]) == ([0, 2], 2, 11.0)
    assert pair["sd"] == pytest.approx(math.sqrt(18.0))
    assert pair["seconds_ratio"] == pair["cpu_seconds_ratio"] == 0.5


def test_rate_warms_up_and_ends_with_the_time(rivals, tiny):
    import torch

    config = tiny("optim.epochs=10", "optim.warmup_epochs=1", "optim.lr=1.6")  # batch 16: 0.1 at the peak
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    for share, expected in ((0.05, 0.05), (0.1, 0.1), (0.55, 0.05), (1.0, 0.0)):
        rivals.set_rate(optimizer, share, config)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["only=lihgtly"], "nearest: lightly"),
        (["seeds=[0,0]"], "different whole numbers"),
        (["seed=1"], "take seeds="),
        (["jobs=0"], "from 1 on"),
        (["optim.lrr=1"], "optim.lr"),
        (["only=simclr"], "add ours"),
        (["epochs=0"], "nothing to compare"),
    ],
)
def test_wrong_use_is_one_line(rivals, pictures, tmp_path, capsys, arguments, said):
    code = exit_code(rivals.main, [*SMALL, f"data.root={pictures}", f"out={tmp_path / 'out'}", *arguments])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert said in error
    assert not (tmp_path / "out").exists()
