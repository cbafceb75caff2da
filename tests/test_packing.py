"""Runs that share a data pass: each ends with the bits that it has alone, whatever becomes of the others."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from smog import checkpoint, train
from smog.attempts import attempt, history
from smog.config import dump, with_runtime
from smog.data import sampler
from smog.data.images import Images
from smog.data.sources import with_fingerprint
from smog.errors import BusyError, RunError, StoppedError, UsageError
from smog.identity import run_id
from smog.packing import pack_key
from smog.records import read_lines
from smog.training import Run, train_together

VIT = ("backbone=vit_small", "backbone.args.img_size=16", "backbone.args.embed_dim=32", "backbone.args.depth=2")
DROP = ("backbone.args.drop_path_rate=0.3",)
CELLS = {
    "plain": (),
    "dropped": DROP,
    "groups": (*DROP, "method.num_groups=5", "method.temperature=0.2", "optim.epochs=2"),
    "vit": (*VIT, *DROP, "backbone.args.proj_drop_rate=0.2", "optim.name=adamw", "optim.epochs=4"),
    "fp16": ("optim.precision=fp16", "optim.clip=1", "method.initial_groups=batch", "method.start_groups=3"),
}  # epochs of 6 steps, 3 of them where nothing is said
FAILING = ("optim.lr=1e30", "optim.precision=fp32")


@pytest.fixture
def cells(tiny, in_store):
    """The configurations by name, in a store of their own."""
    return {name: in_store(tiny(*overrides)) for name, overrides in CELLS.items()}


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The folders of the same runs, each trained alone and never disturbed."""
    store = str(tmp_path_factory.mktemp("alone"))
    return {name: train(with_runtime(tiny(*overrides), store=store)) for name, overrides in CELLS.items()}


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the final state: weights, momentum branch, groups, cache, optimiser, random numbers."""
    content = checkpoint.read(folder / checkpoint.FILE)
    kept = content["optimizer"]["state"].items()
    kept = {f"optimizer.{k}.{name}": torch.as_tensor(value) for k, v in kept for name, value in v.items()}
    scaler = {f"scaler.{name}": torch.as_tensor(value) for name, value in content["scaler"].items()}
    return {**content["method"], **kept, **scaler, "rng": content["rng"], "cuda_rng": content["cuda_rng"]}


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / "metrics.jsonl")]


def assert_same_end(one: Path, other: Path) -> None:
    assert one.name == other.name
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert lines(one) == lines(other)
    assert (other / "done").exists()


def assert_all_same(alone: dict[str, Path], folders: list) -> None:
    for one, other in zip(alone.values(), folders, strict=True):
        assert_same_end(one, other)


@pytest.fixture
def at_step(monkeypatch):
    """A function that lets something happen before a run, by its configuration, takes a step."""
    original = Run._one_step

    def arrange(step, action, only=lambda config: True):
        def one_step(self, batch):
            if self.step == step and only(self.config):
                action()
            return original(self, batch)

        monkeypatch.setattr(Run, "_one_step", one_step)

    return arrange


def test_together_they_end_as_alone(cells, alone):
    folders = train_together(list(cells.values()))
    assert_all_same(alone, folders)
    for folder in folders:
        assert [json.loads((folder / name).read_text())["packed"] for name in ("env.json", "done")] == [5, 5]
        assert [one["outcome"] for one in history(folder, "train")] == ["done"]
    assert json.loads((alone["plain"] / "env.json").read_text())["packed"] == 1


def test_random_numbers_matter_here(alone):
    """Else equal bits would say nothing of them."""
    rng = {name: state(folder)["rng"] for name, folder in alone.items()}
    assert not torch.equal(rng["plain"], rng["dropped"])
    assert not torch.equal(rng["dropped"], rng["vit"])


def test_workers_and_the_order_do_not_change_a_bit(cells, alone, in_store):
    names = list(reversed(cells))
    folders = train_together([in_store(cells[name], workers=2) for name in names])
    assert_all_same({name: alone[name] for name in names}, folders)


def test_crops_and_micro_batches(tiny, in_store, tmp_path):
    shared = ("views.local_crops=2", "views.local_size=12", "optim.accumulate=2", "optim.epochs=1")
    configs = [in_store(tiny(*shared, *DROP, "seed=3", f"method.num_groups={k}")) for k in (4, 8)]
    folders = train_together(configs)
    for config, folder in zip(configs, folders, strict=True):
        assert_same_end(train(with_runtime(config, store=str(tmp_path / "alone"))), folder)


def test_bad_images_are_said_once_and_counted_for_each(tiny, in_store, tmp_path, at_step, capsys):
    for number in range(64):
        path = tmp_path / "images" / ("train", "val")[number // 48] / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 20, 3), 3 * number, np.uint8))
        if number in (7, 20, 33):
            path.write_bytes(b"no image")
    images = (
        "data=imagefolder",
        f"data.root={tmp_path / 'images'}",
        "data.on_bad_image=replace",
        "data.train_images=0",
    )
    more = (*images, "data.val_images=8", "views.size=16", "optim.batch=12", "optim.epochs=2", "runtime.keep_images=0")
    one, other = (in_store(tiny(*more, *DROP, f"method.temperature={t}")) for t in (0.1, 0.2))
    whole = [train(with_runtime(config, store=str(tmp_path / "alone"))) for config in (one, other)]
    assert capsys.readouterr().err.count("the next one stands in for it") == 6
    stopped([one], at_step, 2)
    capsys.readouterr()
    folders = train_together([one, other])
    assert capsys.readouterr().err.count("the next one stands in for it") == 3
    assert lines(folders[1])[-1]["bad_images"] == 3
    assert_all_same(dict(enumerate(whole)), folders)


def test_each_image_is_read_and_seen_once_for_all(tiny, in_store, monkeypatch):
    read, viewed = [], []
    decoded, make_views = Images._decoded, sampler.make_views
    monkeypatch.setattr(Images, "_decoded", lambda self, index: (read.append(index), decoded(self, index))[1])
    monkeypatch.setattr(sampler, "make_views", lambda *args: (viewed.append(args[4]), make_views(*args))[1])
    configs = [in_store(tiny(f"method.temperature={t}"), keep_images=0) for t in (0.1, 0.2, 0.3, 0.4)]
    train_together(configs)
    assert len(read) == len(viewed) == 3 * 96


def test_time_is_shared_out(tiny, in_store, monkeypatch):
    """A batch that takes a while is paid for by all of its runs, a turn by its own."""
    make, one_step = sampler.Batches.__getitem__, Run._one_step
    slow = in_store(tiny("method.temperature=0.2", "optim.epochs=1"))
    quick = [in_store(tiny(f"method.temperature={t}", "optim.epochs=1")) for t in (0.3, 0.4, 0.5)]
    monkeypatch.setattr(sampler.Batches, "__getitem__", lambda self, step: (time.sleep(0.2), make(self, step))[1])
    monkeypatch.setattr(
        Run, "_one_step", lambda self, b: (time.sleep(0.3 * (run_id(self.config) == first)), one_step(self, b))[1]
    )
    first = run_id(with_fingerprint(slow))
    began = time.monotonic()
    found = [json.loads((folder / "done").read_text())["seconds"] for folder in train_together([slow, *quick])]
    assert sum(found) < time.monotonic() - began
    assert found[0] > 6 * (0.3 + 0.2 / 4)
    assert all(6 * 0.2 / 4 <= seconds < found[0] - 6 * 0.2 for seconds in found[1:])


# ---- cut and resumed in other company ----


def stopped(configs, at_step, step, only=lambda config: True) -> StoppedError:
    at_step(step, lambda: signal.raise_signal(signal.SIGTERM), only)
    with pytest.raises(StoppedError) as caught:
        train_together(configs)
    at_step(-1, None)
    return caught.value


def steps(folders) -> list[int]:
    return [checkpoint.read(folder / "last.pt")["step"] for folder in folders]


def test_a_signal_saves_all_at_the_same_step(cells, alone, at_step):
    first = cells["dropped"].backbone.args, cells["dropped"].method
    error = stopped(list(cells.values()), at_step, 7, lambda config: (config.backbone.args, config.method) == first)
    assert (error.number, error.code) == (signal.SIGTERM, 143)
    folders = [Path(cells["plain"].runtime.store) / folder.name for folder in alone.values()]
    assert steps(folders) == [8] * 5
    for folder, of in zip(folders, (18, 18, 12, 24, 18), strict=True):
        assert f"run {folder.name}: stopped at step 8 of {of}" in str(error)
        assert [one["outcome"] for one in history(folder, "train")] == ["stopped"]
    assert str(error).endswith("; the same command goes on from the last checkpoint")
    assert_all_same(alone, train_together(list(cells.values())))


def test_a_signal_during_the_last_step_of_some_stops_the_others(cells, alone, at_step):
    error = stopped([cells["groups"], cells["vit"]], at_step, 11)  # the first has 12 steps
    assert alone["groups"].name not in str(error)
    assert f"run {alone['vit'].name}: stopped at step 12 of 24" in str(error)
    assert (Path(cells["vit"].runtime.store) / alone["groups"].name / "done").exists()


def test_runs_that_stand_at_different_steps_go_on_together(cells, alone, at_step):
    """Two stopped together, one of them goes on alone for a while, others are new, one is done."""
    stopped([cells["dropped"], cells["vit"]], at_step, 4)
    stopped([cells["vit"]], at_step, 10)
    train(cells["groups"])
    before = (alone["groups"] / "done").read_bytes()
    assert_all_same(alone, train_together(list(cells.values())))
    assert (alone["groups"] / "done").read_bytes() == before


def test_no_batch_is_made_for_nobody(cells, alone, at_step, monkeypatch):
    """One has 12 steps, the other stands at step 15: between them nobody is there."""
    stopped([cells["vit"]], at_step, 14)
    made, make = [], sampler.Batches.__getitem__
    monkeypatch.setattr(sampler.Batches, "__getitem__", lambda self, step: (made.append(step), make(self, step))[1])
    folders = train_together([cells["vit"], cells["groups"]])
    assert made == [*range(12), *range(15, 24)]
    assert_all_same({name: alone[name] for name in ("vit", "groups")}, folders)


def test_begun_together_finished_alone(cells, alone, at_step):
    stopped(list(cells.values()), at_step, 5)
    assert_all_same(alone, [train(config) for config in cells.values()])


KILLED = """
import os, sys
from pathlib import Path
from smog.config import load
from smog.training import Run, train_together
name, count, *paths = sys.argv[1:]
original, calls = getattr(Run, name), []
def counted(*args):
    calls.append(name)
    return os._exit(9) if len(calls) == int(count) else original(*args)
