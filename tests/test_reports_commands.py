import shlex
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from reports.commands import task_command, train_command
from smog.config import compose
from smog.identity import as_dict, run_id
from smog.tasks import protocol
from smog.tasks import settings as task_settings
from transfer.command import parse

KNOWN = ["data.fingerprint=abcdef012345"]


def typed(config):
    words = shlex.split(train_command(config))
    assert words[:2] == ["smog", "train"]
    return [word for word in words[2:] if word != "data.root=DIR"]


def proved(config):
    """Compose what a command types, as the command line does, and compare identities."""
    again = compose([*typed(config), *KNOWN])
    assert run_id(again) == run_id(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe=demo"], ["recipe=demo", "seed=0"]),
        (["recipe=demo", "seed=3", "method.num_groups=30"], ["recipe=demo", "seed=3", "method.num_groups=30"]),
        (["recipe=demo", "backbone=pixels", "optim.epochs=0"],
         ["recipe=demo", "backbone=pixels", "seed=0", "optim.epochs=0.0"]),
        (["recipe=imagenet_r50", "data.train_images=10"], ["recipe=imagenet_r50", "seed=0", "data.train_images=10"]),
        (["recipe=demo", "data=cifar10", "backbone=resnet50"],
         ["recipe=demo", "data=cifar10", "backbone=resnet50", "seed=0"]),
    ],
)  # fmt: skip
def test_the_command_is_the_shortest_and_composes_the_same_run(overrides, words):
    config = compose([*overrides, *KNOWN])
    assert typed(config) == words
    proved(config)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])  # each composes twice: shrinking would take minutes
@given(
    st.sampled_from(["demo", "smoke", "cifar10_2core"]),
    st.integers(0, 10_000),
    st.fixed_dictionaries(
        {},
        optional={
            "method.temperature": st.floats(0.01, 1.0),
            "method.group_momentum": st.floats(0.0, 0.999),
            "method.predictor": st.sampled_from(["none", "online", "both"]),
            "optim.epochs": st.floats(0.0, 900.0),
            "views.local_crops": st.integers(0, 4),
            "method.balanced_targets": st.booleans(),
            "optim.lr": st.floats(1e-12, 1.0),
        },
    ),
)
def test_any_configuration_has_a_command_that_composes_it(recipe, seed, values):
    changes = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    proved(compose([f"recipe={recipe}", f"seed={seed}", *changes, *KNOWN]))


def test_a_free_key_of_the_backbone_and_text_are_quoted_for_the_shell():
    config = compose(["recipe=demo", "backbone.args.layers=[1,1,2,1]", *KNOWN])
    assert "'backbone.args.layers=[1,1,2,1]'" in train_command(config)
    proved(config)


def result(task, overrides, run="0123456789ab"):
    chosen = task_settings(task, overrides)
    return {"task": task, "run_id": run, "settings": as_dict(chosen, science_only=True)}, protocol(task, chosen)


@pytest.mark.parametrize(
    ("task", "overrides", "words"),
    [
        ("knn", [], ""),
        ("knn", ["k=5"], " k=5"),
        ("linear", ["lrs=[0.1,1.0]", "epochs=3"], " 'lrs=[0.1,1.0]' epochs=3"),
    ],
)
def test_a_task_of_features(task, overrides, words):
    content, code = result(task, overrides)
    command = task_command(content)
    assert command == f"smog eval {task} 0123456789ab{words}"
    assert protocol(task, task_settings(task, shlex.split(command)[4:])) == code


def test_a_detector():
    content, _ = result("coco", ["data=made", "arch=fpn", "schedule=smoke", "engine=torchvision", "lr=0.01"])
    command = task_command(content)
    assert command.startswith(
        "python transfer/coco.py --ckpt 0123456789ab --data made --arch fpn --schedule smoke --set "
    )
    options = ("--ckpt", "--data", "--arch", "--schedule")
    assert set(parse(shlex.split(command)[2:], options)["--set"]) == {"lr=0.01", "engine=torchvision"}


def test_a_task_of_another_version_has_no_command():
    assert task_command({"task": "tomorrow", "run_id": "0123456789ab"}) == ""


@pytest.mark.parametrize("name", ["a'b", "x; $(id) `id` ~"])
def test_a_shell_takes_a_value_for_nothing_but_a_value(name):
    config = compose(["recipe=demo", *KNOWN])
    config = replace(config, backbone=replace(config.backbone, name=name))
    assert f"backbone.name={name}" in typed(config)
    proved(config)


def test_a_value_of_several_lines_has_no_command():
    config = compose(["recipe=demo", *KNOWN])
    assert train_command(replace(config, backbone=replace(config.backbone, name="a\nrm"))) == ""


def test_a_detector_without_its_data_has_no_command():
    assert task_command({"task": "coco", "run_id": "0123456789ab", "settings": {}}) == ""
