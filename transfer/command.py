"""What the commands of this folder share: options, where a result lies, computing it once, and showing it."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smog.errors import UsageError, exit_code, nearest

if TYPE_CHECKING:
    from smog.pretrained import Pretrained

NEEDED = ("--ckpt", "--data")
KEPT = (".png", ".yaml", ".py", ".jsonl")  # of what remains of a fine-tuning, in the copy for --out


def start(body: Callable[[list[str]], int], text: str, arguments: list[str]) -> int:
    """Run a command and return its exit code: 0 done, 1 fell short, 2 wrong use. ``text`` is its help, which is printed
    where that or nothing is asked for."""

    def run() -> int:
        if not arguments or {"-h", "--help"} & set(arguments):
            print(text, end="")
            return 0 if arguments else 2
        return body(arguments)

    return exit_code(run)


def parse(arguments: Sequence[str], options: Sequence[str], flags: Sequence[str] = ("--json",)) -> dict[str, Any]:
    """Return the options by name, "" where one is not given, and whether each flag is; ``--set`` is a list.
    ``--name=value`` and ``--name value`` are the same.

    Raises UsageError for what is not known, an option without a value, and where --ckpt or --data is missing.
    """
    given: dict[str, Any] = {**dict.fromkeys(options, ""), **dict.fromkeys(flags, False), "--store": "runs"}
    given["--set"] = []
    words = deque(part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word]))
    while words:
        name = words.popleft()
        if name in flags:
            given[name] = True
        elif name == "--set":
            while words and not words[0].startswith("--"):
                given[name].append(words.popleft())
        elif name in options:
            if not words or words[0].startswith("--"):
                raise UsageError(f"{name} needs a value")
            given[name] = words.popleft()
        else:
            raise UsageError(f"{name!r} is not known{nearest(name, [*options, '--set', *flags])}")
    for name in NEEDED:
        if not given[name]:
            raise UsageError(f"{name} is needed; --help shows how")
    return given


def opened(given: Mapping[str, Any], seed: int) -> Pretrained:
    """Return what ``--ckpt`` names; ``seed`` draws the weights of random ones."""
    from smog.pretrained import open_pretrained

    return open_pretrained(given["--ckpt"], Path(given["--store"]), given["--model"], seed)


def of_checkpoint(task: str, source: Pretrained, chosen: Any, given: Mapping[str, Any], words: str) -> int:
    """Compute the result of a checkpoint under settings, or find it, and print it; return the exit code.

    The last line is the result as JSON; before it, unless ``--json`` is given, stands what ``as_text(result, work)`` of
    the module ``words`` says. ``--out`` gets a copy.
    """
    from smog.processes import speaks
    from smog.store import read_json
    from transfer.protocols import work_folder

    folder, who = place(source, given["--ckpt"], Path(given["--store"]))
    path = computed(task, source, chosen, folder, who)
    if speaks():
        result, work = read_json(path), work_folder(folder, task, chosen)
        if given["--out"]:
            copy(path, work, Path(given["--out"]))
        if not given["--json"]:
            print(importlib.import_module(words).as_text(result, work))
        print(json.dumps(result))
    return 0


def place(source: Pretrained, ckpt: str, store: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the store where results of a checkpoint lie, and whose they are.

    A run has its own; any other checkpoint gets one by the digest of its weights. Raises UsageError for a run that is
    not finished: its weights will change, and its results would not.
    """
    from smog.config import load
    from smog.identity import group_id
    from smog.store import find_run

    origin = source.origin
    if origin["kind"] != "run":
        return store / origin["id"], {"run_id": origin["id"], "group_id": origin["id"], "seed": origin.get("seed")}
    folder = find_run(store, ckpt)
    if not origin["finished"]:
        raise UsageError(f"run {origin['id']} is not finished; run the same `smog train` again to finish it")
    config = load(folder / "config.yaml")
    return folder, {"run_id": origin["id"], "group_id": group_id(config), "seed": config.seed}


def computed(task: str, source: Pretrained, chosen: Any, folder: Path, who: dict[str, Any]) -> Path:
    """Return the path of the result of a checkpoint; unless it is there it is computed, by all processes that torchrun
    or srun started, with ``fine_tune(source, chosen, work)`` of the module where the code of the task is."""
    from smog.distributed import agreed, held, rank
    from smog.processes import joined
    from smog.signals import StopSignals
    from smog.store import result_path
    from smog.tasks import protocol
    from smog.tasks.result import write_result
    from smog.training import choose_device
    from transfer.protocols import work_folder

    code, device = protocol(task, chosen), choose_device(chosen.device)
    path = result_path(folder, task, code)
    with StopSignals(), joined(device.type):
        if not any(agreed(path.exists())):
            with held(folder, f"{task}@{code}"):
                started = time.monotonic()
                module = importlib.import_module(chosen.MODULE)  # here: a stored result needs none of its engines
                found = module.fine_tune(source, chosen, work_folder(folder, task, chosen))
                if not rank():
                    write_result(path, who, task, chosen, found, time.monotonic() - started, device)
    return path


def copy(path: Path, work: Path, out: Path) -> None:
    """Copy a result, and the pictures, curves and configuration of its training, into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, out / "result.json")
    for extra in work.glob("*"):
        if extra.suffix in KEPT:
            shutil.copyfile(extra, out / extra.name)
