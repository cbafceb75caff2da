"""A checkpoint that a crash took has a previous one beside it; one that does not fit says what does not."""

import shutil
from pathlib import Path

import pytest
import torch

from smog import checkpoint, compose, load_backbone, train
from smog.errors import RunError, UsageError
from smog.records import read_lines
from smog.training import Run

EAGER = ("recipe=smoke", "runtime.threads=1", "runtime.checkpoint_every=0.0001", "runtime.log_every=1")


def smoke(store: Path, *overrides: str) -> Path:
    return train(compose([*EAGER, f"runtime.store={store}", *overrides]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return smoke(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def once_cut(tmp_path_factory) -> Path:
    """A store in which the run was cut in step 10."""
    store = tmp_path_factory.mktemp("cut")
    original = Run._one_step

    def one_step(self, batch):
        if self.step == 10:
            raise RunError("cut")
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_one_step", one_step)
        with pytest.raises(RunError, match="cut"):
            smoke(store)
    return store


@pytest.fixture
def cut(once_cut, whole, tmp_path) -> Path:
    """A folder of a run that was cut in step 10, to be damaged."""
    return shutil.copytree(once_cut, tmp_path / "store") / whole.name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / "metrics.jsonl")]


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = (checkpoint.read(folder / checkpoint.FILE) for folder in (one, other))
    assert ours["step"] == theirs["step"]
    assert all(torch.equal(ours["method"][name], theirs["method"][name]) for name in ours["method"])
    assert lines(one) == lines(other)


def test_two_checkpoints_are_kept_while_a_run_lasts(cut, whole):
    assert [checkpoint.read(cut / name)["step"] for name in ("last.pt", "previous.pt")] == [10, 9]
    assert sorted(path.name for path in whole.iterdir()) == [
        "attempts",
        "config.yaml",
        "done",
        "env.json",
        "last.pt",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_previous_one_stands_in_and_that_is_said(cut, whole, damage, capsys):
    damage(cut / "last.pt")
    folder = smoke(cut.parent)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "previous.pt" in line]
    assert "last.pt" in line
    assert line.endswith("; previous.pt beside it stands in, at step 9")
    assert_same_end(whole, folder)


def test_a_damaged_file_does_not_take_the_place_of_the_good_one(cut, monkeypatch):
    """Killed again after the first save that follows, there is still something to go on from."""
    truncate(cut / "last.pt")
    monkeypatch.setattr(Run, "_one_step", lambda *_: (_ for _ in ()).throw(RunError("cut")))
    with pytest.raises(RunError):
        smoke(cut.parent)
    assert checkpoint.read(cut / "last.pt")["step"] == 9
    assert not (cut / "previous.pt").exists()


def test_both_damaged_are_refused_by_the_name_of_the_last(cut):
    truncate(cut / "last.pt")
    truncate(cut / "previous.pt")
    with pytest.raises(UsageError, match=r"last\.pt is no checkpoint that can be read"):
        smoke(cut.parent)


def test_a_kill_between_the_renames_leaves_the_previous_one(cut, whole, monkeypatch):
    original, calls = checkpoint.os.replace, []

    def replace(source, target):
        calls.append(Path(target).name)
        if calls.count("last.pt") == 3:
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        smoke(cut.parent)
    monkeypatch.undo()
    assert not (cut / "last.pt").exists()
    assert_same_end(whole, smoke(cut.parent))


def test_a_checkpoint_of_another_configuration_says_what_differs(cut, tmp_path):
    other = ["seed=1", "method.num_groups=4", "optim.lr=0.5", "views.flip=0.25"]
    folder = smoke(tmp_path / "other", *other)
    (folder / "done").unlink()
    shutil.copy(cut / "last.pt", folder / "last.pt")
    expected = (
        f"belongs to run {cut.name}, not to {folder.name}: seed is 0 there and 1 here, views.flip is 0.5 there and "
        "0.25 here, method.num_groups is 8 there and 4 here, and 1 more"
    )
    with pytest.raises(UsageError, match=expected):
        smoke(tmp_path / "other", *other)


def test_a_checkpoint_of_an_older_program_is_refused(cut):
    content = checkpoint.read(cut / "last.pt")
    del content["method"]["predictor.3.bias"]
    torch.save(content, cut / "last.pt")
    with pytest.raises(UsageError, match=r"of another version of the program.*predictor\.3\.bias"):
        smoke(cut.parent)


def test_something_else_in_the_place_of_a_checkpoint_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "last.pt")
    with pytest.raises(UsageError, match="no checkpoint that can be read: it holds one Tensor"):
        checkpoint.read(tmp_path / "last.pt")


def test_the_state_of_fp16s_scaler_is_kept(tmp_path):
    config = compose(["recipe=smoke"])
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    from smog.data.sources import with_fingerprint

    config = with_fingerprint(config)
    ours, theirs = torch.amp.GradScaler("cpu", init_scale=128.0), torch.amp.GradScaler("cpu")
    ours.scale(torch.ones(()))
    checkpoint.save(tmp_path, config, 3, network, optimizer, {"seconds": 1.0}, ours)
    step, progress = checkpoint.restore(tmp_path, config, network, optimizer, theirs)
    assert (step, progress, theirs.get_scale()) == (3, {"seconds": 1.0}, 128.0)


def test_another_number_of_processes_is_said(cut, whole, capsys):
    content = checkpoint.read(cut / "last.pt")
    torch.save({**content, "world": 4, "rng": content["rng"].expand(4, -1)}, cut / "last.pt")
    folder = smoke(cut.parent)
    assert "resumed with 1 process after 4: the same run, but not to the last bit" in capsys.readouterr().err
    assert_same_end(whole, folder)  # nothing here draws from the streams that start anew


def test_the_backbone_of_a_damaged_run_comes_from_the_previous_one(cut, capsys):
    truncate(cut / "last.pt")
    load_backbone(cut)
    assert "previous.pt beside it stands in, at step 9" in capsys.readouterr().err
