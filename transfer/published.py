"""A result beside the published rows of the same protocol, as text."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from smog.identity import as_dict
from smog.tasks import settings
from transfer import protocols  # noqa: F401 (which adds its tasks to the known ones)

FILE = Path(__file__).parents[1] / "reports" / "reference" / "detection.csv"
SHOWN = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
TITLES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
NAMES = {"fpn": "R50-FPN", "c4": "R50-C4"}
SIZES = {"coco": (80, 5000), "voc": (20, 4952)}  # classes, and images of val: COCO 2017 and VOC 2007 test
FREE = {
    "engine",
    "data",
    "made_train",
    "made_val",
    "made_size",
    "precision",
    "seed",
    "fingerprint",
}  # not the protocol's


class Published(NamedTuple):
    """What others report: ``figures`` in percent, ``source`` with its kind."""

    method: str
    figures: dict[str, float]
    source: str


def published(protocol: str) -> list[Published]:
    """Return the published rows of a protocol such as ``Mask R-CNN R50-FPN 1x``."""
    return rows_of(FILE, protocol=protocol)


def rows_of(path: Path, **wanted: str) -> list[Published]:
    """Return the rows of a file of published results whose columns have the wanted values, in its order: a row for
    each method and source, with all its metrics."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if all(row[column] == value for column, value in wanted.items()):
                source = f"{row['source']} ({row['kind']})"
                rows.setdefault((row["method"], source), {})[row["metric"]] = float(row["value"])
    return [Published(method, figures, source) for (method, source), figures in rows.items()]


def protocol_name(result: Mapping[str, Any]) -> str:
    """Return what papers call the protocol of a result, empty where it is not theirs to the last setting: another
    backbone, other data, a part of them, or any value changed."""
    own, inputs = result["settings"], result["inputs"]
    schedule = {"1x": "1x", "2x": "2x", "24k": "voc_24k"}.get(own["name"])
    sizes = SIZES.get(own["data"])
    if own["expects"] != "resnet50" or not schedule or sizes != (len(inputs["classes"]), inputs["val"]):
        return ""
    wanted = as_dict(settings("coco", [f"arch=r50_{own['head']}", f"schedule={schedule}", "data=made"]), True)
    if any(own[name] != value for name, value in wanted.items() if name not in FREE):
        return ""
    return f"{'Mask' if own['masks'] else 'Faster'} R-CNN {NAMES[own['head']]} {own['name']}"


def as_text(result: Mapping[str, Any], work: Path) -> str:
    """Return the result for people: parity, our figures and the published ones, per class, where the pictures are."""
    own = result["metrics"]
    names = [name for name in SHOWN if name in own]
    checkpoint = result["checkpoint"]
    ours = [f"{checkpoint['kind']} {checkpoint['id']}", *(_figure(own, name) for name in names), ""]
    rows = published(protocol_name(result))
    theirs = [[method, *(_figure(figures, name) for name in names), source] for method, figures, source in rows]
    header = ["", *(_title(name) for name in names), "source"]
    engine, schedule = result["engine"], result["settings"]["name"]
    worst = max(stage["max_abs"] for stage in result["parity"])
    lines = [
        f"{engine['name']} {engine['version']}, {schedule}, {result['inputs']['train']} images of train; "
        f"the maps of the converted backbone differ from their source by {worst:.1e} at most",
        *(f"note: {note}" for note in result["inputs"]["notes"]),
        tabulate([ours, *theirs], header, disable_numparse=True),
        tabulate(_classes(result["per_class"]), ["class", "box AP", "mask AP"], disable_numparse=True),
        f"pictures, curves and the checkpoint: {work}",
    ]
    return "\n\n".join(lines)


def _classes(found: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    return [[name, *(_figure(figures, key) for key in ("box_ap", "mask_ap"))] for name, figures in found.items()]


def _figure(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.1f}" if name in figures else ""


def _title(name: str) -> str:
    kind, _, figure = name.partition("_")
    return f"{kind} {TITLES[figure]}"
