"""Fine-tuning as a task of a grid: the same numbers by every launcher, no work twice, what is killed goes on, any grid
may have it, and a backbone that a task does not take fails its own cell alone."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
from made_trainings import SMALL as SMALL_SEGMENTOR
from test_detection import ROOT
from test_detection import SMALL as SMALL_DETECTOR

from ablations.frozen import freeze
from ablations.grid import HERE
from ablations.run import main
from reports.build import main as reports
from smog.attempts import history, stages
from smog.store import run_folders, scan
from smog.tasks import protocol, settings

pytestmark = pytest.mark.timeout(180)

# a rate so small that predictions stay the many-coloured ones of a fresh head: ground alone would hide a difference
SLOW = ("steps=12", "lr=1e-4", "lr_factor=1")
RUN = (
    "recipe=smoke", "data.train_images=96", "data.val_images=40", "optim.batch=16", "optim.epochs=1", "seeds=[0]",
    "runtime.threads=1",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A grid of the project over a task, at the size of seconds."""

    grid: str
    task: str
    metric: str
    title: str  # of that in tables
    own: tuple[str, ...]  # settings of the task
    change: str  # another setting, and how it is told
    told: str

    @property
    def small(self) -> tuple[str, ...]:
        return (*RUN, *(f"{self.task}.{one}" for one in (*self.own, "checkpoint_every=0")))

    @property
    def asked(self) -> tuple[str, ...]:
        return (f"grid={self.grid}", *self.small)


DETECTION = Case(
    "detection", "coco", "box_ap", "detection box AP", ("engine=torchvision", *SMALL_DETECTOR, "images=60"),
    "coco.lr=0.01", "coco.lr: 0.08 -> 0.01",
)  # fmt: skip
SEGMENTATION = Case(
    "segmentation", "ade20k", "miou", "segmentation mIoU (%)", (*SMALL_SEGMENTOR, *SLOW),
    "ade20k.head=fcn", "ade20k.decoder: upernet -> fcn",
)  # fmt: skip


