"""A grid becomes cells, runs and a table; what is there is not done again; what fails is said and stops nothing."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ablations.grid import grid_names, load_grid
from ablations.launch import launch, launcher_settings
from ablations.plan import plan
from ablations.run import main
from ablations.work import Job, work
from smog.errors import UsageError
from smog.store import grids, scan

SMOKE = ["recipe=smoke", "optim.epochs=1"]
# one cell besides the baseline and the floor rows, in seconds
SMALL = ["grid=small", *SMOKE, "seeds=[0,1]"]


@pytest.fixture(autouse=True)
def small_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of grids with one small grid in it."""
    import ablations.grid as module

    here = tmp_path / "declared"
    (here / "grids").mkdir(parents=True)
    (here / "defaults.yaml").write_text((module.HERE / "defaults.yaml").read_text())
    for path in (module.HERE / "grids").glob("*.yaml"):
        (here / "grids" / path.name).write_text(path.read_text())
    declare(here, "small", "{method.num_groups: [4, 8]}", "{method.num_groups: 8}")
    monkeypatch.setattr(module, "HERE", here)


def declare(here: Path, name: str, axes: str, baseline: str, **more: str) -> None:
    lines = [f"title: {name}", f"axes: {axes}", f"baseline: {baseline}", *(f"{k}: {v}" for k, v in more.items())]
    (here / "grids" / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def touched(store: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["num_groups", "group_momentum", "temperature", "backbone"])
def test_every_grid_plans_whole_and_without_two_equal_cells(name: str, tmp_path: Path) -> None:
    planned = plan(name, ["recipe=demo", f"runtime.store={tmp_path / 'store'}"])
    groups = [cell.group for cell in planned.cells]
    assert len(set(groups)) == len(groups)
    assert [cell.label for cell in planned.cells[:2]] == ["raw pixels", "untrained"]
    assert sum(cell.baseline for cell in planned.cells) == 1
    assert len(planned.cells) == 2 + sum(len(values) for values in planned.grid.axes.values())
    assert len(list(planned.jobs())) == 3 * (len(planned.cells) - 1) + 1  # raw pixels have no seed
    assert not (tmp_path / "store").exists()


def test_the_grids_share_their_baseline(tmp_path: Path) -> None:
    names = ("num_groups", "group_momentum", "temperature", "backbone")
    baselines = [next(cell.group for cell in plan(name, ["recipe=demo"]).cells if cell.baseline) for name in names]
    assert len(set(baselines)) == 1


def test_cells_differ_from_the_baseline_in_their_axis_alone() -> None:
    from smog.identity import as_dict

    cells = {cell.label: cell for cell in plan("temperature", ["recipe=demo"]).cells}
    one, other = (as_dict(cells[label].configs[0], science_only=True) for label in ("0.1", "0.5"))
    assert one.pop("method") == {**other.pop("method"), "temperature": 0.1}
    assert one == other


def test_several_axes_share_one_baseline_row(tmp_path: Path) -> None:
    declare(
        tmp_path / "declared",
        "two",
        "{method.num_groups: [4, 8], method.dim: [8, 16]}",
        "{method.num_groups: 8, method.dim: 16}",
    )
    cells = plan("two", SMOKE).cells
    assert [(cell.label, cell.axis) for cell in cells[2:]] == [
        ("baseline", None),
        ("4", "method.num_groups"),
        ("8", "method.dim"),
    ]


def test_a_grid_runs_reports_and_runs_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main([*SMALL, f"store={store}"]) == 0
    first = capsys.readouterr()
    assert "7 runs, 0 in the store, 7 to do" in first.err
    assert "8 (baseline)" in first.out
    assert "raw pixels" in first.out
    before = touched(store)
    assert main([*SMALL, f"store={store}"]) == 0
    second = capsys.readouterr()
    assert "7 runs, 7 in the store, 0 to do" in second.err
    assert second.out == first.out
    assert touched(store) == before
    frame = scan(store)
    assert len(frame[frame.metric == "top1"]) == 7 * 2
    assert len(grids(store)) == 1
    assert main([*SMALL, f"store={store}", "action=results", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == []


def test_inline_gives_the_same_numbers_as_local(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for how in ("inline", "local"):
        assert main([*SMALL, f"store={tmp_path / how}", f"launch={how}", "seeds=[0]"]) == 0
        tables.append(scan(tmp_path / how).drop(columns=["seconds", "peak_memory", "created"]))
    assert tables[0].equals(tables[1])
    assert len(tables[0]) > 0


@pytest.mark.parametrize("how", ["inline", "local"])
def test_a_failing_cell_is_said_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    declare(tmp_path / "declared", "bad", "{optim.lr: [0.1, 1.0e+30]}", "{optim.lr: 0.1}")
    store = tmp_path / "store"
    arguments = ["grid=bad", *SMOKE, "optim.precision=fp32", "seeds=[0]", f"store={store}", f"launch={how}"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "failed: bad 1e+30 seed 0: run" in printed.err
    assert "the last finite one was at step" in printed.err
    assert "0.1 (baseline)" in printed.out
    assert len(set(scan(store).run_id)) == 3
    assert main([*arguments, "action=status"]) == 0
    assert "1 to do" in capsys.readouterr().out


def test_a_killed_process_is_one_failed_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child kills itself at the start of its work, as the kernel would when memory runs out."""
    import os

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    planned = plan("small", [*SMOKE, f"runtime.store={tmp_path / 'store'}"], {"seeds": [0]})
    jobs = [Job(job.title, job.config, {"killer": Killer(os.getpid())}) for job in planned.jobs()][:2]
    outcomes = list(launch([[job] for job in jobs], launcher_settings("local", [])))
    assert [outcome.kind for outcome in outcomes] == ["killed"] * 2
    assert [outcome.reason for outcome in outcomes] == ["the process was killed by signal 9 (out of memory?)"] * 2


class Killer:
    """Stands where settings would: looked at by the child when it computes its tasks."""

    def __init__(self, launcher: int) -> None:
        self.launcher = launcher

    def __reduce__(self):
        return (kill_unless, (self.launcher,))


def kill_unless(launcher: int) -> Killer:
    import os

    if os.getpid() != launcher:
        os.kill(os.getpid(), signal.SIGKILL)
    return Killer(launcher)


def test_a_killed_launcher_leaves_nobody_at_work(tmp_path: Path) -> None:
    """kill -9 of the launcher: its children end by themselves, and the same command finishes the grid."""
    store = tmp_path / "store"
    script = str(Path(__file__).parents[1] / "ablations" / "run.py")
    command = [sys.executable, script, "grid=num_groups", "recipe=smoke", "optim.epochs=2000", "seeds=[0]"]
    command += ["method.cache_size=1000", f"store={store}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(store.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while at_work(store) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not at_work(store)


def test_code_edited_while_a_grid_runs_changes_none_of_its_jobs(tmp_path: Path) -> None:
    """In a copy of the code, which is then broken in every module that a job needs."""
    root, copy, store = Path(__file__).parents[1], tmp_path / "copy", tmp_path / "store"
    for package in ("smog", "ablations", "reports", "transfer"):
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "output"))
    command = [sys.executable, str(copy / "ablations" / "run.py"), "grid=num_groups", "recipe=smoke", "seeds=[0]"]
    command += ["method.cache_size=1000", f"store={store}", "launch.slots=1"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None and not list(store.glob("*/done")):
            time.sleep(0.02)
        for path in [part for package in ("smog", "ablations", "transfer") for part in copy.glob(f"{package}/**/*.py")]:
            if path.name not in ("results.py", "__init__.py"):  # the first is the launcher's own, for the table
                path.write_text("raise RuntimeError('edited')\n")
        code = process.wait(timeout=300)
    assert code == 0, (tmp_path / "said").read_text()
    assert len(list(store.glob("*/done"))) == 6


def at_work(store: Path) -> list[int]:
    """Processes that hold a file below the store open."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [process.pid for file in process.open_files() if file.path.startswith(str(store))]
    return found


def test_an_unforeseen_error_is_one_line_with_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan("small", [*SMOKE, f"runtime.store={tmp_path / 'store'}"], {"seeds": [0]})
    job = next(planned.jobs())
    [outcome] = work([Job("x", job.config, {"knn": None})])
    assert outcome.kind == "code"
    assert outcome.reason.startswith("TypeError: ")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid=num_grups"], "no grid 'num_grups'; nearest: num_groups"),
        (["grid=num_groups", "action=rnu"], "action='rnu'; nearest: run"),
        (["grid=num_groups", "launch=lokal"], "launch='lokal'; nearest: local"),
        (["grid=num_groups", "method.num_groups=3"], "is the axis of the grid num_groups"),
        (["grid=num_groups", "method.num_grups=3"], "nearest: method.num_groups"),
        (["grid=num_groups", "seeds=[0,0]"], "must be different whole numbers"),
        (["grid=num_groups", "seeds=[]"], "at least one"),
        (["grid=num_groups", "seeds=3"], "seeds=3: list expected"),
        (["grid=num_groups", "tasks=[knm]"], "metric knn.top1 is of no task"),
        (["grid=num_groups", "tasks=[knm]", "metric=knm.top1"], "no task 'knm'; nearest: knn"),
        (["grid=num_groups", "recipe=demon"], "no recipe 'demon'; nearest: demo"),
        (["grid=num_groups", "data=cifar10"], "needs data.root=DIR"),
        (["grid=num_groups", "data=cifar10", "data.root=nowhere"], "data.root=nowhere does not exist"),
        (["grid=num_groups", "method.cache_size=500"], "raise method.cache_size"),
        ([], "usage"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = tmp_path / "store"
    assert main([*arguments, f"store={store}"] if arguments else []) == 2
    printed = capsys.readouterr()
    assert message in (printed.err or printed.out)
    assert len(printed.err.splitlines()) == (1 if arguments else 0)
    assert not store.exists()


@pytest.mark.parametrize(
    ("axes", "baseline", "more", "message"),
    [
        ("{method.num_groups: []}", "{method.num_groups: 8}", {}, "needs a list of different values"),
        ("{method.num_groups: [8, 8]}", "{method.num_groups: 8}", {}, "needs a list of different values"),
        ("{method.num_groups: [4, 8]}", "{method.num_groups: 9}", {}, "is not on its axis"),
        ("{method.num_groups: [4, 8]}", "{method.num_groups: 8}", {"mode": "factorail"}, "mode 'factorail'"),
        (
            "{method.num_groups: [4, 8]}",
            "{method.num_groups: 8}",
            {"sedes": "[0]"},
            "unknown key 'sedes'; nearest: seeds",
        ),
        ("{method.num_grups: [4, 8]}", "{method.num_grups: 8}", {}, "nearest: method.num_groups"),
        ("{method.num_groups: [4, x]}", "{method.num_groups: 4}", {}, "int expected"),
    ],
)
def test_a_wrong_grid_file_is_said(tmp_path: Path, axes: str, baseline: str, more: dict, message: str) -> None:
    declare(tmp_path / "declared", "wrong", axes, baseline, **more)
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        plan("wrong", SMOKE)


def test_run_as_a_script_it_lists_its_grids() -> None:
    script = Path(__file__).parents[1] / "ablations" / "run.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert "num_groups" in done.stdout


def test_the_record_holds_every_run(tmp_path: Path) -> None:
    planned = plan("small", [*SMOKE, f"runtime.store={tmp_path}"], {"seeds": [0, 1]})
    recorded = {run for cell in planned.record()["cells"] for run in cell["runs"].values()}
    assert recorded == {job.run for job in planned.jobs()}
    assert planned.record()["id"] == planned.record()["id"]


def test_names_and_files_of_grids_agree() -> None:
    assert {"num_groups", "group_momentum", "temperature", "backbone"} <= set(grid_names())
    assert load_grid("num_groups", {}).seeds == [0, 1, 2]
