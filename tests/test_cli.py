import json
import os
import subprocess
import sys

import pytest

from ablations.run import main as ablations
from smog.__main__ import main as smog

SMOKE = ("recipe=smoke", "data.train_images=96", "data.val_images=40", "optim.batch=16", "runtime.device=cpu")


def run(repository, *command, cwd):
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in; what a command writes shows up there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one finished run of no steps."""
    folder = tmp_path_factory.mktemp("store")
    assert smog(["train", *SMOKE, "optim.epochs=0", f"store={folder}"]) == 0
    return folder


@pytest.fixture
def finished(store):
    (folder,) = [path for path in store.iterdir() if (path / "done").exists()]
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- help ----

HEAVY = ["torch", "pandas", "timm", "numpy", "cv2", "hydra", "omegaconf", "matplotlib", "scipy", "torchvision"]
ENTRIES = {"smog": "smog.__main__", "ablations": "ablations.run"}


@pytest.mark.parametrize("argument", ["--help", "-h"])
@pytest.mark.parametrize("module", ENTRIES.values(), ids=ENTRIES)
def test_help_imports_nothing_heavy(repository, tmp_path, module, argument):
    code = (
        f"import sys, {module} as m\nassert m.main([{argument!r}]) == 0\nprint(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = run(repository, "-W", "error", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [["-m", "smog"], ["ablations/run.py"]], ids=["smog", "ablations"])
def test_the_commands_answer_help_from_the_shell(repository, tmp_path, command):
    command = [str(repository / part) if part.endswith(".py") else part for part in command]
    done = run(repository, *command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main", [smog, ablations], ids=ENTRIES)
def test_without_arguments_the_help_is_shown_as_wrong_use(main, capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("main", [smog, ablations], ids=ENTRIES)
def test_help_after_other_words_is_still_help(main, capsys):
    assert main(["train", "seed=1", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


# ---- wrong use ----

WRONG = [
    (["trian"], ["'trian'", "nearest: train"]),
    (["train", "optim.learning=1"], ["'optim.learning'"]),
    (["train", "method.num_group=3"], ["'method.num_group'", "nearest: method.num_groups"]),
    (["train", "recipe=smok"], ["'smok'", "nearest: smoke"]),
    (["train", "seed=abc"], ["seed='abc'", "int expected"]),
    (["train", "seed"], ["key=value"]),
    (["train", "method.temperature=0"], ["method.temperature=0"]),
    (["train", "method.num_groups=9999"], ["method.num_groups=9999", "method.cache_size"]),
    (["train", "data=cifar10"], ["data.root"]),
    (["train", "data=cifar10", "data.root=none"], ["data.root=none", "does not exist"]),
    (["train", "data.fingerprint=abcdef"], ["abcdef"]),
    (["train", "optim.batch=97"], ["optim.batch=97", "96"]),
    (["train", "backbone.name=resnet1"], ["backbone.name='resnet1'", "nearest: resnet"]),
    (["train", "backbone.args.layer=3"], ["layer"]),
    (["train", "backbone=vit_small", "views.size=16"], ["backbone", "16"]),
    (["train", "runtime.device=gpu"], ["runtime.device='gpu'"]),
    (["train", "runtime.workers=-1"], ["runtime.workers=-1"]),
    (["train", "runtime.threads=-1"], ["runtime.threads=-1"]),
    (["train", "backbone.args.drop_rate=nan"], ["backbone.args"]),
    (["show"], ["smog show RUN"]),
    (["show", "a", "b"], ["smog show RUN"]),
    (["show", "abcdef"], ["'abcdef'"]),
    (["show", "abcdef", "format=jsn"], ["'jsn'", "nearest: json"]),
    (["eval", "knn"], ["smog eval knn RUN"]),
    (["eval", "kn", "abcdef"], ["'kn'", "nearest: knn"]),
    (["eval", "knn", "abcdef"], ["'abcdef'"]),
    (["eval", "knn", "abcdef", "kk=1"], ["'kk'"]),
    (["eval", "knn", "abcdef", "k=few"], ["k='few'", "int expected"]),
    (["eval", "linear", "abcdef", "lrs=[fast]"], ["lrs"]),
]
WRONG_GRIDS = [
    (["grid=num_group", "action=plan"], ["'num_group'", "nearest: num_groups"]),
    (["action=plan"], ["grid"]),
    (["grid=num_groups", "action=rnu"], ["'rnu'", "nearest: run"]),
    (["grid=num_groups", "action=plan", "launch=inlin"], ["'inlin'", "nearest: inline"]),
    (["grid=num_groups", "action=plan", "recipe=dem"], ["'dem'", "nearest: demo"]),
    (["grid=num_groups", "action=plan", "optim.learning=1"], ["'optim.learning'"]),
    (["grid=num_groups", "action=plan", "optim.batch=many"], ["optim.batch='many'", "int expected"]),
    (["grid=num_groups", "action=plan", "method.num_groups=3"], ["method.num_groups", "axis"]),
    (["grid=num_groups", "action=plan", "seeds=[0,0]"], ["seeds=[0, 0]"]),
    (["grid=num_groups", "action=plan", "seeds=3"], ["seeds=3", "list expected"]),
    (["grid=num_groups", "action=plan", "seeds=[a]"], ["seeds"]),
    (["grid=num_groups", "action=plan", "seeds=[0"], ["seeds"]),
    (["grid=num_groups", "action=plan", "tasks=[kn]"], ["'kn'", "knn"]),
    (["grid=num_groups", "action=plan", "metric=linear.top1", "tasks=[knn]"], ["linear.top1"]),
    (["grid=num_groups", "action=plan", "seed=1"], ["seed"]),
    (["grid=num_groups", "action=plan", "format=jsn"], ["'jsn'"]),
]


def named(row):
    return " ".join(word for word in row[0] if word not in SMOKE)


def check_refusal(code, out, err, parts, folder):
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=map(named, WRONG))
def test_wrong_use_of_smog_is_one_line_and_writes_nothing(here, capsys, arguments, parts):
    first, *rest = arguments
    code = smog(["train", *SMOKE, *rest] if first == "train" else arguments)  # small, should it not be refused
    check_refusal(code, *capsys.readouterr(), parts, here)


@pytest.mark.parametrize(("arguments", "parts"), WRONG_GRIDS, ids=map(named, WRONG_GRIDS))
def test_wrong_use_of_ablations_is_one_line_and_writes_nothing(here, capsys, arguments, parts):
    code = ablations(arguments)
    check_refusal(code, *capsys.readouterr(), parts, here)


SHELL = [
    (["-m", "smog", "train", "recipe=smok"], ["nearest: smoke"]),
    (["-m", "smog", "train", *SMOKE, "backbone.name=resnet1"], ["resnet1"]),
    (["ablations/run.py", "grid=num_group"], ["nearest: num_groups"]),
]


@pytest.mark.parametrize(("command", "parts"), SHELL, ids=map(named, SHELL))
def test_wrong_use_from_the_shell_is_one_line_and_writes_nothing(repository, tmp_path, command, parts):
    done = run(repository, *(repository / c if c.endswith(".py") else c for c in command), cwd=tmp_path)
    check_refusal(done.returncode, done.stdout, done.stderr, parts, tmp_path)


def test_more_neighbours_than_images_leaves_no_result(finished, store, capsys):
    capsys.readouterr()
    assert smog(["eval", "knn", finished.name, "k=97", f"store={store}"]) == 2
    assert "k=97 is above the 96" in capsys.readouterr().err
    assert not list(finished.glob("results/*"))


def test_an_ambiguous_run_is_named_with_its_likes(here, capsys):
    for name in ("abcdef000000", "abcdef000001"):
        (here / "runs" / name).mkdir(parents=True)
    assert smog(["show", "abcdef"]) == 2
    err = capsys.readouterr().err
    assert "abcdef000000" in err
    assert "abcdef000001" in err


def test_a_run_can_be_kept_under_any_path(here, capsys):
    assert smog(["train", *SMOKE, "optim.epochs=0", "store=my runs, été (1)=a"]) == 0
    folder = capsys.readouterr().out.strip()
    assert smog(["show", folder, "format=json"]) == 0


# ---- right use ----


def test_train_prints_the_folder_and_running_it_again_does_no_work(store, finished, capsys):
    capsys.readouterr()
    before = files(store)
    assert smog(["train", *SMOKE, "optim.epochs=0", f"store={store}"]) == 0
    assert capsys.readouterr().out == f"{finished}\n"
    assert files(store) == before


@pytest.mark.parametrize("flag", ["format=json", "--json"])
def test_show_prints_one_json_document(store, finished, capsys, flag):
    capsys.readouterr()
    assert smog(["show", finished.name[:6], flag, f"store={store}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"] == str(finished)
    assert shown["config"]["recipe"] == "smoke"
    assert shown["environment"]["run_id"] == finished.name
    assert shown["cost"]["steps"] == 0


def test_eval_prints_one_json_document_and_finds_it_again(store, finished, capsys):
    capsys.readouterr()
    printed = []
    for run in (finished.name, str(finished), str(finished / "last.pt")):
        assert smog(["eval", "knn", run, "k=3", "format=json", f"store={store}"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] == printed[2]
    assert printed[0]["run_id"] == finished.name
    assert set(printed[0]["metrics"]) == {"top1", "top5"}
    assert smog(["eval", "knn", finished.name, "k=3", f"store={store}"]) == 0
    assert capsys.readouterr().out.startswith(f"knn of {finished.name}: top1 ")


def test_eval_of_a_run_finds_the_images_it_was_trained_on(store, finished, capsys):
    capsys.readouterr()
    assert smog(["eval", "linear", finished.name, "epochs=1", "--json", f"store={store}"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"]["train"] == 96


def test_show_without_json_is_for_people(store, finished, capsys):
    capsys.readouterr()
    assert smog(["show", finished.name, f"store={store}"]) == 0
    assert capsys.readouterr().out.startswith("run: ")


def test_a_plan_prints_one_json_document_and_writes_nothing(here, capsys):
    assert ablations(["grid=num_groups", "action=plan", "recipe=demo", "seeds=[4,5]", "format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    [planned] = document["grids"]
    assert planned["grid"] == "num_groups"
    runs = [run for cell in planned["cells"] for run in cell["runs"]]
    assert {run["seed"] for run in runs} == {4, 5}
    assert all(run["missing"] == ["train", "knn", "linear"] for run in runs)
    assert document["cost"]["hours"] > 0
    assert list(here.iterdir()) == []
