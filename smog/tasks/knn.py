"""Weighted k-nearest-neighbour classification on frozen features (Wu et al., arXiv 1805.01978; DINO's protocol)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smog.errors import UsageError
from smog.tasks.protocols import Knn
from smog.tasks.result import Features

CHUNK = 1024  # rows of val compared with all of train at once


def compute(features: Features, settings: Knn) -> dict[str, float]:
    """Return top-1 and top-5 in percent of val images, with all train images as candidates."""
    if settings.k > len(features.train):
        raise UsageError(f"k={settings.k} is above the {len(features.train)} training images")
    scores = knn_scores(features, settings)
    best = scores.topk(min(5, features.classes), dim=1).indices == features.val_labels[:, None]
    return {"top1": 100 * float(best[:, :1].double().sum(1).mean()), "top5": 100 * float(best.double().sum(1).mean())}


def knn_scores(features: Features, settings: Knn) -> Tensor:
    """Return the summed weights of the k nearest training images by class, float64 [n_val, classes].

    Neighbours that tie at the k-th place are taken as torch.topk finds them.
    """
    train, val = F.normalize(features.train, dim=1), F.normalize(features.val, dim=1)
    parts = []
    for rows in val.split(CHUNK):
        cosine, place = (rows @ train.T).topk(settings.k, dim=1)
        # less the largest of the row, which changes no order and keeps exp in range
        weight = ((cosine.double() - cosine[:, :1].double()) / settings.temperature).exp()
        votes = torch.zeros(len(rows), features.classes, dtype=torch.float64)
        parts.append(votes.scatter_add_(1, features.train_labels[place], weight))
    return torch.cat(parts)
