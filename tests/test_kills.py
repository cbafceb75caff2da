"""kill -9 at random, of workers, of the launcher, of whoever holds a stage: the table is that of an undisturbed grid,
nothing is trained to its end twice, nothing stays locked. SMOG_KILLS=50 kills more often than the default."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ablations.run import main
from smog.attempts import history, holder, stages
from smog.records import read_lines
from smog.store import run_folders, scan

KILLS = int(os.environ.get("SMOG_KILLS", "12"))
SCRIPT = Path(__file__).parents[1] / "ablations" / "run.py"
GRID = ["grid=num_groups", "recipe=smoke", "optim.epochs=30", "method.cache_size=1000", "seeds=[0,1,2]", "tasks=[knn]"]
RUNTIME = ["runtime.checkpoint_every=0.2", "runtime.threads=1"]


def start(store: Path) -> subprocess.Popen:
    """The command that a user types, in a process of its own."""
    command = [sys.executable, str(SCRIPT), *GRID, *RUNTIME, f"store={store}", "launch.slots=2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def holders(store: Path) -> Iterator[int]:
    """The processes that hold a stage of any run."""
    for folder in run_folders(store):
        for stage in stages(folder):
            if held := holder(folder, stage):
                yield held["owner"]["pid"]


def victims(launcher: subprocess.Popen, store: Path, kind: str) -> list[int]:
    if kind == "launcher":
        return [launcher.pid]
    if kind == "holder":
        return list(holders(store))
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(launcher.pid).children(recursive=True)]
    return []


def table(store: Path) -> dict[tuple[str, str], float]:
    frame = scan(store)
    return {(row.run_id, f"{row.task}.{row.metric}"): row.value for row in frame.itertuples()}


@pytest.mark.timeout(1500)
def test_random_kills_leave_the_same_table(tmp_path: Path) -> None:
    quiet, store, dice, killed = tmp_path / "quiet", tmp_path / "store", random.Random(7), Counter[str]()
    assert main([*GRID, *RUNTIME, f"store={quiet}", "launch.slots=2"]) == 0
    launcher = start(store)
    while killed.total() < KILLS:
        if launcher.poll() is not None:
            if launcher.returncode == 0:
                break  # the grid is done before the last kill
            launcher = start(store)
        kind = dice.choice(["worker", "worker", "holder", "holder", "launcher"])
        time.sleep(dice.uniform(0.1, 1.0))
        if kind == "launcher" and not list(holders(store)):
            continue  # it would be killed while it starts, again and again
        if found := victims(launcher, store, kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
                killed[kind] += 1
    launcher.wait(timeout=600)
    for _ in range(5):  # a cell that was killed three times in one launch fails there, and goes on in the next
        code = start(store).wait(timeout=600)
        if code == 0:
            break
    assert code == 0
    print(dict(killed), file=sys.stderr)
    assert killed.total() >= min(KILLS, 10)
    assert table(store) == table(quiet)
    for folder in run_folders(store):
        outcomes = [one["outcome"] for one in history(folder, "train")]
        assert outcomes.count("done") <= 1, "trained to the end twice"
        steps = [row["step"] for row in read_lines(folder / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert (
            json.loads((folder / "done").read_text())["steps"]
            == json.loads((quiet / folder.name / "done").read_text())["steps"]
        )
        assert not [stage for stage in stages(folder) if holder(folder, stage)], "left locked"