@pytest.fixture(scope="module", params=[DETECTION, SEGMENTATION], ids=["coco", "ade20k"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def inline(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the grid, run in one process."""
    store = tmp_path_factory.mktemp("inline") / "store"
    assert main([*case.asked, f"store={store}", "launch=inline"]) == 0
    return store


def table(store: Path) -> pandas.DataFrame:
    return scan(store).drop(columns=["seconds", "peak_memory", "created"])


def values(store: Path, capsys: pytest.CaptureFixture[str], case: Case, *grid: str) -> list[dict]:
    assert main([*(grid or case.asked), f"store={store}", "action=results", "format=json"]) == 0
    tidy = json.loads(capsys.readouterr().out)["tidy"]
    return [row for row in tidy if (row["task"], row["metric"]) == (case.task, case.metric)]


def test_both_cells_have_a_number(case: Case, inline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = values(inline, capsys, case)
    assert [row["cell"] for row in rows] == ["random", "SMoG"]
    assert len({row["run_id"] for row in rows}) == 2
    if case is SEGMENTATION:
        assert len({row["value"] for row in rows}) == 2


def test_run_again_it_does_no_work(case: Case, inline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in inline.rglob("*") if path.is_file()}
    assert main([*case.asked, f"store={inline}", "launch=inline"]) == 0
    assert "0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in inline.rglob("*") if path.is_file()} == before


def test_plan_and_explain_name_the_task(
    case: Case, inline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, expected in [
        (["action=plan", f"store={tmp_path}"], f"train, {case.task}"),
        (["action=plan", f"store={inline}"], "2 in the store"),
        (["action=explain", "cell=SMoG", f"store={inline}"], "nothing would be computed again"),
        (["action=explain", "cell=SMoG", f"store={inline}", case.change], case.told),
    ]:
        assert main([*case.asked, *more]) == 0
        assert expected in capsys.readouterr().out


def test_a_report_has_its_table_and_figure(case: Case, inline: Path, tmp_path: Path) -> None:
    assert reports([f"store={inline}", f"out={tmp_path}"]) == 0
    lines = (tmp_path / "tables" / f"{case.grid}.md").read_text().splitlines()
    assert case.title in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["random (baseline)", "SMoG"]
    assert (tmp_path / "figures" / f"{case.grid}.svg").stat().st_size > 1000


def test_a_killed_launch_of_two_processes_goes_on_to_the_same_numbers(case: Case, inline: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = [*case.asked, f"store={store}", "launch.slots=2"]
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
        if stage.startswith(f"{case.task}@")
    ]
    assert ["killed", "done"] in ends


def declare(here: Path, monkeypatch: pytest.MonkeyPatch, case: Case, name: str, axes: str, baseline: str) -> None:
    """A grid of its own beside those of the project."""
    shutil.copytree(HERE / "grids", here / "grids")
    shutil.copy(HERE / "defaults.yaml", here)
    lines = [f"title: {name}", f"axes: {axes}", f"baseline: {baseline}"]
    lines += [f"tasks: [{case.task}]", f"metric: {case.task}.{case.metric}", "references: {}"]
    (here / "grids" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("ablations.grid.HERE", here)


def test_a_backbone_that_the_task_does_not_take_fails_its_cell_alone(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = "{backbone: [pixels, resnet10_tiny]}"
    declare(tmp_path / "declared", monkeypatch, case, "backbones", axes, "{backbone: resnet10_tiny}")
    store = tmp_path / "store"
    assert main(["grid=backbones", *case.small, "optim.epochs=0", f"store={store}", "launch=inline"]) == 1
    said = capsys.readouterr().err
    [failed] = [line for line in said.splitlines() if line.startswith("failed:")]
    assert "backbones pixels seed 0" in failed
    assert "a network of this family" in failed
    assert "Traceback" not in said
    assert len(list(store.glob(f"*/results/{case.task}@*"))) == 1


def test_any_grid_may_have_it_with_the_cheap_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(
        tmp_path / "declared",
        monkeypatch,
        SEGMENTATION,
        "groups",
        "{method.num_groups: [4, 8]}",
        "{method.num_groups: 8}",
    )
    store = tmp_path / "store"
    grid = ["grid=groups", *SEGMENTATION.small, "ade20k.head=linear", "ade20k.steps=3"]
    assert main([*grid, f"store={store}", "launch=inline"]) == 0
    capsys.readouterr()
    assert len({row["run_id"] for row in values(store, capsys, SEGMENTATION, *grid)}) == 2
    [_, path] = store.glob("*/results/ade20k@*.json")
    assert json.loads(path.read_text())["settings"]["decoder"] == "linear"


def test_another_grid_plans_it_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["tasks=[ade20k]", "metric=ade20k.miou", "ade20k.head=linear", "action=plan", f"store={tmp_path}"]
    assert main(["grid=num_groups", "recipe=demo", "seeds=[0]", *more]) == 0
    said = capsys.readouterr().out
    assert "train, ade20k" in said
    assert "knn" not in said
    assert "untrained" in said
    assert "raw pixels" not in said  # which have no network to train
    assert main(["grid=num_groups", "recipe=demo", *more[:2], "ade20k.haed=linear"]) == 2
    assert "nearest: " in capsys.readouterr().err


def test_a_frozen_copy_has_all_that_the_task_needs(tmp_path: Path) -> None:
    """And the server of launch=local has loaded it before its first child: what is edited later changes no job."""
    place = freeze(tmp_path)
    code = (
        "import sys, ablations.server; from smog.tasks import protocol, settings; from transfer import protocols; "
        "names = ('transfer.segmentation.training', 'transfer.segmentation.sheet', 'transfer.curves'); "
        "print(*(sys.modules[name].__file__ for name in names)); "
        f"print(protocol('ade20k', settings('ade20k', {list(SMALL_SEGMENTOR)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(place)!r}); {code}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files, code = done.stdout.splitlines()
    assert all(file.startswith(str(place)) for file in files.split())
    assert code == protocol("ade20k", settings("ade20k", SMALL_SEGMENTOR))
