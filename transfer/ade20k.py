"""The command ``python transfer/ade20k.py``: from a checkpoint to the numbers of a segmentor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # then a checkout's packages are to be found, and not the files of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from transfer import command

HELP = """usage: python transfer/ade20k.py --ckpt CKPT --data made|ade20k:DIR|cityscapes:DIR|voc12aug:DIR
                                 [--head upernet|fcn|linear] [--schedule smoke|20k|40k|80k|160k] [--classes FILE]
                                 [--multi-scale] [--fraction 0.1] [--seed N] [--store runs] [--model NAME]
                                 [--out DIR] [--set key=value ...] [--json]

Fine-tunes a segmentor of mmsegmentation from a checkpoint and prints its mIoU beside the published rows. The same
command goes on where it was cut; once done it prints the stored result.

--ckpt         a run (id, folder or last.pt), an export, a stranger's file (timm, torchvision, MoCo, DINO, SwAV,
               solo-learn, lightly, VISSL, mmselfsup), or `random` with --model: fresh weights
--data         made: generated scenes with exact labels; a folder or zip in the layout of ADE20K, Cityscapes or
               VOC2012 with the added labels (DIR alone is ADE20K's)
--head         upernet, fcn, or linear: one 1x1 convolution on the frozen backbone. By default upernet
--schedule     how long, on which crops; of Cityscapes 40k and 80k. By default smoke: minutes, small images
--classes      the names of a set of its own in ADE20K's layout, one a line
--multi-scale  test once more over six scales, each mirrored as well
--fraction     of the training images, drawn by the seed
--model        a timm name, where a stranger's file does not tell its architecture
--out          a copy of the result, pictures and curves there
--set          any key of transfer/conf/segmentation, such as lr=0.01 batch=4 evaluations=5 workers=2, and any of
               mmsegmentation's: model.*, train_pipeline.*, test_pipeline.*, optim_wrapper.*, param_scheduler.*

  python transfer/ade20k.py --ckpt 3fa2 --data made
  python transfer/ade20k.py --ckpt swin_tiny.pth --data ade20k:DIR --schedule 160k --multi-scale
"""
OPTIONS = (
    "--ckpt", "--data", "--head", "--schedule", "--classes", "--fraction", "--seed", "--store", "--model", "--out",
)  # fmt: skip
FLAGS = ("--multi-scale", "--json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 fell short, 2 wrong use."""
    return command.start(_main, HELP, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    given = command.parse(arguments, OPTIONS, FLAGS)
    asked = overrides(given)
    from smog.tasks import settings
    from transfer import protocols  # noqa: F401 (which adds its tasks)

    chosen = settings("ade20k", asked)
    source = command.opened(given, chosen.seed)
    if not any(override.startswith("recipe=") for override in asked):
        from transfer.spec import family_of

        chosen = settings("ade20k", [f"recipe={family_of(source.network)}", *asked])
    return command.of_checkpoint("ade20k", source, chosen, given, "transfer.segmentation.text")


def overrides(given: dict[str, Any]) -> list[str]:
    """Return what the options ask for as settings of the task; ``--set`` comes last, and holds."""
    from transfer.segmentation.protocol import LAYOUTS

    kind, _, root = given["--data"].partition(":")
    if kind not in ("made", *LAYOUTS):
        kind, root = "ade20k", given["--data"]
    schedule = given["--schedule"]
    if kind == "cityscapes" and schedule.endswith("k"):  # other crops, as the field has them; not every length is there
        schedule = f"cityscapes_{schedule}"
    named = {"head": given["--head"], "schedule": schedule, "data": kind, "root": root}
    named |= {name: given[f"--{name}"] for name in ("classes", "fraction", "seed")}
    named["multi_scale"] = "true" if given["--multi-scale"] else ""
    return [*(f"{name}={value}" for name, value in named.items() if value), *map(_own_or_theirs, given["--set"])]


def _own_or_theirs(override: str) -> str:
    """Put what is mmsegmentation's below ``mmseg``: all that has a dot, as no key of ours has one."""
    key = override.partition("=")[0]
    return f"mmseg.{override}" if "." in key and not key.startswith("mmseg.") else override


if __name__ == "__main__":
    sys.exit(main())
