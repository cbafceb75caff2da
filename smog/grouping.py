"""The heart: groups of images that move with every step (SMoG, arXiv 2207.06167, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smog.distributed import broadcast, rank, rows_of_all_ranks, sum_over_ranks
from smog.kmeans import spherical_kmeans
from smog.losses import group_cross_entropy
from smog.nearest import nearest, rows_at_once
from smog.sinkhorn import balanced

DUPLICATE = 0.99  # cosine above which two groups are counted as one
SAMPLED = 4096  # groups that duplicates are looked for among, so that usage is cheap also with 100,000
# drawn from, before they are put on the sphere. The start is open in the paper: all of the sphere is our choice, also
# until a batch gives its features (start_from); one orthant is lightly's
STARTS = {"sphere": torch.randn, "batch": torch.randn, "orthant": torch.rand}


class GroupBank(nn.Module):
    """K group vectors, their synchronous momentum update, and the cache of features that k-means starts from again.

    The state is in buffers, so that a checkpoint holds all of it: ``groups`` [K, d], ``cache`` [N, d] (a ring),
    ``cached_own`` [N] (the group of each cached feature), ``pushed`` (features pushed so far). Features are taken as
    they come; whoever wants them on the sphere normalises them before. Under a process group all ranks hold the same
    groups and the same cache.

    Only the first ``active`` groups exist for every call: all, unless a method sets it from outside, as a function of
    the step alone. Where features are [n, d], leading dimensions are welcome: [V, b, d] of views and images.
    """

    groups: Tensor
    cache: Tensor
    cached_own: Tensor
    pushed: Tensor

    def __init__(
        self, num_groups: int, dim: int, momentum: float = 0.99, cache_size: int = 8192, start: str = "sphere"
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be from 0 to 1")
        if num_groups > cache_size:
            raise ValueError(f"num_groups={num_groups} is above cache_size={cache_size}: k-means could not fill them")
        if start not in STARTS:
            raise ValueError(f"start={start!r}: must be one of {', '.join(STARTS)}")
        self.momentum, self.active = momentum, num_groups
        self.register_buffer("groups", F.normalize(STARTS[start](num_groups, dim), dim=1))
        self.register_buffer("cache", torch.zeros(cache_size, dim))
        self.register_buffer("cached_own", torch.zeros(cache_size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def assign(self, z: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the nearest group by cosine, int64 [n], for features [n, d]; the groups are the bank's own where none
        are given. No gradient (paper, eq. 3 with argmax: the printed argmin is a probable slip, see lightly's PR 888).
        """
        own, _ = nearest(z.flatten(0, -2), self._unit(groups))
        return own.view(z.shape[:-1])

    @torch.no_grad()
    def balanced(self, z: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return groups, int64 [n], that the features [n, d] of all ranks share out evenly: Sinkhorn-Knopp as SwAV has
        it (arXiv 2006.09882), then the largest. Our choice for comparison: the paper assigns to the nearest."""
        return balanced(F.normalize(z.flatten(0, -2), dim=1), self._unit(groups)).view(z.shape[:-1])

    def updated(self, z: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the active groups [K, d] after one synchronous update with the features [n, d] of all ranks (paper,
        eq. 4), that belong to ``own`` [n], by default the nearest.

        A group that features were assigned to becomes momentum x itself + (1 - momentum) x their mean; the others
        stay. Gradient reaches z through the (1 - momentum) part alone.
        """
        groups = self.groups[: self.active]
        z, own = z.flatten(0, -2), (self.assign(z) if own is None else own).flatten()
        counts = sum_over_ranks(torch.bincount(own, minlength=self.active).to(groups.dtype))
        # by rows of z, not of the groups, of which there may be a hundred times as many
        step = (z - groups[own]) * ((1 - self.momentum) / counts[own])[:, None]
        return groups + sum_over_ranks(torch.zeros_like(groups).index_add(0, own, step))

    def logits(self, q: Tensor, groups: Tensor, temperature: float) -> Tensor:
        """Return the cosines of q [B, d] and the groups [K, d] over the temperature, [B, K] (paper, eq. 5)."""
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        return F.normalize(q, dim=1) @ F.normalize(groups, dim=1).T / temperature

    def loss(self, q: Tensor, groups: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Return the mean cross entropy of ``logits`` with the target [n] or [n, T], -100 for none (paper, eq. 5)."""
        return group_cross_entropy(q, groups, target, temperature)

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        """Put the first features of all ranks [n, d] in place of the active groups; with fewer the others stay."""
        rows = _of_all_ranks(z).flatten(0, -2)[: self.active]
        self.groups[: len(rows)] = rows

    @torch.no_grad()
    def commit(self, groups: Tensor, z: Tensor, own: Tensor | None = None) -> None:
        """Keep the updated active groups [K, d], detached, and push the features [n, d] of all ranks into the cache,
        in the order that one process with all of them has, with the groups ``own`` [n] that they belong to, by default
        the nearest before the update."""
        own = _of_all_ranks((self.assign(z) if own is None else own)[..., None]).flatten()
        rows = _of_all_ranks(z.detach()).flatten(0, -2)
        self.groups[: self.active] = groups
        self.pushed += len(rows)
        kept = min(len(rows), len(self.cache))
        at = (self.pushed - kept + torch.arange(kept, device=rows.device)) % len(self.cache)
        self.cache[at] = rows[-kept:].to(self.cache.dtype)
        self.cached_own[at] = own[-kept:]

    def cached(self) -> Tensor:
        """Return the features that the cache holds so far, [n, d]."""
        return self.cache[: min(int(self.pushed), len(self.cache))]

    @torch.no_grad()
    def regroup(self, generator: torch.Generator) -> None:
        """Put spherical k-means of the cache in place of the active groups (paper, against collapse). The generator
        lives on the CPU; rank 0's counts. With fewer cached features than groups nothing is done."""
        features = self.cached()
        if len(features) < self.active:
            return
        if rank() == 0:
            centroids, own = spherical_kmeans(features, self.active, generator)
            self.groups[: self.active], self.cached_own[: len(own)] = centroids, own
        broadcast(self.groups)
        broadcast(self.cached_own)

    @torch.no_grad()
    def usage(self) -> dict[str, float]:
        """Say how the cached features spread over the active groups.

        A feature counts for the group that it belonged to when it was pushed, or that the last regroup gave it: the
        groups have moved since, but a look costs next to nothing. Those of groups no longer active are left out.
        ``entropy``: of the shares, over ln K, so 1 is even; ``dead``: groups with no feature; ``duplicates``: groups
        with an earlier one at a cosine above 0.99, estimated from 4,096 where there are more; ``largest``: the largest
        share. An empty cache gives zeros.
        """
        own = self.cached_own[: len(self.cached())]
        own = own[own < self.active]
        if not len(own):
            return {"entropy": 0.0, "dead": 0.0, "duplicates": 0.0, "largest": 0.0}
        counts = torch.bincount(own, minlength=self.active).double()
        share = counts / counts.sum()
        entropy = -torch.special.xlogy(share, share).sum() / math.log(max(self.active, 2))
        found = torch.stack([entropy, (counts == 0).sum(), _duplicates(self._unit(None)), share.max()])
        return dict(zip(("entropy", "dead", "duplicates", "largest"), found.tolist(), strict=True))

    def _unit(self, groups: Tensor | None) -> Tensor:
        return F.normalize(self.groups[: self.active] if groups is None else groups, dim=1)


def _of_all_ranks(z: Tensor) -> Tensor:
    """Return [.., n, d] of this rank as [.., world x n, d] of all: the images are in the last but one dimension."""
    return rows_of_all_ranks(z, z.dim() - 2)


def _duplicates(unit_groups: Tensor) -> Tensor:
    """Return how many groups have an earlier one nearby, from up to 4,096 of them at even steps, scaled up."""
    count, device = len(unit_groups), unit_groups.device
    looked_at = torch.arange(min(count, SAMPLED), device=device) * count // min(count, SAMPLED)
    found = torch.zeros((), dtype=torch.float64, device=device)
    rows = rows_at_once(count, device)
    products = unit_groups.new_empty(min(rows, len(looked_at)), count)  # once: new memory takes longer than a product
    for part in looked_at.split(rows):
        first, end = int(part[0]), int(part[-1]) + 1
        cosine = torch.mm(unit_groups[part], unit_groups[:end].T, out=products[: len(part), :end])
        cosine[:, first:].masked_fill_(torch.arange(first, end, device=device) >= part[:, None], -1)
        found += (cosine.amax(dim=1) > DUPLICATE).sum()
    return found * count / len(looked_at)
