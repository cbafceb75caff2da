"""The loggers follow metrics.jsonl: nothing shows twice after a resume, and none of them can end a run."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smog.config import compose
from smog.data.sources import with_fingerprint
from smog.errors import UsageError
from smog.identity import run_id
from smog.loggers import Guarded, check_loggers, numbers, open_loggers, wandb_mode
from smog.schema import Config

needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is an extra")
needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is an extra")


@pytest.fixture
def config(tiny) -> Config:
    return with_fingerprint(tiny())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def row(step: int, loss: float) -> dict:
    return {"step": step, "epoch": step / 10, "loss": loss, "lr": 0.1, "note": "text", "time": {"seconds": 2.5}}


def write(name: str, folder: Path, config: Config, done: int, losses: dict[int, float]) -> None:
    [logger] = open_loggers([name], folder, config, done)
    for step, loss in losses.items():
        logger.write(row(step, loss))
    logger.close()


# ---- what a row becomes ----


def test_the_numbers_of_a_row_are_flattened() -> None:
    assert dict(numbers({**row(7, 1.5), "flag": True, "nothing": None})) == {
        "epoch": 0.7,
        "loss": 1.5,
        "lr": 0.1,
        "time.seconds": 2.5,
    }


def test_no_names_open_nothing(tmp_path: Path, config: Config) -> None:
    assert open_loggers([], tmp_path, config, 0) == []
    assert list(tmp_path.iterdir()) == []


# ---- TensorBoard ----


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(name)]


@needs_tensorboard
def test_tensorboard_shows_every_number_at_its_step(tmp_path: Path, config: Config) -> None:
    write("tensorboard", tmp_path, config, 0, {1: 4.0, 11: 2.0})
    assert events(tmp_path, "loss") == [(1, 4.0), (11, 2.0)]
    assert events(tmp_path, "time.seconds") == [(1, 2.5), (11, 2.5)]


@needs_tensorboard
def test_tensorboard_shows_no_step_twice_after_resumes(tmp_path: Path, config: Config) -> None:
    write("tensorboard", tmp_path, config, 0, {1: 5.0, 3: 4.0, 5: 9.0, 7: 9.0})
    write("tensorboard", tmp_path, config, 4, {5: 3.0, 7: 8.0})  # cut, and gone on with from step 4
    write("tensorboard", tmp_path, config, 6, {7: 2.0, 9: 1.0})
    assert events(tmp_path, "loss") == [(1, 5.0), (3, 4.0), (5, 3.0), (7, 2.0), (9, 1.0)]


@needs_tensorboard
def test_tensorboard_starts_over_with_a_run_that_was_cut_before_its_first_checkpoint(
    tmp_path: Path, config: Config
) -> None:
    write("tensorboard", tmp_path, config, 0, {1: 9.0, 3: 9.0})
    write("tensorboard", tmp_path, config, 0, {1: 5.0})
    assert events(tmp_path, "loss") == [(1, 5.0)]


KILLED = """
import os, signal, sys
from pathlib import Path
from smog.config import compose
from smog.data.sources import with_fingerprint
from smog.loggers import open_loggers
[logger] = open_loggers([sys.argv[1]], Path(sys.argv[2]), with_fingerprint(compose(["recipe=smoke"])), 0)
for step in (1, 2, 3):
    logger.write({"step": step, "loss": step / 2})
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(name: str, folder: Path, repository: Path) -> None:
    command = [sys.executable, "-c", KILLED, name, str(folder)]
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # a server that dies with it
    assert subprocess.run(command, cwd=repository, timeout=120, env=own).returncode == -signal.SIGKILL


@needs_tensorboard
def test_what_tensorboard_has_survives_a_kill(tmp_path: Path, repository: Path) -> None:
    killed("tensorboard", tmp_path, repository)
    assert events(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]


# ---- Weights & Biases ----


def history(folder: Path, name: str) -> list[tuple[int, float]]:
    """What the files of wandb hold; it goes on writing them for a moment after the end."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(200):
        [path] = folder.glob("wandb/offline-run-*/*.wandb")
        found = [Record.FromString(content) for content in records(path.read_bytes())]
        if found and found[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    rows = [{item.nested_key[0]: item.value_json for item in record.history.item} for record in found]
    return [(int(row["_step"]), float(row[name])) for row in rows if name in row]


def records(content: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, a header of 7 bytes before each part."""
    found, place = [b""], 7  # wandb's own header is as long
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        found[-1] += content[place + 7 : place + 7 + size]
        if kind in (1, 4):  # whole, or the last part
            found.append(b"")
        place += 7 + size
    return found[:-1]


