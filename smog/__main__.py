"""The command ``smog``: train a run, evaluate it, show it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smog.errors import UsageError, exit_code, nearest

HELP = """usage: smog train [recipe=demo] [data=garments] [seed=0] [store=runs] [key=value ...]
       smog train action=cost [gpus=1] [format=json] [recipe=demo] [key=value ...]
       smog eval knn|linear|diagnostics RUN [store=runs] [format=json] [key=value ...]
       smog show RUN [store=runs] [format=json]
       smog export RUN --format timm --out DIR [store=runs]

train  trains one run, or goes on with it where it was cut; running it again does no work. action=cost starts
       nothing: it prints a model of the steps, FLOPs, memory and hours, on so many devices, for which no data is needed
eval   computes a task from a finished run's frozen backbone, unless its result is in the store
show   prints a run's configuration, environment, cost and results
export writes a finished run's backbone into a new folder, with a model card, that timm loads:
       timm.create_model("local-dir:DIR", pretrained=True)

RUN is a run id or its first characters, a run's folder, or a checkpoint file.
Keys are those of smog/conf/*.yaml; a wrong one is answered with the nearest names.

  smog train recipe=demo seed=0 method.num_groups=300
  smog train data=cifar10 data.root=DIR
  smog train recipe=demo action=cost backbone=resnet50 views.size=224
  smog eval knn 3fa2 k=5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 fell short, 2 wrong use."""
    return exit_code(_dispatch, list(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        raise UsageError(f"no command {command!r}{nearest(command, COMMANDS)}")
    COMMANDS[command](rest)
    return 0


def _train(arguments: list[str]) -> None:
    action, rest = take(arguments, "action", "train")
    if action not in ("train", "cost"):
        raise UsageError(f"action={action!r}{nearest(action, ('train', 'cost'))}")
    (_cost if action == "cost" else _run)(rest)


def _run(arguments: list[str]) -> None:
    from smog.config import compose

    store, rest = take(arguments, "store", "")
    config = compose([*rest, f"runtime.store={store}"] if store else rest)
    from smog.processes import speaks
    from smog.training import train

    folder = train(config)
    if speaks():
        print(folder)


def _cost(arguments: list[str]) -> None:
    _, rest = take(arguments, "store", "")  # nothing is written there
    gpus, rest = take(rest, "gpus", "1")
    if not gpus.isdecimal() or not int(gpus):
        raise UsageError(f"gpus={gpus!r}: a whole number of at least 1 expected")
    as_json, rest = take_json(rest)
    from smog.config import compose

    config = compose(rest)
    from smog.cost import cost
    from smog.cost_text import as_text

    found = cost(config, int(gpus))
    print(json.dumps(found, indent=1) if as_json else as_text(found))


def _eval(arguments: list[str]) -> None:
    from smog.store import find_run, read_json
    from smog.tasks import evaluate, settings

    store, rest = take(arguments, "store", "runs")
    as_json, rest = take_json(rest)
    if len(rest) < 2:
        raise UsageError("smog eval needs a task and a run: smog eval knn RUN")
    task, run, *overrides = rest
    chosen = settings(task, overrides)
    result = read_json(evaluate(find_run(Path(store), run), task, chosen))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{task} of {result['run_id']}: " + ", ".join(f"{k} {v:.4g}" for k, v in result["metrics"].items()))


def _show(arguments: list[str]) -> None:
    from smog.store import find_run, read_json

    store, rest = take(arguments, "store", "runs")
    as_json, rest = take_json(rest)
    if len(rest) != 1:
        raise UsageError("smog show needs one run: smog show RUN")
    folder = find_run(Path(store), rest[0])
    found = {
        "run": str(folder),
        "config": _yaml(folder / "config.yaml"),
        "environment": read_json(folder / "env.json"),
        "cost": read_json(folder / "done") if (folder / "done").exists() else "not finished",
        "results": {path.stem: read_json(path)["metrics"] for path in sorted((folder / "results").glob("*@*.json"))},
    }
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        import yaml

        print(yaml.safe_dump(found, sort_keys=False), end="")


def _export(arguments: list[str]) -> None:
    from smog.export import export
    from smog.store import find_run

    arguments = plain(arguments, ("format", "out", "store"))
    store, rest = take(arguments, "store", "runs")
    kind, rest = take(rest, "format", "timm")
    out, rest = take(rest, "out", "")
    if len(rest) != 1 or not out:
        raise UsageError("smog export needs a run and a folder: smog export RUN --format timm --out DIR")
    print(export(find_run(Path(store), rest[0]), Path(out), kind))


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def take(arguments: Sequence[str], key: str, default: str) -> tuple[str, list[str]]:
    """Return the value of ``key=value`` among the arguments, or the default, and the other arguments."""
    values = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{key}=")]
    return (values[-1] if values else default), [a for a in arguments if not a.startswith(f"{key}=")]


def plain(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the arguments with ``--key value`` and ``--key=value`` written as ``key=value``."""
    words, result = iter(arguments), []
    for word in words:
        key, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key not in keys:
            result.append(word)
        else:
            result.append(word[2:] if equals else f"{key}={next(words, '')}")
    return result


def take_json(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Say whether ``format=json`` or ``--json`` is asked for, and return the other arguments."""
    kind, rest = take(arguments, "format", "text")
    if kind not in ("text", "json"):
        raise UsageError(f"format={kind!r}{nearest(kind, ('text', 'json'))}")
    return kind == "json" or "--json" in rest, [argument for argument in rest if argument != "--json"]


COMMANDS = {"train": _train, "eval": _eval, "show": _show, "export": _export}

if __name__ == "__main__":
    sys.exit(main())
