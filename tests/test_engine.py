"""The ablation engine around the runs: modes of grids, shared cells, prices, explanations, states, packs, damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.grid import HERE, grid_names
from ablations.launch import Queue
from ablations.plan import plan, shared
from ablations.run import main
from ablations.stock import Stock
from ablations.work import Job, Outcome
from smog.attempts import attempt, history
from smog.config import compose
from smog.errors import UsageError
from smog.store import scan

SMOKE = ["recipe=smoke", "optim.epochs=1"]
TWO = "{method.num_groups: [4, 8], method.dim: [8, 16]}"
BASE = "{method.num_groups: 8, method.dim: 16}"
FULL = [name for name in grid_names() if name.startswith("paper_")]


@pytest.fixture(autouse=True)
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of grids of our own, beside the real ones."""
    here = tmp_path / "declared"
    shutil.copytree(HERE / "grids", here / "grids")
    shutil.copy(HERE / "defaults.yaml", here)
    monkeypatch.setattr("ablations.grid.HERE", here)
    return here


def declare(here: Path, name: str, axes: str, baseline: str, **more: str) -> None:
    lines = [f"title: {name}", f"axes: {axes}", f"baseline: {baseline}", *(f"{k}: {v}" for k, v in more.items())]
    (here / "grids" / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def labels(name: str) -> list[str]:
    return [cell.label for cell in plan(name, SMOKE).cells if not cell.reference]


def test_factorial_is_every_combination(declared: Path) -> None:
    declare(declared, "all", TWO, BASE, mode="factorial")
    expected = ["num_groups 4, dim 8", "num_groups 4, dim 16", "num_groups 8, dim 8", "num_groups 8, dim 16"]
    assert labels("all") == expected
    [baseline] = [cell for cell in plan("all", SMOKE).cells if cell.baseline]
    assert baseline.label == expected[-1]
    assert baseline.configs[0].method.dim == 16


def test_zip_goes_along_all_axes_at_once(declared: Path) -> None:
    declare(declared, "both", TWO, BASE, mode="zip")
    assert labels("both") == ["num_groups 4, dim 8", "num_groups 8, dim 16"]


def test_include_adds_and_exclude_leaves_out(declared: Path) -> None:
    more = {"mode": "factorial", "include": "{hot: {method.temperature: 0.9}}", "exclude": "[{method.num_groups: 4}]"}
    declare(declared, "some", TWO, BASE, **more)
    assert labels("some") == ["num_groups 8, dim 8", "num_groups 8, dim 16", "hot"]
    assert plan("some", SMOKE).cells[-1].configs[0].method.temperature == 0.9


def test_a_named_value_sets_several_keys(declared: Path) -> None:
    axes = "{size: {small: {method.num_groups: 4, method.dim: 8}, large: {method.num_groups: 8}, same: }}"
    declare(declared, "named", axes, "{size: large}", references="{}")
    cells = {cell.label: cell.configs[0].method for cell in plan("named", [*SMOKE, "method.num_groups=6"]).cells}
    assert [(name, m.num_groups, m.dim) for name, m in cells.items()] == [
        ("small", 4, 8), ("large", 8, 16), ("same", 6, 16),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "baseline", "more", "message"),
    [
        ("{method.num_groups: [4, 8], method.dim: [8]}", "{method.num_groups: 4, method.dim: 8}", {"mode": "zip"},
         "zip needs axes of one length: method.num_groups has 2, method.dim has 1"),
        (TWO, "{method.num_groups: 4, method.dim: 16}", {"mode": "zip"}, "the baseline .* is none of its cells"),
        (TWO, BASE, {"mode": "factorial", "exclude": "[{method.dim: 16}]"}, "is none of its cells"),
        (TWO, BASE, {"exclude": "[{method.dim: 17}]"}, "nowhere on the axes"),
        ("{optim.lr: [0.1, 1e-1]}", "{optim.lr: 0.1}", {}, "the cells '0.1' and '1e-1' are one and the same"),
        ("{a: {x: {method.dim: 8}, y: {method.dim: 8}}}", "{a: x}", {}, "one and the same"),
        ("{a: {x: 3}}", "{a: x}", {}, "needs a mapping"),
        ("{}", "{}", {}, "at least one axis"),
        ("{method.dim: [8]}", "{method.dim: 8, method.tim: 1}", {}, "the baseline has 'method.tim', which is no axis"),
        ("{method.dim: [8]}", "{method.dim: 8}", {"family": "bonferroni"}, "family 'bonferroni'"),
        ("{method.dim: [8]", "{method.dim: 8}", {}, "can't be read"),
        ("{method.dims: [8]}", "{method.dims: 8}", {}, "unknown key 'method.dims'; nearest: method.dim"),
        ("{method.dim: [8, wide]}", "{method.dim: 8}", {}, "int expected"),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_said(declared: Path, axes: str, baseline: str, more: dict, message: str) -> None:
    declare(declared, "wrong", axes, baseline, **more)
    with pytest.raises(UsageError, match=message):
        plan("wrong", SMOKE)


@pytest.mark.parametrize("name", [name for name in grid_names() if name not in FULL])
def test_every_grid_plans_at_the_size_of_the_demo(name: str) -> None:
    planned = plan(name, ["recipe=demo"])
    assert sum(cell.baseline for cell in planned.cells) == 1
    demo = plan("num_groups", ["recipe=demo"]).baseline.group
    if name in ("detection", "segmentation"):  # whose baseline are the weights that the demo starts with
        assert [cell.group == demo for cell in planned.cells] == [False, True]
    elif name != "fidelity":  # whose recipe is another
        assert planned.baseline.group == demo


@pytest.mark.parametrize("name", FULL)
def test_the_papers_grids_take_the_papers_recipe(name: str) -> None:
    planned = plan(name, ["data.name=garments", "data.root="])
    assert planned.baseline.configs[0].recipe == "imagenet_r50"
    assert planned.baseline.configs[0].optim.batch == 4096


def test_grids_share_their_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["grid=num_groups,temperature", "recipe=demo", "seeds=[0]", f"store={tmp_path}", "action=plan"]
    assert main(arguments) == 0
    assert "12 cells, 3 shared, 9 to train; 9 runs" in capsys.readouterr().out
    plans = [plan(name, ["recipe=demo"], {"seeds": [0]}) for name in ("num_groups", "temperature")]
    assert len(shared(plans)) == 9


def test_settings_of_a_task_do_not_touch_the_run() -> None:
    one, other = (plan("num_groups", ["recipe=demo", *more]) for more in ([], ["knn.k=5"]))
    assert [job.run for job in one.jobs()] == [job.run for job in other.jobs()]
    assert one.protocols["knn"] != other.protocols["knn"]
    assert one.protocols["linear"] == other.protocols["linear"]
    with pytest.raises(UsageError, match="no such task"):
        plan("num_groups", ["recipe=demo", "linear.epochs=3"], {"tasks": ["knn"]})


@given(order=st.permutations(["method.dim=24", "optim.lr=0.3", "views.flip=0.25", "seed=3"]))
def test_the_order_of_keys_never_changes_an_identity(order: list[str]) -> None:
    assert identity(["recipe=smoke", *order]) == identity(["recipe=smoke", *sorted(order)])


def identity(overrides: list[str]) -> str:
    from smog.data.sources import with_fingerprint
    from smog.identity import run_id

    return run_id(with_fingerprint(compose(overrides)))


@given(lr=st.floats(0.001, 10.0), workers=st.integers(0, 9), store=st.text("abc/", min_size=1, max_size=5))
def test_runtime_and_the_way_a_value_is_written_never_change_it(lr: float, workers: int, store: str) -> None:
    plain = identity(["recipe=smoke", f"optim.lr={lr!r}"])
    written = ["recipe=smoke", f"optim.lr={lr:.17e}", f"runtime.workers={workers}", f"runtime.store={store}"]
    assert identity(written) == plain


def test_too_many_hours_are_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main(["grid=num_groups", "recipe=demo", "max_hours=0.0001", f"store={store}"]) == 2
    assert "max_hours=0.0001: this would cost" in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid=num_groups,num_groups"], "named twice"),
        (["grid=num_groups", "max_hours=many"], "a number of hours expected"),
        (["grid=num_groups", "pack=maybe"], "a whole number expected"),
        (["grid=num_groups", "launch.slot=2"], "nearest: slots"),
        (["grid=num_groups", "launch.slots=-1"], "0 or more expected"),
        (["grid=num_groups", "action=explain"], "needs a cell"),
        (["grid=num_groups", "action=explain", "cell=31", "recipe=demo"], "cell='31' is not in the grid"),
        (["grid=num_groups", "action=explain", "cell=30", "seed=9", "recipe=demo"], "none of the grid's seeds"),
    ],
)
def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([*arguments, f"store={tmp_path / 'store'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.fixture
def small(declared: Path, tmp_path: Path) -> list[str]:
    """The arguments of a grid of seconds that has run."""
    declare(declared, "small", "{method.num_groups: [4, 8]}", "{method.num_groups: 8}", references="{}")
    arguments = ["grid=small", *SMOKE, "seeds=[0,1]", f"store={tmp_path / 'store'}", "launch=inline"]
    assert main(arguments) == 0
    return arguments


def test_a_plan_is_priced_by_what_was_measured(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*small, "seeds=[2]", "action=plan", "format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert next(iter(document["cost"]["origins"])).startswith("as measured on ")
    assert document["cost"]["tasks"] == 0  # their time is known too
    assert 0 < document["cost"]["hours"] < 0.1


def test_an_explanation_names_what_differs(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for more, expected in [
        ([], "nothing would be computed again"),
        (["optim.lr=0.3"], "optim.lr: 0.1 -> 0.3"),
        (["knn.k=5"], "knn.k: 20 -> 5"),
    ]:
        assert main([*small, *more, "action=explain", "cell=4"]) == 0
        assert expected in capsys.readouterr().out


def test_an_explanation_names_a_version(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("smog.methods", fromlist=["VERSIONS"]).VERSIONS, "smog", 99)
    capsys.readouterr()
    assert main([*small, "action=explain", "cell=4", "format=json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [change["name"] for change in found["changes"]] == ["code"]
    assert found["changes"][0]["new"] == 99
    assert found["missing"] == ["train", "knn", "linear"]


@pytest.mark.parametrize("cut", [lambda text: text[:40], lambda text: "{}", lambda text: "[1]"])
def test_a_damaged_result_is_set_aside_and_computed_again(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: Callable[[str], str]
) -> None:
    before = scan(tmp_path / "store").drop(columns=["seconds", "peak_memory", "created"])
    path = sorted((tmp_path / "store").glob("*/results/knn@*.json"))[0]
    path.write_text(cut(path.read_text()))
    capsys.readouterr()
    assert main(small) == 0
    assert "computed again" in capsys.readouterr().err
    assert path.with_name(f"{path.name}.damaged").exists()
    assert scan(tmp_path / "store").drop(columns=["seconds", "peak_memory", "created"]).equals(before)
    assert len(history(path.parent.parent, "train")) == 1


def test_packed_cells_have_the_numbers_that_they_have_alone(small: list[str], tmp_path: Path) -> None:
    assert main([*small, "pack=true", f"store={tmp_path / 'packed'}"]) == 0
    alone, packed = (
        scan(tmp_path / name).drop(columns=["seconds", "peak_memory", "created"]) for name in ("store", "packed")
    )
    assert packed.equals(alone)
    done = [json.loads(path.read_text()) for path in (tmp_path / "packed").glob("*/done")]
    assert {one["packed"] for one in done} == {2}


def test_status_tells_how_every_run_stands(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    folders = {job.run: store / job.run for job in plan("small", [*SMOKE, f"runtime.store={store}"]).jobs()}
    lost, running, failed, *_ = (folder for folder in folders.values() if (folder / "done").exists())
    for folder in (lost, running, failed):
        (folder / "done").unlink()
    with pytest.raises(MemoryError), attempt(failed, "train"):
        raise MemoryError
    with attempt(running, "train"):
        capsys.readouterr()
        assert main([*small, "action=status", "format=json"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"waiting": 1, "running": 1, "failed": 1, "done": 1}
    assert document["failures"][0]["kind"] == "memory"
    assert "micro-batches" in document["failures"][0]["help"]
    assert main([*small, "action=status"]) == 0
    shown = capsys.readouterr().out
    assert "1 failed" in shown
    assert "n = " not in shown  # all results are there
    shutil.rmtree(lost / "results")
    assert main([*small, "action=status"]) == 0
    assert "(n = 1/2)" in " ".join(capsys.readouterr().out.split())


def outcome(run: Job, kind: str, trace: str = "") -> Outcome:
    return Outcome(run, kind, 1.0, "said", trace)


def made_jobs(count: int) -> list[Job]:
    return list(plan("num_groups", ["recipe=demo"], {"seeds": list(range(count))}).jobs())[:count]


def test_three_equal_tracebacks_stop_the_rest() -> None:
    jobs = made_jobs(6)
    queue = Queue([(job,) for job in jobs])
    ended = []
    for trace in ("a", "b", "a", "a"):
        [job] = queue.next()
        ended += queue.settle([outcome(job, "code", trace)])
    assert [one.reason[:11] for one in ended] == ["said"] * 4 + ["not started"] * 2
    assert not queue.packs


def test_what_was_killed_is_tried_again_twice() -> None:
    [job] = made_jobs(1)
    queue = Queue([(job,)])
    tries = 0
    while queue.packs:
        tries += 1
        ended = list(queue.settle([outcome(*queue.next(), "killed")]))
    assert tries == 3
    assert [one.kind for one in ended] == ["killed"]


def test_out_of_memory_is_never_tried_again() -> None:
    [job] = made_jobs(1)
    queue = Queue([(job,)])
    assert [one.kind for one in queue.settle([outcome(*queue.next(), "memory")])] == ["memory"]
    assert not queue.packs


def test_a_store_that_cannot_be_written_is_one_line(
    tmp_path: Path, declared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the store's folder should: nobody, not even root, can write below it."""
    (tmp_path / "file").write_text("")
    assert main(["grid=num_groups", "recipe=demo", f"store={tmp_path / 'file' / 'store'}"]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from ablations.plan import plan, shared; from ablations.stock import Stock\n"
        "stock = Stock(Path(sys.argv[1]))\n"
        "[stock.missing(job) for job in shared([plan('num_groups', ['recipe=demo'])])]\n"
        "assert not {'torch', 'pandas', 'timm', 'scipy', 'submitit'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=root)


def test_cancel_stops_what_is_at_work_and_it_goes_on_later(tmp_path: Path, declared: Path) -> None:
    store = tmp_path / "store"
    arguments = ["grid=num_groups", "recipe=smoke", "optim.epochs=400", "method.cache_size=1000", "seeds=[0]"]
    arguments += [f"store={store}", "runtime.checkpoint_every=0.0"]
    script = str(Path(__file__).parents[1] / "ablations" / "run.py")
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen([sys.executable, script, *arguments], stdout=said, stderr=said)
    deadline = time.monotonic() + 120
    while not list(store.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    while process.poll() is None and time.monotonic() < deadline:
        assert main([*arguments, "action=cancel"]) == 0
        time.sleep(0.5)
    assert process.poll() == 1, (tmp_path / "said").read_text()
    outcomes = {one["outcome"] for path in store.glob("*/attempts") for one in history(path.parent, "train")}
    assert "stopped" in outcomes
    assert None not in outcomes
    assert all(Stock(store).read(path) for path in store.glob("*/attempts/*/*.json"))


def test_a_signal_to_the_launcher_stops_its_children_with_a_checkpoint(tmp_path: Path) -> None:
    store = tmp_path / "store"
    script = str(Path(__file__).parents[1] / "ablations" / "run.py")
    command = [sys.executable, script, "grid=num_groups", "recipe=smoke", "optim.epochs=2000", "method.cache_size=1000"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen([*command, "seeds=[0]", f"store={store}"], stdout=said, stderr=said)
    deadline = time.monotonic() + 120
    while not list(store.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM, (tmp_path / "said").read_text()
    begun = [path.parent for path in store.glob("*/metrics.jsonl")]
    assert all((folder / "last.pt").exists() for folder in begun)