setattr(Run, name, counted)
train_together([load(Path(path)) for path in paths])
"""


@pytest.mark.parametrize(
    ("name", "count", "at"),
    [
        ("_one_step", 3, None),
        ("_one_step", 33, [6] * 5),
        ("_save", 8, [2, 2, 1, 1, 1]),
        ("_save", 54, [11] * 3 + [10] * 2),
    ],
)
def test_killed_in_the_middle_of_the_turns(cells, alone, tmp_path, in_store, name, count, at):
    """Without a word, some runs a step ahead of the others; some then go on together, the others alone."""
    paths = []
    for cell, config in cells.items():
        paths.append(tmp_path / f"{cell}.yaml")
        paths[-1].write_text(dump(in_store(config, checkpoint_every=0.0)))
    done = subprocess.run([sys.executable, "-c", KILLED, name, str(count), *map(str, paths)], check=False)
    assert done.returncode == 9
    folders = [Path(cells["plain"].runtime.store) / folder.name for folder in alone.values()]
    assert at is None or steps(folders) == at
    configs = list(cells.values())
    assert_all_same(alone, [train(configs[0]), *train_together(configs[:0:-1])[::-1]])
    assert [one["outcome"] for one in history(folders[0], "train")] == ["killed", "done"]


# ---- what fails leaves ----


def test_a_loss_that_is_not_finite_takes_only_its_run(cells, alone, tiny, in_store):
    failing = in_store(tiny(*FAILING))
    *before, error, last = train_together([*list(cells.values())[:4], failing, cells["fp16"]])
    assert_all_same(alone, [*before, last])
    assert isinstance(error, RunError)
    assert error.kind == "nan"
    folder = Path(failing.runtime.store) / run_id(with_fingerprint(failing))
    [found] = history(folder, "train")
    assert (found["outcome"], found["reason"]) == ("nan", str(error))
    with pytest.raises(RunError, match="the loss is"):
        train(failing)
    assert [one["outcome"] for one in history(folder, "train")] == ["nan", "nan"]


def test_what_fails_in_one_turn_takes_only_its_run(cells, alone, at_step):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_step(3, fail, lambda config: config.backbone.name.startswith("vit"))
    outcomes = dict(zip(cells, train_together(list(cells.values())), strict=True))
    assert isinstance(outcomes["vit"], torch.OutOfMemoryError)
    folder = Path(cells["vit"].runtime.store) / alone["vit"].name
    assert history(folder, "train")[0]["outcome"] == "memory"
    at_step(-1, None)
    assert_all_same(alone, [train(cells["vit"]) if name == "vit" else one for name, one in outcomes.items()])


def test_what_failed_or_ended_leaves_its_memory_to_the_others(cells, at_step, monkeypatch):
    networks, left = {}, []
    at_step(3, lambda: 1 / 0, lambda config: config.backbone.name.startswith("vit"))
    original = Run._one_step

    def one_step(self, batch):
        networks[self.steps] = weakref.ref(self.method)
        if self.steps == 18:
            left.append([steps for steps, network in networks.items() if network()])
        return original(self, batch)

    monkeypatch.setattr(Run, "_one_step", one_step)
    error, *_ = train_together([cells["vit"], cells["groups"], cells["plain"]])
    assert isinstance(error, ZeroDivisionError)
    assert left == [*[[24, 12, 18]] * 3, *[[12, 18]] * 9, *[[18]] * 6]


def test_wrong_use_of_one_is_its_own(cells, alone, tiny, in_store):
    wrong = in_store(tiny("backbone.args.nonsense=1"))
    error, folder = train_together([wrong, cells["plain"]])
    assert isinstance(error, UsageError)
    assert_same_end(alone["plain"], folder)
    assert json.loads((folder / "env.json").read_text())["packed"] == 1
    assert not (folder.parent / run_id(with_fingerprint(wrong))).exists()


def test_an_image_that_cant_be_read_fails_those_that_need_it(cells, alone, monkeypatch):
    make = sampler.Batches.__getitem__

    def broken(self, step):
        if step == 15:
            raise RunError("image can't be read", kind="data")
        return make(self, step)

    monkeypatch.setattr(sampler.Batches, "__getitem__", broken)
    outcomes = dict(zip(cells, train_together(list(cells.values())), strict=True))
    assert_same_end(alone["groups"], outcomes.pop("groups"))  # it has 12 steps
    assert {error.kind for error in outcomes.values()} == {"data"}
    monkeypatch.undo()
    assert_all_same(alone, train_together(list(cells.values())))


def test_a_busy_run_is_left_out(cells, alone):
    folder = Path(cells["vit"].runtime.store) / alone["vit"].name
    with attempt(folder, "train"):
        outcomes = dict(zip(cells, train_together(list(cells.values())), strict=True))
    assert isinstance(outcomes.pop("vit"), BusyError)
    assert not (folder / "config.yaml").exists()
    for name, other in outcomes.items():
        assert_same_end(alone[name], other)


def test_a_person_who_interrupts_ends_all(cells, alone, at_step):
    def interrupt():
        raise KeyboardInterrupt

    at_step(4, interrupt, lambda config: config.backbone.name.startswith("vit"))
    with pytest.raises(KeyboardInterrupt):
        train_together(list(cells.values()))
    for folder in alone.values():
        [found] = history(Path(cells["vit"].runtime.store) / folder.name, "train")
        assert found["outcome"] == "stopped"


# ---- who can share, and where ----


@pytest.mark.parametrize(
    "override",
    ["seed=1", "optim.batch=12", "optim.accumulate=2", "views.flip=0.1", "data.train_images=95", "runtime.threads=2"],
)
def test_what_differs_in_its_images_or_its_place_is_refused(tiny, in_store, override):
    configs = [in_store(tiny()), in_store(tiny(override))]
    assert len({pack_key(with_fingerprint(config)) for config in configs}) == 2
    with pytest.raises(UsageError, match="can't share their images"):
        train_together(configs)
    assert not Path(configs[0].runtime.store).exists()


def test_what_does_not_touch_the_images_keeps_the_key(cells, tiny, in_store):
    configs = [*cells.values(), in_store(tiny("runtime.log_every=7", "optim.precision=fp32", "optim.lr=0.3"))]
    assert len({pack_key(with_fingerprint(config)) for config in configs}) == 1


def test_compiled_runs_share_with_none(tiny):
    keys = [pack_key(with_fingerprint(tiny("runtime.compile=true", f"optim.lr={lr}"))) for lr in (0.1, 0.2)]
    assert len({*keys, pack_key(with_fingerprint(tiny()))}) == 3


def test_the_key_is_had_without_torch():
    code = "import sys, smog.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_several_processes_are_refused(cells, monkeypatch):
    places = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="trained together in one process"):
        train_together(list(cells.values()))


def test_on_a_terminal_each_run_has_lines_and_no_bar(cells, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    folders = train_together([cells["plain"], cells["dropped"]])
    found = capsys.readouterr().err.splitlines()
    assert [line.split()[:3] for line in found] == [[folder.name, "step", "18/18"] for folder in folders]
    assert os.isatty(2) or sys.stderr.isatty(), "the stream is the caller's again"
