"""What the commands share: options, whose result it is, that it is computed once, and what is copied."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smog.errors import RunError, UsageError
from smog.pretrained import open_pretrained
from smog.store import result_path, write_json
from smog.tasks import protocol, settings
from transfer import command, protocols

ROOT = Path(__file__).parents[1]
OPTIONS = ("--ckpt", "--data", "--head", "--store")
MODEL = "resnet10t"


def test_options_flags_and_lists_are_told_apart() -> None:
    words = ["--ckpt", "a", "--data=b=c", "--set", "x=1", "y=2", "--head", "fcn", "--set=z=3", "--json"]
    given = command.parse(words, OPTIONS)
    assert given == {
        "--ckpt": "a",
        "--data": "b=c",
        "--head": "fcn",
        "--store": "runs",
        "--set": ["x=1", "y=2", "z=3"],
        "--json": True,
    }
    needed = ["--ckpt", "a", "--data", "b"]
    assert command.parse([*needed, "--multi-scale"], OPTIONS, ("--json", "--multi-scale"))["--multi-scale"] is True
    assert command.parse(needed, OPTIONS, ("--json", "--multi-scale"))["--multi-scale"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt", "a", "--arch", "b"], r"'--arch' is not known"),
        (["--ckpt", "a", "--data", "b", "--haed", "c"], "nearest: --head"),
        (["--ckpt", "a", "--data", "b", "--jsno"], "nearest: --json"),
        (["--ckpt", "a", "--data", "--json"], "--data needs a value"),
        (["--ckpt", "a", "--data", "b", "x=1"], r"'x' is not known|'x=1' is not known"),
        (["--ckpt", "a"], "--data is needed"),
        (["--data", "a", "--ckpt="], "--ckpt is needed"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        command.parse(words, OPTIONS)


def test_help_is_printed_where_it_or_nothing_is_asked_for(capsys) -> None:
    def body(arguments: list[str]) -> int:
        if arguments == ["fall"]:
            raise RunError("it fell")
        return 5

    assert command.start(body, "help\n", ["--ckpt", "a", "-h"]) == 0
    assert command.start(body, "help\n", []) == 2
    assert capsys.readouterr().out == "help\nhelp\n"
    assert command.start(body, "help\n", ["go"]) == 5
    assert command.start(body, "help\n", ["fall"]) == 1
    assert capsys.readouterr().err == "failed: it fell\n"


def test_the_module_is_light() -> None:
    """In a process of its own, since tests load much."""
    code = "import sys; import transfer.command; print({'torch', 'numpy', 'hydra', 'mmseg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_checkpoint_that_is_no_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    source = open_pretrained("random", tmp_path, MODEL, 3)
    folder, who = command.place(source, "random", tmp_path)
    assert folder == tmp_path / source.origin["id"]
    assert who["run_id"] == who["group_id"] == source.origin["id"]
    other, _ = command.place(open_pretrained("random", tmp_path, MODEL, 4), "random", tmp_path)
    assert other != folder


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_a_stored_result_is_found_and_shown_without_its_engine(tmp_path: Path, task: str) -> None:
    source, chosen = open_pretrained("random", tmp_path, MODEL, 0), settings(task, ["data=made"])
    folder, _ = command.place(source, "random", tmp_path)
    path = result_path(folder, task, protocol(task, chosen))
    write_json(path, {"task": task, "metrics": {"figure": 1.5}})
    work = protocols.work_folder(folder, task, chosen)
    (work / "mmengine").mkdir(parents=True)
    for name in ("predictions.png", "metrics.jsonl", "config.py", "last.pt", "mmengine/log.png"):
        (work / name).write_text(name)
    code = (
        "import sys; from smog.tasks import settings; from transfer import command, protocols; "
        f"given = command.parse(sys.argv[1:], ('--ckpt', '--data', '--store', '--model', '--out')); "
        f"chosen, source = settings('{task}', ['data=made']), command.opened(given, 0); "
        f"code = command.of_checkpoint('{task}', source, chosen, given, 'no_such_module'); "
        f"print({{chosen.MODULE, 'mmengine', 'faster_coco_eval'}} & set(sys.modules)); "
        "sys.exit(code)"
    )
    words = ["--ckpt", "random", "--model", MODEL, "--data", "made", "--store", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown, loaded = done.stdout.splitlines()
    assert json.loads(shown) == json.loads(path.read_text())
    assert loaded == "set()"
    copied = sorted(found.name for found in (tmp_path / "out").rglob("*"))
    assert copied == ["config.py", "metrics.jsonl", "predictions.png", "result.json"]
