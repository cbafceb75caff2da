"""What a detection protocol asks for: its files, its schedule, the command line that chooses among them."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smog.errors import UsageError
from smog.tasks import protocol, settings
from transfer import protocols
from transfer.coco import main, overrides, parse

ROOT = Path(__file__).parents[1]


def chosen(*more: str) -> protocols.Detection:
    return settings("coco", ["engine=torchvision", *more])


def test_1x_is_detectron2s_90000_steps_of_16_images() -> None:
    one = chosen("arch=r50_fpn", "schedule=1x")
    assert (one.steps, one.batch, one.rate(1000), one.freeze) == (90_000, 16, 0.02, 0)
    assert one.rate(0) == pytest.approx(0.02 * 0.001)
    assert [one.rate(step) for step in (59_999, 60_001, 80_001)] == pytest.approx([0.02, 0.002, 0.0002])
    assert chosen("schedule=2x").steps == 180_000


def test_voc_is_mocos_24000_steps_without_masks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs root=DIR"):
        chosen("arch=r50_c4", "schedule=voc_24k")


@given(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.floats(0, 1))
def test_another_batch_keeps_the_epochs_and_scales_the_rate(batch: int, share: float) -> None:
    one = BASE
    other = replace(one, batch=batch)
    assert other.steps * batch == pytest.approx(one.steps * 16, rel=0.001)
    step = int(share * (other.steps - 1))
    assert other.rate(step) == pytest.approx(one.rate(step * batch // 16) * batch / 16, rel=0.15, abs=1e-4)


BASE = chosen("schedule=1x")


def test_what_changes_a_number_changes_the_protocol() -> None:
    one = protocol("coco", chosen())
    assert protocol("coco", chosen("workers=3", "log_every=7", "evaluations=4")) == one
    for more in ("lr=0.01", "seed=1", "fraction=0.5", "masks=false", "arch=c4", "schedule=1x", "made_train=64"):
        assert protocol("coco", chosen(more)) != one, more


RUNTIME = {"root", "workers", "device", "checkpoint_every", "log_every", "evaluations"}


@pytest.mark.parametrize("name", [field.name for field in fields(protocols.Detection)])
def test_every_setting_is_part_of_the_protocol_but_where_and_how_fast(name: str) -> None:
    value = getattr(BASE, name)
    if isinstance(value, bool):
        other = not value
    else:
        other = f"{value}x" if isinstance(value, str) else [*value, *value] if isinstance(value, list) else value + 1
    assert (protocol("coco", replace(BASE, **{name: other})) == protocol("coco", BASE)) == (name in RUNTIME)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lrr=1", "nearest: lr"),
        ("schedule=3x", "no schedule '3x'"),
        ("arch=r50_fpm", "nearest: r50_fpn"),
        ("head=ssd", "head='ssd'"),
        ("batch=6 micro_batch=4", "multiple"),
        ("fraction=0", "fraction=0.0"),
        ("sizes=[8]", "at least 32"),
        ("drops=[1.5]", "drops="),
        ("lr=0", "above 0"),
        ("regions=3", "at least 4"),
        ("data=coco", "needs root=DIR"),
        ("data=coco root=nowhere", "nowhere"),
        ("fingerprint=abc", "other images"),
    ],
)
def test_wrong_settings_are_one_clear_line(more: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as found:
        chosen(*more.split())
    assert "\n" not in str(found.value)


def test_missing_packages_say_how_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ["detectron2"]
    monkeypatch.setattr(protocols.importlib.util, "find_spec", lambda name: None if name in lacking else name)
    with pytest.raises(UsageError, match=r"INSTALL\.md"):
        settings("coco", ["engine=detectron2"])
    assert settings("coco", []).engine == "torchvision"
    lacking.append("faster_coco_eval")
    with pytest.raises(UsageError, match="the extra transfer"):
        settings("coco", [])


def test_options_become_settings() -> None:
    given_ = parse(
        ["--ckpt", "abc", "--data=coco:DIR", "--arch", "c4", "--schedule=1x", "--seed", "3", "--set", "lr=1", "batch=4"]
    )
    assert given_["--ckpt"] == "abc"
    assert overrides(given_) == ["arch=c4", "schedule=1x", "data=coco", "root=DIR", "seed=3", "lr=1", "batch=4"]
    assert "data=voc" in overrides(parse(["--ckpt", "a", "--data", "voc:DIR"]))
    assert "root=some/DIR" in overrides(parse(["--ckpt", "a", "--data", "some/DIR"]))
    assert "schedule=swin_smoke" in overrides(parse(["--ckpt", "a", "--data", "made", "--arch", "swin_fpn"]))
    assert "schedule=swin_1x" in overrides(
        parse(["--ckpt", "a", "--data", "made", "--arch", "swin_fpn", "--schedule", "1x"])
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ckpt", "a"], "--data is needed"),
        (["--data", "made"], "--ckpt is needed"),
        (["--ckpt"], "--ckpt needs a value"),
        (["--ckpt", "--data", "made"], "--ckpt needs a value"),
        (["--cpkt", "a"], "nearest: --ckpt"),
        (["made"], "'made' is not known"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments: list[str], said: str, capsys) -> None:
    assert main(arguments) == 2
    said_there = capsys.readouterr().err
    assert said in said_there
    assert said_there.count("\n") == 1


def test_help_is_light() -> None:
    """In a process of its own: no torch, no hydra."""
    code = (
        "import sys; from transfer.coco import main; main(['--help']); "
        "print([name for name in ('torch', 'hydra', 'detectron2') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--ckpt" in done.stdout
