"""Fine-tuning of segmentors on made scenes: it learns, resumes with the same bits, and refuses what does not fit before
anything is written."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_trainings import MMSEG, assert_same, fine_tune, rows_of, small, trained, training

from smog import checkpoint
from smog.errors import RunError, StoppedError, UsageError
from smog.pretrained import Pretrained, open_pretrained
from transfer.convert import convert
from transfer.segmentation.batches import Batches
from transfer.segmentation.runner import Follow
from transfer.segmentation.training import Training, opened
from transfer.spec import spec_of

pytestmark = MMSEG


@pytest.fixture(scope="module")
def source() -> Pretrained:
    return open_pretrained("random", model="resnet10_tiny")


def stopped(patch: pytest.MonkeyPatch, source: Pretrained, chosen: Any, work: Path, step: int) -> None:
    """A fine-tuning that is asked to stop in a step."""
    after = Training.after

    def asked(found: Training, number: int, losses: Any) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        after(found, number, losses)

    with patch.context() as own:
        own.setattr(Training, "after", asked)
        with pytest.raises(StoppedError, match=f"saved at step {step} of {chosen.steps}"):
            fine_tune(source, chosen, work)
    assert checkpoint.latest(work)["step"] == step


# ---- each backbone ----


@pytest.mark.parametrize(
    ("model", "recipe", "largest"),
    [
        ("resnet50", "resnet", 0),
        ("swin_tiny_patch4_window7_224", "swin", 1e-4),
        ("deit_small_patch16_224", "vit", 0),
    ],
)
def test_each_backbone_trains_stops_goes_on_and_is_evaluated(
    model: str, recipe: str, largest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = open_pretrained("random", model=model)
    chosen = small(f"recipe={recipe}", "batch=2", "steps=3", "warmup=1", "made_val=2")
    expected = fine_tune(source, chosen, tmp_path / "whole")
    said = capsys.readouterr()
    assert "stage 4" in said.out + said.err
    assert "largest difference" in said.out + said.err
    assert max(row["max_abs"] for row in expected.more["parity"][1:]) <= largest
    stopped(monkeypatch, source, chosen, tmp_path / "work", 2)
    found = fine_tune(source, chosen, tmp_path / "work")
    assert found == expected
    assert rows_of(tmp_path / "work") == rows_of(tmp_path / "whole")
    weights, state = (checkpoint.latest(tmp_path / name)["model"] for name in ("whole", "work"))
    assert_same(weights, state)
    assert set(expected.metrics) == {"miou", "macc", "aacc"}
    before = source.network.state_dict()
    if recipe == "swin":
        before = convert(before, spec_of(source.network), "mmseg")
    floats = [name for name in before if before[name].is_floating_point()]
    moved = [name for name in floats if not torch.equal(weights[f"backbone.network.{name}"], before[name])]
    assert len(moved) > len(floats) / 2


# ---- killed, stopped, resumed ----

FULL = ("evaluations=3", "multi_scale=true", "checkpoint_every=0")


@pytest.fixture(scope="module")
def whole(source: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning that nothing cut, and that evaluates once."""
    work = tmp_path_factory.mktemp("whole") / "work"
    trained(source, small(), work)
    return work


def last_of(work: Path) -> dict[str, torch.Tensor]:
    return checkpoint.latest(work)["model"]


def test_what_remains_of_a_training(whole: Path) -> None:
    names = {"last.pt", "metrics.jsonl", "predictions.png", "curves.png", "config.py", "mmengine"}
    assert {path.name for path in whole.iterdir()} == names
    assert set(checkpoint.latest(whole)) >= {"protocol", "step", "seconds", "model"}
    assert not {"optimizer", "schedulers"} & set(checkpoint.latest(whole))
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    for row in rows[:-1]:
        assert row["loss"] == pytest.approx(row["loss_decode"] + row["loss_aux"], rel=1e-5)
        assert row["epoch"] == row["step"] * 4 / 8
    assert set(rows[-1]) == {"step", "miou", "macc", "aacc"}


