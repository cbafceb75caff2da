"""The fine-tuning of a detector as a task of a grid: the same numbers by every launcher, no work twice, what is killed
goes on, and a backbone that no detector takes fails its own cell alone."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from test_detection import ROOT, SMALL

from ablations.grid import HERE
from ablations.run import main
from smog.attempts import history, stages
from smog.store import run_folders, scan

pytestmark = pytest.mark.timeout(180)

TASK = tuple(f"coco.{one}" for one in ("engine=torchvision", *SMALL, "images=60", "checkpoint_every=0"))
RUN = ("recipe=smoke", "data.train_images=96", "data.val_images=40", "optim.batch=16", "optim.epochs=1", "seeds=[0]")
GRID = ("grid=detection", *RUN, "runtime.threads=1", *TASK)


def table(store: Path) -> pandas.DataFrame:
    return scan(store).drop(columns=["seconds", "peak_memory", "created"])


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the grid, run in one process."""
    store = tmp_path_factory.mktemp("inline") / "store"
    assert main([*GRID, f"store={store}", "launch=inline"]) == 0
    return store


def test_both_cells_have_a_number(inline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, f"store={inline}", "action=results", "format=json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["tidy"] if row["metric"] == "box_ap"]
    assert [row["cell"] for row in rows] == ["random", "SMoG"]
    assert len({row["run_id"] for row in rows}) == 2


def test_run_again_it_does_no_work(inline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in inline.rglob("*") if path.is_file()}
    assert main([*GRID, f"store={inline}", "launch=inline"]) == 0
    assert "0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in inline.rglob("*") if path.is_file()} == before


def test_plan_and_explain_name_the_task(inline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, expected in [
        (["action=plan", f"store={tmp_path}"], "train, coco"),
        (["action=plan", f"store={inline}"], "2 in the store"),
        (["action=explain", "cell=SMoG", f"store={inline}"], "nothing would be computed again"),
        (["action=explain", "cell=SMoG", f"store={inline}", "coco.lr=0.01"], "coco.lr: 0.08 -> 0.01"),
    ]:
        assert main([*GRID, *more]) == 0
        assert expected in capsys.readouterr().out


def test_a_killed_launch_of_two_processes_goes_on_to_the_same_numbers(inline: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = [*GRID, f"store={store}", "launch.slots=2"]
    process = subprocess.Popen([sys.executable, str(ROOT / "ablations" / "run.py"), *arguments])
    while not list(store.glob("*/transfer/*/last.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(store.glob("*/results/*"))
    assert main(arguments) == 0
    assert table(store).equals(table(inline))
    ends = [
        [one["outcome"] for one in history(folder, stage)]
        for folder in run_folders(store)
        for stage in stages(folder)
        if stage.startswith("coco@")
    ]
    assert ["killed", "done"] in ends


def test_a_backbone_that_no_detector_takes_fails_its_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "declared"
    shutil.copytree(HERE / "grids", here / "grids")
    shutil.copy(HERE / "defaults.yaml", here)
    lines = ["title: backbones", "axes: {backbone: [pixels, resnet10_tiny]}", "baseline: {backbone: resnet10_tiny}"]
    lines += ["tasks: [coco]", "metric: coco.box_ap", "references: {}"]
    (here / "grids" / "backbones.yaml").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("ablations.grid.HERE", here)
    store = tmp_path / "store"
    arguments = ["grid=backbones", *GRID[1:], "optim.epochs=0", f"store={store}", "launch=inline"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    [failed] = [line for line in said.splitlines() if line.startswith("failed:")]
    assert "backbones pixels seed 0" in failed
    assert "a network of this family does not convert" in failed
    assert "Traceback" not in said
    assert len(list(store.glob("*/results/coco@*"))) == 1
