"""The command ``python transfer/coco.py``: from a checkpoint to the numbers of a detector."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, a checkout's packages are found

from smog.errors import UsageError, exit_code, nearest

if TYPE_CHECKING:
    from smog.pretrained import Pretrained
    from transfer.protocols import Detection

HELP = """usage: python transfer/coco.py --ckpt CKPT --data made|coco:DIR|voc:DIR
                               [--arch fpn|r50_fpn|c4|r50_c4|swin_fpn] [--schedule smoke|1x|2x|voc_24k]
                               [--engine auto|detectron2|torchvision] [--fraction 0.1] [--seed N] [--store runs]
                               [--model NAME] [--out DIR] [--set key=value ...] [--json]

Fine-tunes Mask R-CNN (on VOC: Faster R-CNN) from a checkpoint and prints its AP beside the published rows. The same
command goes on where it was cut; once done it prints the stored result.

--ckpt      a run (id, folder or last.pt), an export, a stranger's file (timm, torchvision, MoCo, DINO, SwAV,
            solo-learn, lightly, VISSL, mmselfsup), or `random` with --model: fresh weights
--data      made: generated scenes with exact boxes and masks; a folder or zip in COCO's or VOC's layout (coco:DIR;
            DIR alone is COCO's)
--arch      the detector; r50_* hold the checkpoint to a ResNet-50. By default fpn, of the checkpoint's backbone
--schedule  how long, on which sizes. By default smoke: minutes, small images
--engine    auto takes detectron2 where it is installed
--fraction  of the training images, drawn by the seed
--model     a timm name, where a stranger's file does not tell its architecture
--out       a copy of the result, pictures and curves there
--set       any key of transfer/conf, such as lr=0.01 batch=4 micro_batch=2 evaluations=5 workers=2

  python transfer/coco.py --ckpt 3fa2 --data made
  python transfer/coco.py --ckpt resnet50.pth --data coco:DIR --arch r50_fpn --schedule 1x
"""
OPTIONS = (
    "--ckpt", "--data", "--arch", "--schedule", "--engine", "--fraction", "--seed", "--store", "--model", "--out",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 fell short, 2 wrong use."""
    return exit_code(_main, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    given = parse(arguments)
    from smog.tasks import settings
    from transfer import protocols  # which adds its tasks

    chosen: Detection = settings("coco", overrides(given))
    from smog.pretrained import open_pretrained

    store = Path(given["--store"])
    source = open_pretrained(given["--ckpt"], store, given["--model"], chosen.seed)
    folder, who = place(source, given["--ckpt"], store)
    path = computed(source, chosen, folder, who)
    from smog.processes import speaks
    from smog.store import read_json

    if speaks():
        result = read_json(path)
        if given["--out"]:
            _copy(path, protocols.work_folder(path.parents[1], chosen), Path(given["--out"]))
        if not given["--json"]:
            from transfer.published import as_text

            print(as_text(result, protocols.work_folder(path.parents[1], chosen)))
        print(json.dumps(result))
    return 0


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options by name; ``--set`` is a list. ``--name=value`` and ``--name value`` are the same."""
    given: dict[str, Any] = {**dict.fromkeys(OPTIONS, ""), "--store": "runs", "--set": [], "--json": False}
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    place = 0
    while place < len(words):
        name, place = words[place], place + 1
        if name == "--json":
            given[name] = True
        elif name == "--set":
            start = place
            while place < len(words) and not words[place].startswith("--"):
                place += 1
            given[name] += words[start:place]
        elif name in OPTIONS:
            if place == len(words) or words[place].startswith("--"):
                raise UsageError(f"{name} needs a value")
            given[name], place = words[place], place + 1
        else:
            raise UsageError(f"{name!r} is not known{nearest(name, [*OPTIONS, '--set', '--json'])}")
    for name in ("--ckpt", "--data"):
        if not given[name]:
            raise UsageError(f"{name} is needed; --help shows how")
    return given


def overrides(given: dict[str, Any]) -> list[str]:
    """Return what the options ask for as settings of the task; ``--set`` comes last, and holds."""
    kind, _, root = given["--data"].partition(":")
    if kind not in ("made", "coco", "voc"):
        kind, root = "coco", given["--data"]
    arch, schedule = given["--arch"], given["--schedule"]
    if arch == "swin_fpn":  # other steps and rates, as its authors have them
        schedule = f"swin_{schedule or 'smoke'}"
    named = {"arch": arch, "schedule": schedule, "data": kind, "root": root}
    named |= {name: given[f"--{name}"] for name in ("engine", "fraction", "seed")}
    return [*(f"{name}={value}" for name, value in named.items() if value), *given["--set"]]


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


def computed(source: Pretrained, chosen: Detection, folder: Path, who: dict[str, Any]) -> Path:
    """Return the path of the result of a checkpoint; unless it is there it is computed, by all processes that torchrun
    or srun started."""
    from smog.distributed import agreed, held, rank
    from smog.processes import joined
    from smog.signals import StopSignals
    from smog.store import result_path
    from smog.tasks import protocol
    from smog.tasks.result import write_result
    from smog.training import choose_device
    from transfer.detection import fine_tune
    from transfer.protocols import work_folder

    code, device = protocol("coco", chosen), choose_device(chosen.device)
    path = result_path(folder, "coco", code)
    with StopSignals(), joined(device.type):
        if not any(agreed(path.exists())):
            with held(folder, f"coco@{code}"):
                started = time.monotonic()
                found = fine_tune(source, chosen, work_folder(folder, chosen))
                if not rank():
                    write_result(path, who, "coco", chosen, found, time.monotonic() - started, device)
    return path


def _copy(path: Path, work: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, out / "result.json")
    for extra in work.glob("*"):
        if extra.suffix in (".png", ".yaml", ".jsonl"):
            shutil.copyfile(extra, out / extra.name)


if __name__ == "__main__":
    sys.exit(main())
