"""The data of a detection task by name: where they come from, how they are scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smog.data import scenes
from smog.errors import UsageError
from smog.identity import digest

if TYPE_CHECKING:
    from transfer.coco_data import Dataset
    from transfer.evaluation import Scores
    from transfer.protocols import Detection


def fingerprint(chosen: Detection) -> str:
    """Return 12 hex digits over what the settings do not say of the images and annotations themselves."""
    if chosen.data == "made":
        return digest(["garments", scenes.VERSION])
    from transfer import coco_data, voc

    return (voc if chosen.data == "voc" else coco_data).fingerprint(Path(chosen.root))


def open_data(chosen: Detection, split: str) -> Dataset:
    """Open a split, checked; of train the fraction that is asked for. Raises UsageError for what is wrong with it, and
    where masks are asked for and it has none."""
    from transfer import coco_data, made, voc

    if chosen.data == "made":
        count = chosen.made_train if split == "train" else chosen.made_val
        found = made.open_made(split, images=count, size=chosen.made_size)
    else:
        found = (voc.open_voc if chosen.data == "voc" else coco_data.open_coco)(Path(chosen.root), split)
    if chosen.masks and not found.has_masks:
        raise UsageError(f"{chosen.root}: {split} has boxes and no segmentations; take masks=false, Faster R-CNN")
    return (
        coco_data.fraction(found, chosen.fraction, chosen.seed) if split == "train" and chosen.fraction < 1 else found
    )


def score(dataset: Dataset, found: list[dict[str, Any]], chosen: Detection) -> Scores:
    """Return the figures of detections, by the rules of the data."""
    from transfer import evaluation, voc

    return voc.voc_ap(dataset, found) if chosen.data == "voc" else evaluation.coco_ap(dataset, found, chosen.masks)
