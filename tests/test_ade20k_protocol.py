"""What a segmentation protocol asks for: its files, its schedules, the command line that chooses among them. That its
values are mmsegmentation's own is in test_segmentation_config.py."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from made_segmentation import class_file, write_ade20k

from smog.config import options
from smog.errors import UsageError
from smog.tasks import protocol, settings
from transfer import command, protocols  # noqa: F401 (the latter adds the task)
from transfer.ade20k import FLAGS, OPTIONS, overrides
from transfer.segmentation import protocol as module
from transfer.segmentation.protocol import ROOTS, Segmentation


def chosen(*more: str) -> Segmentation:
    return settings("ade20k", more)


BASE = chosen("schedule=160k")


def values(one: Segmentation, names: str) -> list[Any]:
    return [getattr(one, name) for name in names.split()]


@pytest.mark.parametrize(
    ("schedule", "steps", "batch", "crop", "scale"),
    [
        ("20k", 20_000, 16, [512, 512], [2048, 512]),
        ("40k", 40_000, 16, [512, 512], [2048, 512]),
        ("80k", 80_000, 16, [512, 512], [2048, 512]),
        ("160k", 160_000, 16, [512, 512], [2048, 512]),
        ("cityscapes_40k", 40_000, 8, [512, 1024], [2048, 1024]),
        ("cityscapes_80k", 80_000, 8, [512, 1024], [2048, 1024]),
    ],
)
def test_schedules_are_mmsegmentations(schedule: str, steps: int, batch: int, crop: list, scale: list) -> None:
    one = chosen(f"schedule={schedule}", "data=made")
    assert values(one, "steps batch crop scale ratios lr_factor") == [steps, batch, crop, scale, [0.5, 2.0], 1.0]
    assert one.name == schedule.removeprefix("cityscapes_")


def test_a_sliding_test_overlaps_by_a_third() -> None:
    """stride=(341, 341) of crops of 512 in mmsegmentation's files."""
    assert BASE.stride == [341, 341]


FOUND = {group: options(group, Segmentation.FOLDER) for group in Segmentation.GROUPS}


def test_the_published_protocols_are_there() -> None:
    assert FOUND["recipe"] == ["resnet", "swin", "vit"]
    assert FOUND["head"] == ["fcn", "linear", "upernet"]
    assert {"20k", "40k", "80k", "160k"} <= set(FOUND["schedule"])


@pytest.mark.parametrize("schedule", FOUND["schedule"])
def test_every_schedule_goes_with_every_recipe_and_head(schedule: str) -> None:
    found = {
        (recipe, head): chosen(f"recipe={recipe}", f"head={head}", f"schedule={schedule}", "data=made")
        for recipe in FOUND["recipe"]
        for head in FOUND["head"]
    }
    assert {(one.family, one.decoder) for one in found.values()} == set(found)
    assert len({protocol("ade20k", one) for one in found.values()}) == len(found)
    for (_, head), one in found.items():
        assert one.frozen == (head == "linear")
        assert one.steps > one.warmup


def test_the_order_of_what_is_asked_for_says_nothing() -> None:
    order = ["recipe=vit", "head=linear", "schedule=40k", "lr=0.5", "mmseg.model.test_cfg.mode=whole"]
    one = chosen(*order)
    assert values(one, "family decoder name lr") == ["vit", "linear", "40k", 0.5]
    assert all(chosen(*order[turn:], *order[:turn]) == one for turn in range(1, len(order)))
    assert chosen(*reversed(order)) == one


RUNTIME = {"root", "classes", "workers", "device", "checkpoint_every", "log_every", "evaluations"}


@pytest.mark.parametrize("name", [field.name for field in fields(Segmentation)])
def test_every_setting_is_part_of_the_protocol_but_where_and_how_fast(name: str) -> None:
    value = getattr(BASE, name)
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, dict):
        other = {**value, "model": {"decode_head": {"dropout_ratio": 0.2}}}
    else:
        other = f"{value}x" if isinstance(value, str) else [*value, *value] if isinstance(value, list) else value + 1
    assert (protocol("ade20k", replace(BASE, **{name: other})) == protocol("ade20k", BASE)) == (name in RUNTIME)


def test_keys_of_mmsegmentation_are_part_of_the_protocol() -> None:
    one = protocol("ade20k", chosen())
    key = "mmseg.model.decode_head.dropout_ratio"
    two, three = (protocol("ade20k", chosen(f"{key}={value}")) for value in (0.2, 0.3))
    assert len({one, two, three}) == 3
    assert chosen(f"{key}=0.2").mmseg == {"model": {"decode_head": {"dropout_ratio": 0.2}}}
    more = chosen("mmseg.train_pipeline.2.prob=0.0", "mmseg.optim_wrapper.clip_grad={max_norm: 1}")
    assert more.mmseg["optim_wrapper"] == {"clip_grad": {"max_norm": 1}}


