"""The command ``python transfer/coco.py``: from a checkpoint to the numbers of a detector."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # then a checkout's packages are to be found, and not the files of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from transfer import command

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
    return command.start(_main, HELP, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    given = parse(arguments)
    from smog.tasks import settings
    from transfer import protocols  # noqa: F401 (which adds its tasks)

    chosen = settings("coco", overrides(given))
    return command.of_checkpoint("coco", command.opened(given, chosen.seed), chosen, given, "transfer.published")


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options by name; see transfer.command.parse."""
    return command.parse(arguments, OPTIONS)


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


if __name__ == "__main__":
    sys.exit(main())
