"""A segmentor's result beside the published rows of the same protocol, as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from smog.identity import as_dict
from smog.tasks import settings
from transfer import protocols  # noqa: F401 (which adds its tasks to the known ones)
from transfer.published import Published, rows_of

FILE = Path(__file__).parents[2] / "reports" / "reference" / "segmentation.csv"
DECODERS = {"upernet": "UPerNet", "fcn": "FCN", "linear": "linear head"}
TITLES = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}
MULTI_SCALE = "_ms"  # ends the names of what was tested over scales and mirrored
BACKBONES = {
    "swin_tiny_patch4_window7_224": "Swin-T",
    "vit_small_patch16_224": "ViT-S",
    "deit_small_patch16_224": "ViT-S",
}
SIZES = (150, 20210, 2000)  # classes, and images of train and val: ADE20K of the challenge of 2016
EXACT = "UPerNet 160k single-scale"  # of Swin-T
SCALED = "UPerNet 160k multi-scale + flip"  # the same, tested over scales
ALIKE = "UPerNet 160k"  # of ViT-S: whoever reports it leaves part of the recipe open
PROTOCOLS = {("swin", "Swin-T"): EXACT, ("vit", "ViT-S"): ALIKE}
OPEN = "same head and schedule; their recipe is not known to the last setting:"
FREE = {
    "data",
    "made_train",
    "made_val",
    "made_size",
    "multi_scale",
    "precision",
    "seed",
    "fingerprint",
}  # no protocol's
UNDEFINED = "--"
FEW, SOME = 30, 60  # classes that stand in one column, and in two; more stand in three
LONGEST = 24  # characters of a name where there are several columns


def protocol_name(result: Mapping[str, Any]) -> str:
    """Return what papers call the protocol of a result, empty where it is not theirs: another backbone, other data, a
    part of them, or any value of the composed protocol changed. ``ALIKE`` is theirs only as far as they tell."""
    own, inputs = result["settings"], result["inputs"]
    name = PROTOCOLS.get((own["family"], _backbone(result)), "")
    sizes = len(inputs["classes"]), inputs["train"], inputs["val"]
    if not name or own["data"] != "ade20k" or sizes != SIZES:
        return ""
    overrides = ["head=upernet", f"recipe={own['family']}", "schedule=160k", "data=made"]
    wanted = as_dict(settings("ade20k", overrides), science_only=True)
    return name if all(own.get(key) == value for key, value in wanted.items() if key not in FREE) else ""


def as_text(result: Mapping[str, Any], work: Path) -> str:
    """Return the result for people: parity, our figures and the published ones, per class, where the pictures are."""
    engine, chosen = result["engine"], result["settings"]
    worst = max(stage["max_abs"] for stage in result["parity"])
    lines = [
        f"{engine['name']} {engine['version']} (mmcv {engine['mmcv']}), {DECODERS[chosen['decoder']]}, "
        f"{chosen['name']}, {result['inputs']['train']} images of train; "
        f"the maps of the backbone in it differ from their source by {worst:.1e} at most",
        *(f"note: {note}" for note in result["inputs"]["notes"]),
        *_compared(result),
        _classes(result["per_class"]),
        f"pictures, curves and the checkpoint: {work}",
    ]
    return "\n\n".join(lines)


def _compared(result: Mapping[str, Any]) -> list[str]:
    """Return the table of our figures and the published ones of exactly this protocol; those that may differ in a
    setting follow apart."""
    own, name = result["metrics"], protocol_name(result)
    names = [title + end for end in ("", MULTI_SCALE) for title in TITLES if title + end in own]
    ours = Published(f"{result['checkpoint']['kind']} {result['checkpoint']['id']}", own, "")
    rows = _published(name, _backbone(result))
    if name != ALIKE:
        return [_table([ours, *rows], names)]
    reported = [one for one in names if any(one in row.figures for row in rows)]
    return [_table([ours], names), f"{OPEN}\n{_table(rows, reported)}"]


def _published(name: str, backbone: str) -> list[Published]:
    rows = rows_of(FILE, task="ade20k", protocol=name, backbone=backbone)
    if name != EXACT:
        return rows
    scaled = {row.method: row.figures for row in rows_of(FILE, task="ade20k", protocol=SCALED, backbone=backbone)}
    return [row._replace(figures=row.figures | _as_scaled(scaled.get(row.method, {}))) for row in rows]


def _as_scaled(figures: Mapping[str, float]) -> dict[str, float]:
    return {metric + MULTI_SCALE: value for metric, value in figures.items()}


def _table(rows: list[Published], names: list[str]) -> str:
    drawn = [[row.method, *(_drawn(row, name) for name in names), row.source] for row in rows]
    return tabulate(drawn, ["", *(_title(name) for name in names), "source"], disable_numparse=True)


def _drawn(row: Published, name: str) -> str:
    """Return a figure: ours with two decimals, that of others with those that they printed."""
    if name not in row.figures:
        return ""
    return str(row.figures[name]) if row.source else f"{row.figures[name]:.2f}"


def _title(name: str) -> str:
    metric, scaled, _ = name.partition(MULTI_SCALE)
    return TITLES[metric] + (" (ms+flip)" if scaled else "")


def _backbone(result: Mapping[str, Any]) -> str:
    """Return the name that papers give the backbone; a tag of timm's, such as .dino, tells weights alone."""
    return BACKBONES.get(result["engine"]["backbone"].partition(".")[0], "")


def _classes(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return IoU and accuracy of each class in its order, down and then across, so that 150 classes fit a screen."""
    columns = 1 if len(found) <= FEW else 2 if len(found) <= SOME else 3
    short = [_short(name) if columns > 1 else name for name in found]
    cells = [
        [name, *(_figure(one[key]) for key in ("iou", "acc"))] for name, one in zip(short, found.values(), strict=True)
    ]
    length = -(-len(cells) // columns)
    parts = [cells[start : start + length] for start in range(0, len(cells), length)]
    rows = [[text for cell in row for text in cell] for row in itertools.zip_longest(*parts, fillvalue=("", "", ""))]
    return tabulate(rows, ["class", "IoU", "acc"] * columns, disable_numparse=True)


def _figure(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 2] + ".."