def metrics(folder: Path, losses: dict[int, float]) -> None:
    lines = [json.dumps(row(step, loss)) + "\n" for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(lines))


@needs_wandb
def test_wandb_is_offline_by_default_and_holds_every_number(tmp_path: Path, config: Config) -> None:
    write("wandb", tmp_path, config, 0, {1: 5.0, 3: 4.0, 5: 3.0})
    assert history(tmp_path, "loss") == [(1, 5.0), (3, 4.0), (5, 3.0)]
    assert history(tmp_path, "time.seconds") == [(1, 2.5), (3, 2.5), (5, 2.5)]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id(config)}.wandb"))) == 1


@needs_wandb
def test_wandb_holds_every_row_once_after_a_resume(tmp_path: Path, config: Config) -> None:
    write("wandb", tmp_path, config, 0, {1: 5.0, 3: 4.0, 5: 9.0})
    metrics(tmp_path, {1: 5.0, 3: 4.0, 5: 9.0})  # row 5 lies after the checkpoint
    write("wandb", tmp_path, config, 3, {5: 3.0, 7: 2.0})
    assert history(tmp_path, "loss") == [(1, 5.0), (3, 4.0), (5, 3.0), (7, 2.0)]


@needs_wandb
def test_what_a_kill_takes_from_wandb_the_next_start_brings_back(tmp_path: Path, repository: Path) -> None:
    killed("wandb", tmp_path, repository)
    metrics(tmp_path, {1: 0.5, 2: 1.0, 3: 1.5})
    config = with_fingerprint(compose(["recipe=smoke"]))
    write("wandb", tmp_path, config, 2, {3: 1.5, 4: 2.0})
    assert history(tmp_path, "loss") == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]


@needs_wandb
def test_wandb_says_nothing_on_the_terminal(tmp_path: Path, config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    write("wandb", tmp_path, config, 0, {1: 5.0})
    assert capfd.readouterr() == ("", "")


def test_wandb_sends_only_where_the_user_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() is None


@needs_wandb
@needs_tensorboard
def test_loggers_draw_no_random_numbers(tmp_path: Path, config: Config) -> None:
    before = torch.get_rng_state(), random.getstate()
    for name in ("tensorboard", "wandb"):
        write(name, tmp_path, config, 0, {1: 5.0})
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


# ---- what goes wrong ----


def test_an_unknown_logger_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no logger 'tensorbord'; nearest: tensorboard"):
        check_loggers(["tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_remedy(
    name: str, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"{name} is not installed: pip install 'smog-suite\[loggers\]'"):
        open_loggers([name], tmp_path, config, 0)
    assert list(tmp_path.iterdir()) == []


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def write(self, row: dict) -> None:
        self.calls += 1
        raise OSError("no network\nat all")

    def close(self) -> None:
        raise AssertionError("a logger that is off is left alone")


def test_a_logger_that_fails_says_one_line_and_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    logger = Guarded("wandb", lambda: broken)
    for step in (1, 2, 3):
        logger.write(row(step, 1.0))
    logger.close()
    assert broken.calls == 1
    assert capsys.readouterr().err == (
        "wandb is off from here on (OSError: no network at all); metrics.jsonl has every row\n"
    )


@needs_tensorboard
def test_a_logger_that_does_not_open_lets_the_run_start(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    write("tensorboard", tmp_path, config, 0, {1: 5.0})
    assert capsys.readouterr().err.startswith("tensorboard is off from here on (")


FULL = """
import resource, signal, sys
from pathlib import Path
from smog.config import compose
from smog.data.sources import with_fingerprint
from smog.loggers import open_loggers
[logger] = open_loggers(["tensorboard"], Path(sys.argv[1]), with_fingerprint(compose(["recipe=smoke"])), 0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for step in range(1, 200):
    logger.write({"step": step, "loss": 1.0})
logger.close()
print("the run goes on")
"""


@needs_tensorboard
def test_a_full_disk_turns_tensorboard_off(tmp_path: Path, repository: Path) -> None:
    """The system's answer in place of a full disk is that the file is too large."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=repository, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the run goes on\n")
    assert done.stderr.count("tensorboard is off from here on (OSError: [Errno 27] File too large") == 1
