"""Spherical k-means of many features into many clusters: seconds for 100,000 features and 3,000 clusters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smog.nearest import nearest, rows_at_once

ITERATIONS = 10  # at most, our choice; the groups move on with every step anyway
GAIN = 5e-3  # relative decrease of the mean of 1 - cosine below which they end
SAMPLE = 6  # features a cluster that it starts on, and
LEAST_SAMPLE = 8192  # in all; what the others add comes in the last iterations
ROUNDS = 32  # of choosing the start; up to so many clusters they are chosen one by one, as k-means++ does
TRIES = 3  # features drawn for each that is chosen, and
LEAST_TRIES = 8  # in all
APART = 0.1  # mean of 1 - cosine at the start below which the 1/256 of bf16 would cost more than 0.5 % of it
NEVER_NIL = 1e-12  # a distance, so that a draw is also possible among features that are all equal


@torch.no_grad()
def spherical_kmeans(features: Tensor, clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return unit centroids [K, d] of the features [n, d], n >= K, under the cosine, and each feature's cluster [n].

    It starts on a sample and goes on with all. No cluster is empty: one that would be takes the feature that its own
    centroid represents worst. All randomness is from the generator, which lives on the CPU.
    """
    features = F.normalize(features, dim=1)
    order = torch.randperm(len(features), generator=generator)[: max(SAMPLE * clusters, LEAST_SAMPLE)]
    sample = features[order.to(features.device)]
    rows, far = _spread(sample, clusters, generator)
    products = _type_of_products(features, far)
    centroids, own = _lloyd(sample, sample[rows], products)
    if len(sample) < len(features):
        return _lloyd(features, centroids, products)
    return centroids, torch.empty_like(own).index_copy_(0, order.to(own.device), own)


def _type_of_products(features: Tensor, far: Tensor) -> torch.dtype:
    """Return bf16 where the CPU multiplies it several times as fast and the clusters are far enough apart for it."""
    fast = features.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and features.dtype == torch.float32 and far.mean() > APART else features.dtype


def _lloyd(features: Tensor, centroids: Tensor, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the centroids after some iterations, and each feature's cluster, of which they are the means."""
    compared, before = features.to(products), math.inf
    for _ in range(ITERATIONS):
        own, cosine = nearest(compared, centroids.to(products))
        own = _without_empty(features, own, centroids)
        centroids = F.normalize(torch.zeros_like(centroids).index_add_(0, own, features), dim=1)
        gap = float(1 - cosine.mean())
        if gap > (1 - GAIN) * before:
            break
        before = gap
    return centroids, own


def _spread(features: Tensor, clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows to start from [K], and 1 - cosine of every feature to the nearest of them [n].

    As k-means++ (Arthur and Vassilvitskii 2007) draws a row with the probability of its distance from those before
    and keeps the best of a few, but many rows a round (as k-means||, arXiv 1203.6402), at even steps along the
    cumulated distances. They are cumulated on the CPU in fp64: a GPU may sum in any order. No row is drawn twice.
    """
    far = features.new_full((len(features),), 2.0)  # the opposite side: the first are drawn without preference
    rows = torch.empty(0, dtype=torch.int64, device=features.device)
    while len(rows) < clusters:
        wanted = min(-(-clusters // ROUNDS), clusters - len(rows))
        drawn = _draws(far.cpu().double(), max(TRIES * wanted, LEAST_TRIES), generator).to(features.device)
        best = _gain(features, features[drawn], far).topk(min(wanted, len(drawn))).indices
        rows = torch.cat([rows, drawn[best]])
        far = torch.minimum(far, _distance(features, features[drawn[best]]))
        far[rows] = 0
    return rows, far


def _draws(far: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to ``count`` different rows with a probability as their distance; at least one, none at distance 0."""
    at = (torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
    cumulated = far.cumsum(0)
    drawn = torch.searchsorted(cumulated, at * cumulated[-1], right=True).clamp(max=len(far) - 1).unique()
    return drawn[far[drawn] > 0]


def _gain(features: Tensor, others: Tensor, far: Tensor) -> Tensor:
    """Return by how much each of the others [m], alone, would lessen the sum of the distances ``far`` [n]."""
    gain = features.new_zeros(len(others))
    rows = rows_at_once(len(others), features.device)
    for part, before in zip(features.split(rows), far.split(rows), strict=True):
        gain += (part @ others.T).add_(before[:, None] - 1).relu_().sum(dim=0)
    return gain


def _distance(features: Tensor, others: Tensor) -> Tensor:
    """Return 1 - cosine of every feature to the nearest of the others [n], never 0; also where it is no number."""
    rows = rows_at_once(len(others), features.device)
    cosine = torch.cat([(part @ others.T).amax(dim=1) for part in features.split(rows)])
    return (1 - cosine).nan_to_num(nan=NEVER_NIL).clamp(min=NEVER_NIL)


def _without_empty(features: Tensor, own: Tensor, centroids: Tensor) -> Tensor:
    """Return the clusters [n] with the empty ones filled by the features that are represented worst, the worst for
    the first. The best of every cluster stays, so that none is emptied in turn."""
    empty = (torch.bincount(own, minlength=len(centroids)) == 0).nonzero().flatten()
    if not len(empty):
        return own
    best_first = (features * centroids[own]).sum(dim=1).argsort(descending=True, stable=True)
    by_cluster = best_first[own[best_first].argsort(stable=True)]
    stays = torch.zeros_like(own, dtype=torch.bool)
    stays[by_cluster] = own[by_cluster] != own[by_cluster].roll(1)  # the first of its cluster
    worst_first = best_first[~stays[best_first]].flip(0)
    return own.index_put((worst_first[: len(empty)],), empty)
