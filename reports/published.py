"""Which published numbers stand beside a task's results, and how far ours are from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.cells import Cell, signed
from reports.evidence import Result
from reports.reference import TOLERANCE, Published, published
from reports.stats import Summary

IMAGENET = (1_281_167, 50_000)  # images of train and val
CIFAR10 = (50_000, 10_000)
BACKBONES = {  # ours by the names in papers
    "resnet18": "ResNet-18", "resnet18_small": "ResNet-18 (3x3 stem)", "resnet50": "ResNet-50", "swin_tiny": "Swin-T",
    "deit_small": "ViT-S",
}  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """What others report of one method: its values by metric. ``exact``: under our protocol to the last setting."""

    label: str
    words: tuple[str, ...]  # method, backbone, epochs, batch, crops, and what the number was measured with
    values: Mapping[str, float]
    source: str
    exact: bool

    def of(self, words: Sequence[str]) -> bool:
        """Say whether a subject of ours is the same method, backbone and length of training, and of the same batch and
        crops where theirs are told."""
        method, backbone, epochs, *ours = words[:5]
        told = zip(ours, self.words[3:5], strict=False)
        same = all(not theirs or one.replace(" ", "") == theirs.replace(" ", "") for one, theirs in told)
        return same and (method, BACKBONES.get(backbone, backbone), epochs) == self.words[:3]


def rivals_of(task: str, result: Result, config: Mapping[str, Any]) -> list[Rival]:
    """Return what is published for the task and data of a result, in the order of its file."""
    names = _protocols(task, result, config)
    rows: dict[tuple[str, ...], list[Published]] = {}
    for row in published():
        if row.task == task and row.protocol in names:
            rows.setdefault(
                (row.method, row.backbone, row.pretrain_epochs, row.pretrain_batch, row.crops, row.source), []
            ).append(row)
    return [_rival(found, names[found[0].protocol]) for found in rows.values()]


def _rival(rows: Sequence[Published], exact: bool) -> Rival:
    first = rows[0]
    words = (first.method, first.backbone, first.pretrain_epochs, first.pretrain_batch, first.crops, first.protocol)
    note = f"{first.source}: {first.kind}" + (f"; {first.note}" if first.note else "")
    label = ", ".join(filter(None, words[:5]))
    return Rival(label, words, {row.metric: row.value for row in rows}, note, exact)


def _protocols(task: str, result: Result, config: Mapping[str, Any]) -> dict[str, bool]:
    """Return what papers call a result's protocol, and whether it is theirs to the last setting."""
    inputs, settings = result["inputs"], result.get("settings", {})
    sizes = inputs.get("train"), inputs.get("val")
    imagenet = sizes == IMAGENET
    if task in ("coco", "ade20k"):
        return {name: True} if (name := _transferred(task, result)) else {}
    if task == "knn" and imagenet:
        return {"ImageNet-1k k-NN": (settings.get("k"), settings.get("temperature")) == (20, 0.07)}
    if task == "knn" and config.get("data.name") == "cifar10" and sizes == CIFAR10:
        return {"CIFAR-10 k-NN k=200, max over epochs": False}  # theirs is the best epoch on the test images
    if task == "linear" and imagenet:
        return {"ImageNet-1k linear probe": False}  # ours is trained on features without augmentation
    if task == "semi" and imagenet:
        return {f"ImageNet-1k {100 * settings.get('fraction', 0):g}% labels": False}
    return {}


def _transferred(task: str, result: Result) -> str:
    """Return what papers call the protocol of a detector or segmentor; empty where its settings are of others."""
    from transfer.published import protocol_name as detection
    from transfer.segmentation.text import protocol_name as segmentation

    try:
        return (detection if task == "coco" else segmentation)(result)
    except (KeyError, TypeError):  # a result of a stranger, or of another version
        return ""


def gap_cell(ours: Summary, reported: float) -> Cell:
    """Return ours minus the reported number, and whether it is within the tolerance and our own interval."""
    if ours.mean is None:
        return Cell("")
    gap = ours.mean - reported
    own = (ours.high - ours.mean) if ours.high is not None else 0.0
    within = abs(gap) <= TOLERANCE + own
    text = f"{signed(gap, 1)} ({'within' if within else 'outside'} {TOLERANCE + own:.1f})"
    return Cell(text, gap, () if within else ("outside",))
