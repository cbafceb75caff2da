"""The heart: groups of images that move with every step (SMoG, arXiv 2207.06167, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smog.distributed import rows_of_all_ranks, sum_over_ranks

CHUNK = 8192  # rows compared with the groups at once, so that memory stays bounded
ITERATIONS = 10  # of k-means at a regroup, our choice; the groups move on with every step anyway
EPSILON = 0.05  # temperature of the balanced assignment, SwAV's
SINKHORN = 3  # iterations of it, SwAV's
DUPLICATE = 0.99  # cosine above which two groups are counted as one


class GroupBank(nn.Module):
    """K group vectors, their synchronous momentum update, and the cache of features that k-means starts from again.

    The state is in buffers, so that a checkpoint holds all of it: ``groups`` [K, d], ``cache`` [N, d] (a ring),
    ``pushed`` (features pushed so far). Features are taken as they come; whoever wants them on the sphere
    normalises them before. Under a process group all ranks hold the same groups and the same cache.
    """

    groups: Tensor
    cache: Tensor
    pushed: Tensor

    def __init__(
        self, num_groups: int, dim: int, momentum: float = 0.99, cache_size: int = 8192, start: str = "sphere"
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be from 0 to 1")
        if num_groups > cache_size:
            raise ValueError(f"num_groups={num_groups} is above cache_size={cache_size}: k-means could not fill them")
        self.momentum = momentum
        self.active = num_groups  # set from outside, a function of the step, so no part of the state
        # on the sphere, our choice: the start is open in the paper; lightly's is uniform in [0, 1), one orthant
        drawn = torch.rand(num_groups, dim) if start == "orthant" else torch.randn(num_groups, dim)
        self.register_buffer("groups", F.normalize(drawn, dim=1))
        self.register_buffer("cache", torch.zeros(cache_size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        """Take the features of the first batch of all ranks, [..., d], as groups; further groups stay as they are."""
        rows = rows_of_all_ranks(z, dim=-2).flatten(0, -2)[: self.active]
        self.groups[: len(rows)] = rows

    @torch.no_grad()
    def assign(self, z: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the nearest group by cosine, int64 [B], for features [B, d]. No gradient (paper, eq. 3 with argmax:
        the printed argmin is a probable slip, see lightly's PR 888)."""
        return _nearest(z, F.normalize(self.groups[: self.active] if groups is None else groups, dim=1))[0]

    @torch.no_grad()
    def balanced(self, z: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return a group for each feature [B, d] of all ranks, int64 [B], spread evenly (Sinkhorn, SwAV's)."""
        groups = self.groups[: self.active] if groups is None else groups
        score = F.normalize(z, dim=1) @ F.normalize(groups, dim=1).T / EPSILON
        share = (score - score.max(dim=1, keepdim=True).values).exp()
        for _ in range(SINKHORN):
            share = share / sum_over_ranks(share.sum(dim=0)).clamp(min=1e-12)
            share = share / share.sum(dim=1, keepdim=True)
        return share.argmax(dim=1)

    def updated(self, z: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the groups [K, d] after one synchronous update with the features [B, d] of all ranks (paper, eq. 4).

        A group that features were assigned to becomes momentum x itself + (1 - momentum) x their mean; the others
        stay. Gradient reaches z through the (1 - momentum) part alone. ``own`` is what ``assign`` says of them.
        """
        own = self.assign(z) if own is None else own
        before = self.groups[: self.active]
        sums, counts = _sums(z, own, self.active)
        counts = sum_over_ranks(counts)
        mean = sum_over_ranks(sums) / counts.clamp(min=1)[:, None]
        share = (1 - self.momentum) * (counts > 0).to(before.dtype)[:, None]
        return before + share * (mean - before)

    def loss(self, q: Tensor, groups: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Return the mean cross entropy of q [n, d] over the groups [K, d], for targets int64 [n] or, several a row,
        [n, T]; -100 is none (paper, eq. 5)."""
        logits, target = self.logits(q, groups, temperature), target.view(len(q), -1)
        found = logits.logsumexp(dim=1, keepdim=True) - logits.gather(1, target.clamp(min=0))
        return (found * (target >= 0)).sum() / (target >= 0).sum()

    def logits(self, q: Tensor, groups: Tensor, temperature: float) -> Tensor:
        """Return the cosines of q [B, d] and the groups [K, d] over the temperature, [B, K] (paper, eq. 5)."""
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        return F.normalize(q, dim=1) @ F.normalize(groups, dim=1).T / temperature

    @torch.no_grad()
    def commit(self, groups: Tensor, z: Tensor, own: Tensor | None = None) -> None:
        """Keep the updated groups [K, d], detached, and push the features [..., d] of all ranks into the cache."""
        self.groups[: self.active] = groups
        rows = rows_of_all_ranks(z.detach(), dim=-2).flatten(0, -2).to(self.cache.dtype)
        self.pushed += len(rows)
        kept = rows[-len(self.cache) :]
        self.cache[(self.pushed - len(kept) + torch.arange(len(kept), device=rows.device)) % len(self.cache)] = kept

    def cached(self) -> Tensor:
        """Return the features that the cache holds so far, [n, d]."""
        return self.cache[: min(int(self.pushed), len(self.cache))]

    @torch.no_grad()
    def regroup(self, generator: torch.Generator) -> None:
        """Put spherical k-means of the cache in place of the groups (paper, against collapse). The generator lives on
        the CPU and must be the same on all ranks. With fewer cached features than groups nothing is done."""
        features = self.cached()
        if len(features) >= self.active:
            self.groups[: self.active] = spherical_kmeans(features, self.active, generator)

    @torch.no_grad()
    def usage(self) -> dict[str, float]:
        """Say how the cached features spread over the groups.

        ``entropy``: of the shares, over ln K, so 1 is even; ``dead``: groups with no feature; ``duplicates``: groups
        with an earlier one at a cosine above 0.99; ``largest``: the largest share. An empty cache gives zeros.
        """
        features, groups = self.cached(), F.normalize(self.groups[: self.active], dim=1)
        if not len(features):
            return {"entropy": 0.0, "dead": 0.0, "duplicates": 0.0, "largest": 0.0}
        counts = torch.bincount(self.assign(features), minlength=len(groups)).double()
        share = counts / counts.sum()
        entropy = -(share * share.clamp(min=1e-30).log()).sum() / math.log(len(groups))
        return {
            "entropy": float(entropy),
            "dead": float((counts == 0).sum()),
            "duplicates": float(_duplicates(groups)),
            "largest": float(share.max()),
        }


@torch.no_grad()
def spherical_kmeans(
    features: Tensor, clusters: int, generator: torch.Generator, iterations: int = ITERATIONS
) -> Tensor:
    """Return unit centroids [K, d] of the features [n, d] under the cosine, from K random rows.

    A cluster that runs empty takes the feature that its own centroid represents worst, the worst for the first.
    """
    features = F.normalize(features, dim=1)
    centroids = features[_spread(features, clusters, generator)]
    for _ in range(iterations):
        own, cosine = _nearest(features, centroids)
        sums, counts = _sums(features, own, clusters)
        empty = (counts == 0).nonzero().flatten()
        sums[empty] = features[cosine.argsort()[: len(empty)]]
        centroids = F.normalize(sums, dim=1)
    return centroids


def _spread(features: Tensor, clusters: int, generator: torch.Generator) -> list[int]:
    """Return rows to start from, far from one another with probability (k-means++, Arthur and Vassilvitskii 2007)."""
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64).to(features.device)
    chosen = [int(draws[0] * len(features))]
    far = (1 - features @ features[chosen[0]]).double().clamp(min=1e-12)
    for draw in draws[1:]:
        far[chosen[-1]] = 0
        total = far.cumsum(0)
        chosen.append(min(int(torch.searchsorted(total, draw * total[-1], right=True)), len(far) - 1))
        far = torch.minimum(far, (1 - features @ features[chosen[-1]]).double().clamp(min=1e-12))
    return chosen


def _nearest(z: Tensor, unit_groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the group with the largest product, int64 [B], and that product [B]; a chunk of rows at a time."""
    parts = [(part @ unit_groups.T).max(dim=1) for part in z.split(CHUNK)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _sums(z: Tensor, own: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the features of each group [K, d] and their number [K]."""
    counts = torch.bincount(own, minlength=groups).to(z.dtype)
    return z.new_zeros(groups, z.shape[1]).index_add(0, own, z), counts


def _duplicates(unit_groups: Tensor) -> int:
    found = 0
    for start in range(0, len(unit_groups), CHUNK):
        cosine = unit_groups[start : start + CHUNK] @ unit_groups.T
        found += int((cosine.tril(diagonal=start - 1) > DUPLICATE).any(dim=1).sum())
    return found
