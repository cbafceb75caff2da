"""A run that is asked to stop saves at the next step, says so, and goes on later as if nothing had been."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from smog import checkpoint, compose, train
from smog.errors import StoppedError, exit_code
from smog.records import read_lines
from smog.signals import StopSignals
from smog.training import Run

SMOKE = ("recipe=smoke", "runtime.threads=1")


@pytest.fixture
def handler(monkeypatch):
    """The caller's own handler, and what it was called with."""
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield seen
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_before_a_run_is_patient_a_signal_ends_it_at_once(handler, number):
    with pytest.raises(StoppedError, match="stopped; the same command goes on") as caught, StopSignals():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    signal.raise_signal(number)
    assert handler == [number], "the handlers are the caller's again"


def patiently():
    with StopSignals() as stop:
        stop.patient = True
        signal.raise_signal(signal.SIGTERM)
        raise KeyError(stop.number)


def test_a_patient_run_looks_for_itself(handler):
    with pytest.raises(KeyError, match="15"):
        patiently()
    assert handler == []


def test_a_signal_that_came_too_late_to_stop_anything_is_the_callers(handler):
    with StopSignals() as stop:
        stop.patient = True
        signal.raise_signal(signal.SIGUSR2)
    assert handler == [signal.SIGUSR2]


def test_outside_of_the_main_thread_signals_stay_as_they_are(handler):
    def body():
        with StopSignals() as stop:
            found.append((stop.before, signal.getsignal(signal.SIGTERM)))

    found: list = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [({}, signal.getsignal(signal.SIGTERM))]


def test_the_exit_code_is_the_shells(capsys):
    def body():
        raise StoppedError(signal.SIGTERM, "stopped at step 3 of 9")

    assert exit_code(body) == 143
    assert capsys.readouterr().err == "stopped at step 3 of 9\n"
    assert not issubclass(StoppedError, Exception), "a loop over runs that goes on after every Exception still stops"


def smoke(store: Path) -> Path:
    return train(compose([*SMOKE, f"runtime.store={store}"]))


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = (checkpoint.read(folder / checkpoint.FILE) for folder in (one, other))
    assert all(torch.equal(ours["method"][name], theirs["method"][name]) for name in ours["method"])
    assert torch.equal(ours["rng"], theirs["rng"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_stops_after_its_step_and_goes_on(tmp_path, handler, number, monkeypatch):
    original = Run._one_step

    def one_step(self, batch):
        if self.step == 10:
            signal.raise_signal(number)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_one_step", one_step)
        with pytest.raises(StoppedError, match="stopped at step 11 of 24; the same command goes on") as caught:
            smoke(tmp_path / "cut")
    assert caught.value.number == number
    [folder] = [path for path in (tmp_path / "cut").iterdir() if path.name != "cache"]
    assert checkpoint.read(folder / "last.pt")["step"] == 11
    assert_same_end(smoke(tmp_path / "whole"), smoke(tmp_path / "cut"))
    assert handler == []


def test_a_signal_during_the_last_step_finds_the_run_done(tmp_path, handler, monkeypatch):
    original = Run._close
    monkeypatch.setattr(Run, "_close", lambda self: (signal.raise_signal(signal.SIGTERM), original(self)))
    assert (smoke(tmp_path) / "done").exists()
    assert handler == [signal.SIGTERM]


def test_a_signal_to_all_processes_of_a_run_spares_those_that_make_views(tmp_path):
    """As Slurm sends it, or `timeout`."""
    arguments = [*SMOKE, f"store={tmp_path}", "runtime.workers=2", "runtime.log_every=1", "optim.epochs=40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "smog", "train", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(tmp_path.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    [log] = tmp_path.glob("*/metrics.jsonl")
    while process.poll() is None and not list(read_lines(log)):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143
    step = checkpoint.read(log.with_name("last.pt"))["step"]
    assert errors.splitlines()[-1].endswith(
        f"stopped at step {step} of 320; the same command goes on from the last checkpoint"
    )
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