def test_rates_rise_and_fall_as_the_schedule_says(whole: Path) -> None:
    """From a tenth of 0.1 over two steps, then by the power 0.9 to the least, 1e-4, in the last step."""
    found = [row["lr"] for row in rows_of(whole)[:-1]]
    assert found[:2] == pytest.approx([0.01, 0.1])
    assert found[2:] == pytest.approx([(0.1 - 1e-4) * (1 - step / 3) ** 0.9 + 1e-4 for step in range(4)], rel=1e-6)


def test_more_looks_on_the_way_change_nothing(
    source: Pretrained, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a stop at a step between them."""
    chosen = small("evaluations=3")
    stopped(monkeypatch, source, chosen, tmp_path / "work", 3)
    trained(source, chosen, tmp_path / "work")
    rows = rows_of(tmp_path / "work")
    assert [row["step"] for row in rows if "miou" in row] == [2, 4, 6]
    assert [row for row in rows if "loss" in row] == rows_of(whole)[:-1]
    assert rows[-1] == rows_of(whole)[-1]
    assert_same(last_of(tmp_path / "work"), last_of(whole))


def test_a_process_that_reads_the_images_changes_nothing(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    state = trained(source, small("workers=1"), tmp_path / "work")
    assert not multiprocessing.active_children()  # it ends with the training
    assert rows_of(tmp_path / "work") == rows_of(whole)
    assert_same(state, last_of(whole))


KILLS: list[tuple[Any, str, int]] = [
    (Follow, "before_train_iter", 2),  # at which call
    (checkpoint, "write", 3),
    (Training, "evaluate", 1),
    (Training, "_multi_scale", 1),
    (Training, "_close", 1),
]


def killed_at(owner: Any, name: str, call: int, work: Callable[[], Any]) -> None:
    """Do work, and die at a call of a function."""
    torch.set_num_threads(1)
    own, calls = getattr(owner, name), [0]

    def deadly(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*args, **more)

    setattr(owner, name, deadly)
    work()


def test_killed_at_any_moment_it_ends_with_the_same_bits(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    """kill -9 before a step, in writing, and in each part of the last evaluation, one after the other."""
    chosen, context = small(*FULL), multiprocessing.get_context("fork")
    expected = fine_tune(source, chosen, tmp_path / "whole")
    for owner, name, call in KILLS:
        work = lambda: fine_tune(source, chosen, tmp_path / "work")  # noqa: E731 (forked, not pickled)
        process = context.Process(target=killed_at, args=(owner, name, call, work))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, name
    assert fine_tune(source, chosen, tmp_path / "work") == expected
    assert rows_of(tmp_path / "work") == rows_of(tmp_path / "whole")
    assert [row for row in rows_of(tmp_path / "work") if "loss" in row] == rows_of(whole)[:-1]
    for name in ("whole", "work"):
        assert_same(last_of(tmp_path / name), last_of(whole))
    assert set(expected.metrics) == {f"{name}{end}" for name in ("miou", "macc", "aacc") for end in ("", "_ms")}
    assert expected.more["per_class_ms"].keys() == expected.more["per_class"].keys()


def test_a_loss_that_is_not_finite_is_said_and_not_saved(source: Pretrained, tmp_path: Path) -> None:
    """Between two lines of the log as well."""
    with pytest.raises(RunError, match=r"the loss is .* the checkpoint before is kept") as found:
        fine_tune(source, small("lr=1e30", "warmup=0", "checkpoint_every=0", "log_every=1000"), tmp_path / "work")
    assert found.value.kind == "nan"
    assert all(torch.isfinite(value).all() for value in last_of(tmp_path / "work").values())


# ---- it learns ----


def test_it_learns_four_images(tmp_path: Path) -> None:
    source = open_pretrained("random", model="resnet10_small")
    few = ("made_train=4", "steps=100", "warmup=5", "ratios=[1,1]", "flip=0")
    chosen = small(*few, "optimizer=adamw", "lr=3e-4", "auxiliary=0", "channels=64", "weight_decay=0")
    fine_tune(source, chosen, tmp_path / "work")
    losses = [row["loss"] for row in rows_of(tmp_path / "work") if "loss" in row]
    assert losses[-1] < 0.15 * losses[0]
    found = training(source, chosen, tmp_path / "other")
    found.val = found.train
    found.model.load_state_dict(last_of(tmp_path / "work"))
    assert scored(found)["aacc"] > 95


@torch.no_grad()
def scored(found: Training) -> dict[str, float]:
    """The figures of the network of a training as it stands."""
    model, right, many = found.model.eval(), 0, 0
    for batch in found._testing(found.config["test_pipeline"]):
        for sample in model.test_step(batch):
            truth = sample.gt_sem_seg.data
            right += int((sample.pred_sem_seg.data == truth)[truth != 255].sum())
            many += int((truth != 255).sum())
    return {"aacc": 100 * right / many}


def test_the_result_is_that_of_the_network_that_was_saved(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    """Counted again, from the weights alone."""
    found = training(source, small(), tmp_path)
    found.model.load_state_dict(last_of(whole))
    assert scored(found)["aacc"] == pytest.approx(rows_of(whole)[-1]["aacc"], abs=1e-9)


@pytest.mark.parametrize("head", ["upernet", "fcn", "linear"])
def test_each_head_learns(source: Pretrained, head: str, tmp_path: Path) -> None:
    chosen = small(f"head={head}", "steps=30", "warmup=2", "made_train=4", "flip=0", "channels=16")
    fine_tune(source, chosen, tmp_path / "work")
    losses = [row["loss_decode"] for row in rows_of(tmp_path / "work") if "loss" in row]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_linear_head_leaves_the_backbone(source: Pretrained, tmp_path: Path) -> None:
    """Every weight and every statistic, to the bit."""
    state = trained(source, small("head=linear"), tmp_path / "work")
    body = "backbone.network."
    own = {name.removeprefix(body): value for name, value in state.items() if name.startswith(body)}
    before = source.network.state_dict()
    assert_same({name: value for name, value in own.items() if name in before}, before)
    assert not any(name.startswith("auxiliary") for name in state)


def first_weights(source: Pretrained, work: Path) -> dict[str, torch.Tensor]:
    """The network before its first step."""
    found: dict[str, torch.Tensor] = {}
    before = Follow.before_train_iter

    def kept(hook: Follow, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not batch_idx:
            found.update({name: value.clone() for name, value in runner.segmentor.state_dict().items()})
        before(hook, runner, batch_idx, data_batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Follow, "before_train_iter", kept)
        fine_tune(source, small("steps=1", "warmup=0"), work)
    return found


def test_new_parts_start_alike_whatever_the_checkpoint(source: Pretrained, tmp_path: Path) -> None:
    other = open_pretrained("random", model="resnet10_tiny", seed=1)
    one, two = first_weights(source, tmp_path / "one"), first_weights(other, tmp_path / "two")
    new = [name for name in one if not name.startswith("backbone.")]
    assert len(new) > 20
    assert_same({name: one[name] for name in new}, {name: two[name] for name in new})
    for state, given in ((one, source), (two, other)):
        body = {name.removeprefix("backbone.network."): value for name, value in state.items() if name not in new}
        assert_same(body, given.network.state_dict())
    assert not torch.equal(one["backbone.network.conv1.weight"], two["backbone.network.conv1.weight"])


# ---- how it is tested ----


def test_one_crop_of_the_whole_image_is_the_whole_image(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    found = training(source, small("sliding=true"), tmp_path)
    assert found.config["model"]["test_cfg"]["mode"] == "slide"
    found.model.load_state_dict(last_of(whole))
    assert scored(found)["aacc"] == pytest.approx(rows_of(whole)[-1]["aacc"], abs=1e-9)


def test_overlapping_crops_are_averaged(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    """Over an image of 48 pixels: crops of 32 begin at 0 and at 16, the last moved to the edge."""
    found = training(source, small("sliding=true", "scale=[48,48]", "made_size=48"), tmp_path)
    found.model.load_state_dict(last_of(whole))
    model = found.model.eval()
    assert model.test_cfg["stride"] == [21, 21]
    images = torch.randn(1, 3, 48, 48)
    metas = [{"img_shape": (48, 48), "ori_shape": (48, 48)}]
    total, often = torch.zeros(1, 11, 48, 48), torch.zeros(48, 48)
    with torch.no_grad():
        for top in (0, 16):
            for left in (0, 16):
                part = slice(top, top + 32), slice(left, left + 32)
                crop = images[:, :, part[0], part[1]]
                total[:, :, part[0], part[1]] += model.encode_decode(crop, [{"img_shape": crop.shape[2:]}])
                often[part] += 1
        torch.testing.assert_close(model.slide_inference(images, metas), total / often)


def test_a_single_scale_not_mirrored_is_the_single_test(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    only = "[[{type:Resize,scale:[32,32],keep_ratio:true}],[{type:RandomFlip,prob:0.0}],[{type:PackSegInputs}]]"
    found = fine_tune(source, small("multi_scale=true", f"mmseg.tta_pipeline.0.transforms={only}"), tmp_path / "work")
    for name in ("miou", "macc", "aacc"):
        assert found.metrics[f"{name}_ms"] == found.metrics[name] == rows_of(whole)[-1][name]
    assert found.more["per_class_ms"] == found.more["per_class"]


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("resnet10_tiny", ("recipe=vit",), r"recipe=vit, and the checkpoint holds resnet18, a resnet; take recipe=res"),
        ("deit_small_patch16_224", ("recipe=vit", "crop=[40,32]"), r"crop=\[40, 32\]: .* patches of 16 px"),
        ("resnet10_tiny", ("batch=1",), r"batch=1: UPerNet .* take batch=2"),
        ("resnet10_tiny", ("mmseg.train_pipeline.0.type=RandomResise",), r"mmseg\.train_pipeline: .*RandomResise"),
        ("resnet10_tiny", ("mmseg.train_pipeline.0.scal=3",), r"mmseg\.train_pipeline: .*scal"),
        ("resnet10_tiny", ("mmseg.test_pipeline.0.scal=3",), r"mmseg\.test_pipeline: .*scal"),
        ("resnet10_tiny", ("mmseg.tta_pipeline.0.transform=3",), r"mmseg\.tta_pipeline: .*transform"),
        ("resnet10_tiny", ("mmseg.optim_wrapper.optimizer.momentun=3",), r"mmseg\.optim_wrapper: .*momentun"),
        ("resnet10_tiny", ("mmseg.optim_wrapper.clip_gradd=3",), r"mmseg\.optim_wrapper: .*clip_gradd"),
        ("resnet10_tiny", ("mmseg.param_scheduler.0.powr=3",), r"mmseg\.param_scheduler: .*powr"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    model: str, more: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as found:
        fine_tune(open_pretrained("random", model=model), small(*more), tmp_path / "work")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "work").exists()


def test_a_batch_that_processes_can_not_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer.segmentation.batches.world_size", lambda: 3)
    chosen = small()
    with pytest.raises(UsageError, match="batch=4 can't be shared evenly by 3 processes: take a multiple of 3"):
        Batches(opened(chosen, "train"), chosen, [])


def test_gradients_can_be_clipped(source: Pretrained, whole: Path, tmp_path: Path) -> None:
    """A key that the configuration does not have, with keys of its own."""
    trained(source, small("mmseg.optim_wrapper.clip_grad.max_norm=1e-3"), tmp_path / "work")
    assert rows_of(tmp_path / "work")[0] == rows_of(whole)[0]
    assert rows_of(tmp_path / "work")[2] != rows_of(whole)[2]
