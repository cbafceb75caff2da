"""Groups that degenerate are said, with the likely cause; healthy ones are not."""

import dataclasses
import math

import pytest

from smog.config import compose
from smog.health import Watch, warning
from smog.training import train

METHOD = compose(["recipe=smoke"]).method
FINE = {
    "epoch": 4.0, "loss": 3.0, "chance_loss": math.log(100), "group_active": 100.0, "group_dead": 3.0,
    "group_largest": 0.04, "group_duplicates": 2.0, "group_movement": 0.001,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"group_dead": 95.0}, ["95 of 100 groups hold no image", "regroup more often than every 5 steps"]),
        ({"group_largest": 0.6}, ["the largest holds 60 %"]),
        ({"group_dead": 95.0, "group_duplicates": 90.0}, ["90 of 100 groups are copies", "collapsed", "optim.lr"]),
        ({"loss": 4.6}, ["the loss 4.60 is that of guessing (ln 100 = 4.61)", "method.temperature"]),
        ({"group_movement": 0.5}, ["1 - cosine = 0.50", "method.group_momentum"]),
    ],
)
def test_degenerate_groups_are_said_with_the_cause(change, parts):
    found = warning({**FINE, **change}, METHOD)
    assert all(part in found for part in parts), found
    assert "\n" not in found


def test_healthy_groups_and_the_first_epoch_are_silent():
    assert warning(FINE, METHOD) == ""
    assert warning({**FINE, "epoch": 0.5, "group_dead": 99.0, "loss": 4.6}, METHOD) == ""


def test_groups_that_never_regroup_are_told_to():
    never = dataclasses.replace(METHOD, regroup_interval=0)
    assert "they never regroup; take method.regroup_interval" in warning({**FINE, "group_dead": 95.0}, never)


def test_a_run_that_collapses_says_so_once(tmp_path, capsys):
    """Without predictor, balance and regrouping the groups of a real run collapse."""
    overrides = ["predictor=none", "regroup_interval=0", "group_momentum=0.5", "encoder_momentum=0", "num_groups=64"]
    method = [f"method.{override}" for override in [*overrides, "direction=one_way"]]
    train(compose(["recipe=smoke", f"runtime.store={tmp_path}", *method, "optim.epochs=6", "optim.lr=2"]))
    said = [line for line in capsys.readouterr().err.splitlines() if "groups hold no image" in line]
    assert len(said) == 1
    assert "they never regroup" in said[0]


def test_a_watch_leaves_methods_without_groups_alone(capsys):
    Watch(METHOD, "abc").write({"step": 1, "epoch": 2.0, "loss": 1.0})
    assert capsys.readouterr().err == ""
