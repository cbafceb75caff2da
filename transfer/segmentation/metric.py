"""Mean IoU over whole data sets, from exact counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from torch import Tensor

from smog.distributed import gathered
from transfer.segmentation.classes import IGNORE


@dataclass(frozen=True)
class Scores:
    """Figures in percent: ``metrics`` miou, macc and aacc; ``per_class`` iou and acc by name, None where undefined."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float | None]]


def counts(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return how many pixels of class i are predicted as class j, int64 [classes, classes]. Both [h, w], whole numbers;
    pixels whose truth is 255 are left out."""
    counted = truth != IGNORE
    pairs = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(matrix: np.ndarray, names: Sequence[str]) -> Scores:
    """Return the figures of a confusion matrix, int64 [classes, classes], truths down and predictions across.

    As mmsegmentation has them: the mean IoU is over classes that are there or predicted, the mean accuracy over those
    that are there, aacc over pixels. mmsegmentation adds the counts of images up in float32, which is not exact above
    16.8 million pixels a class; these are.
    """
    right, there, found = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = 100 * right / (there + found - right), 100 * right / there
        metrics = {
            "miou": float(np.nanmean(iou)),
            "macc": float(np.nanmean(accuracy)),
            "aacc": float(100 * right.sum() / there.sum()),
        }
    rows = zip(names, iou.tolist(), accuracy.tolist(), strict=True)
    return Scores(metrics, {name: {"iou": _or_none(one), "acc": _or_none(other)} for name, one, other in rows})


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


@METRICS.register_module()
class Confusion(BaseMetric):
    """The confusion matrix of a validation, summed over all processes. ``matrix`` is that of the last; ``shown`` has
    its predictions for the images whose numbers are ``kept``, uint8 [h, w], as far as they are this process's."""

    default_prefix = ""  # names of the figures stand alone

    def __init__(self, classes: int, kept: Iterable[int] = ()) -> None:
        super().__init__()
        self.classes, self.kept = classes, set(kept)
        self.matrix = np.zeros((classes, classes), np.int64)
        self.shown: dict[int, np.ndarray] = {}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch of predictions."""
        for sample in data_samples:
            truth, predicted = sample["gt_sem_seg"]["data"][0], sample["pred_sem_seg"]["data"].squeeze(0)
            self.results.append(counts(truth.to(predicted.device), predicted, self.classes).cpu().numpy())
            if sample["number"] in self.kept:
                self.shown[sample["number"]] = predicted.cpu().numpy().astype(np.uint8)

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the figures over all images, the same for every process; mmengine's own would gather every image."""
        found = self.compute_metrics(self.results)
        self.results.clear()
        return found

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Return the figures of this process's counts and those of all others."""
        own = np.sum(results, axis=0, dtype=np.int64) if results else np.zeros_like(self.matrix)
        self.matrix = np.sum(gathered(own), axis=0)
        return scores(self.matrix, [str(label) for label in range(self.classes)]).metrics
