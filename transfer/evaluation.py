"""COCO's twelve figures for boxes and for masks, by faster-coco-eval: equal to pycocotools, several times as fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask

from transfer.coco_data import Dataset, uncollected

FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
Detections = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Scores:
    """Figures in percent. Those that do not exist, such as AP of small objects where there are none, are left out."""

    metrics: dict[str, float]  # box_ap, box_ap50, ...; mask_ap, ... with masks
    per_class: dict[str, dict[str, float]]  # class: box_ap, and mask_ap with masks


def coco_ap(dataset: Dataset, detections: Detections, masks: bool) -> Scores:
    """Return the figures of detections on a data set, with detectron2's settings: at most 100 detections an image and
    class, small below 32 x 32 pixels, large above 96 x 96, areas of masks by their pixels.

    ``detections``: COCO results {image_id, category_id, bbox [x, y, w, h] in pixels, score, and segmentation as RLE
    with ``masks``}; they are not changed. Raises ValueError for one on an image that the data set lacks.
    """
    strange = {found["image_id"] for found in detections} - {image.id for image in dataset.images}
    if strange:
        raise ValueError(f"detections on images that {dataset.name} lacks: {sorted(strange, key=str)[:3]}")
    metrics: dict[str, float] = {}
    classes: dict[str, dict[str, float]] = {name: {} for name in dataset.classes}
    with uncollected():
        truth = _indexed(dataset.coco())
        for prefix, kind in (("box", "bbox"), ("mask", "segm"))[: 1 + masks]:
            found = _indexed({**truth.dataset, "annotations": _results(detections, kind)})
            run = COCOeval_faster(truth, found, kind)
            run.run()
            values = zip(FIGURES, run.stats.tolist(), strict=True)
            metrics |= {f"{prefix}_{name}": 100 * value for name, value in values if value > -1}
            for name, value in zip(dataset.classes, _class_ap(run, dataset.category_ids), strict=True):
                classes[name] |= {} if value is None else {f"{prefix}_ap": 100 * value}
    return Scores(metrics, {name: figures for name, figures in classes.items() if figures})


def _indexed(content: dict[str, Any]) -> COCO:
    index = COCO()
    index.dataset = content
    index.createIndex()
    return index


def _results(detections: Detections, kind: str) -> list[dict[str, Any]]:
    """Return detections as the evaluation takes them, without what it does not need.

    Its own reader makes a polygon of every box. The area of a mask is that of its pixels, as detectron2 has it: with
    the box given as well, COCO's code would take the area of the box.
    """
    if kind == "bbox":
        shapes = [found["bbox"] for found in detections]
        areas = [width * height for _, _, width, height in shapes]
        key = "bbox"
    else:
        shapes = [found["segmentation"] for found in detections]
        areas = np.asarray(mask.area(shapes)).tolist() if shapes else []
        key = "segmentation"
    rows = enumerate(zip(detections, shapes, areas, strict=True), 1)  # 0 would stand for "no match"
    return [
        {
            "id": number, "image_id": found["image_id"], "category_id": found["category_id"],
            "score": found["score"], key: shape, "area": area, "iscrowd": 0,
        }
        for number, (found, shape, area) in rows
    ]  # fmt: skip


def _class_ap(run: COCOeval_faster, categories: list[int]) -> list[float | None]:
    """Return the AP of each category in 0 to 1, over all areas and thresholds; None where it has no object."""
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]  # [threshold, recall, category by its id]
    rows = [precision[:, :, place] for place in np.argsort(np.argsort(categories))]
    return [float(row[row > -1].mean()) if (row > -1).any() else None for row in rows]