def test_names_of_classes_are_part_of_the_protocol_and_where_they_stand_is_not(tmp_path: Path) -> None:
    root, names = write_ade20k(tmp_path / "set"), class_file(tmp_path)
    renamed = tmp_path / "elsewhere.txt"
    renamed.write_text(names.read_text())
    (tmp_path / "set").rename(tmp_path / "moved")
    own = ["data=ade20k", f"root={tmp_path / 'moved'}"]
    one = chosen(*own, f"classes={names}")
    assert protocol("ade20k", chosen(*own, f"classes={renamed}")) == protocol("ade20k", one)
    renamed.write_text(names.read_text().replace("Coat", "Cloak").replace("coat", "cloak"))
    assert renamed.read_text() != names.read_text()
    assert protocol("ade20k", chosen(*own, f"classes={renamed}")) != protocol("ade20k", one)
    assert protocol("ade20k", chosen(*own)) != protocol("ade20k", one)
    assert not root.exists()
    (tmp_path / "moved" / "annotations" / "validation" / "scene_000.png").write_bytes(b"changed")
    assert chosen(*own, f"classes={names}").fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lrr=1", "nearest: lr"),
        ("recipe=resnett", "nearest: resnet"),
        ("head=upernt", "nearest: upernet"),
        ("schedule=16k", "nearest: 160k"),
        ("schedule=3x", "no schedule '3x'"),
        ("family=convnet", "family='convnet'"),
        ("decoder=psp", "decoder='psp'"),
        ("optimizer=adam", "nearest: adamw"),
        ("precision=fp16", "nearest: .*fp32"),
        ("data=ade", "nearest: .*ade20k"),
        ("mmseg.modle.decode_head.channels=3", "unknown key mmseg.modle; nearest: model"),
        ("batch=0", "batch=0: must be at least 1"),
        ("steps=0", "steps=0"),
        ("evaluations=0", "evaluations=0"),
        ("made_val=0", "made_val=0"),
        ("channels=0", "channels=0"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("workers=-1", "workers=-1"),
        ("auxiliary=-0.1", "auxiliary=-0.1"),
        ("flip=1.5", "flip=1.5: must be from 0 to 1"),
        ("drop_path=-1", "drop_path=-1"),
        ("fraction=0", "fraction=0.0: must be above 0"),
        ("fraction=1.1", "fraction=1.1"),
        ("layer_decay=0", "layer_decay=0.0"),
        ("lr=0", "lr=0.0: must be above 0"),
        ("lr=.inf", "lr"),
        ("lr_factor=-1", "lr_factor=-1.0"),
        ("crop=[16,64]", "at least 32"),
        ("crop=[64]", "two whole numbers"),
        ("scale=[64,64,64]", "two whole numbers"),
        ("ratios=[2.0,0.5]", "smallest and the largest"),
        ("ratios=[0.0,1.0]", "above 0"),
        ("made_size=31", "at least 32"),
        ("recipe=vit dilated=true", "take dilated=false"),
        ("recipe=swin layer_decay=0.5", "recipe=vit alone"),
        ("recipe=resnet drop_path=0.1", "take 0 with recipe=resnet"),
        ("warmup=800", "warmup=800 takes all of steps=800"),
        ("classes=names.txt", "data=made has its own classes"),
        ("data=ade20k", "needs root=DIR"),
        ("data=ade20k root=nowhere", "nowhere"),
        ("fingerprint=abc", "other images"),
        ("steps=many", "steps"),
    ],
)
def test_wrong_settings_are_one_clear_line(more: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as found:
        chosen(*more.split())
    assert "\n" not in str(found.value)


def test_missing_packages_say_how_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "mmseg" else name)
    with pytest.raises(UsageError, match="the extra transfer"):
        chosen()


def asked(*words: str) -> list[str]:
    return overrides(command.parse(["--ckpt", "abc", *words], OPTIONS, FLAGS))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--data made", "data=made"),
        ("--data=ade20k:DIR --classes names.txt", "data=ade20k root=DIR classes=names.txt"),
        ("--data some/DIR", "data=ade20k root=some/DIR"),
        ("--data voc12aug:DIR --head fcn --schedule 20k", "head=fcn schedule=20k data=voc12aug root=DIR"),
        ("--data cityscapes:DIR --schedule 80k", "schedule=cityscapes_80k data=cityscapes root=DIR"),
        ("--data cityscapes:DIR --schedule 40k", "schedule=cityscapes_40k data=cityscapes root=DIR"),
        ("--data cityscapes:DIR", "data=cityscapes root=DIR"),
        ("--data made --multi-scale --fraction 0.1 --seed 3", "data=made fraction=0.1 seed=3 multi_scale=true"),
        ("--data made --set lr=1 batch=4 --set seed=2", "data=made lr=1 batch=4 seed=2"),
    ],
)
def test_options_become_settings(words: str, expected: str) -> None:
    assert asked(*words.split()) == expected.split()


@pytest.mark.parametrize("root", ROOTS)
def test_keys_of_mmsegmentation_need_no_prefix_on_the_command_line(root: str) -> None:
    assert asked("--data", "made", "--set", f"{root}.a.b=1", "lr=0.2") == ["data=made", f"mmseg.{root}.a.b=1", "lr=0.2"]
    assert asked("--data", "made", "--set", f"mmseg.{root}.a=1") == ["data=made", f"mmseg.{root}.a=1"]


def test_what_is_set_holds_against_the_options() -> None:
    one = chosen(
        *asked("--data", "made", "--seed", "3", "--schedule", "160k", "--set", "seed=5", "steps=9", "warmup=0")
    )
    assert (one.seed, one.steps, one.name) == (5, 9, "160k")
