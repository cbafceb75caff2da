"""What a run's features and groups look like: their rank and spread, how val falls into the groups, pictures of both.

No label is needed but for ``nmi``. All of it is of the val images; memory beyond the features stays bounded by chunks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smog.checkpoint import FILE, read
from smog.data.images import open_images
from smog.grouping import GroupBank
from smog.methods.smog import Smog
from smog.optim import Clock
from smog.schema import Config
from smog.tasks.protocols import Diagnostics
from smog.tasks.result import Found, extract, features_of
from smog.training import choose_device

CHUNK = 1024  # rows that are taken in double precision at once
EPSILON = 1e-7  # added to each share of RankMe (Garrido et al., for float32)


def of_run(folder: Path, config: Config, settings: Diagnostics) -> Found:
    """Return the diagnostics of a run's val images; raw pixels have no groups, and lack what is said of them."""
    features = features_of(folder, config)
    metrics = {"rankme": rankme(features.val), "feature_std": feature_std(features.val)}
    more: dict[str, Any] = {"neighbours": neighbours(features.val, settings)}
    if config.backbone.name != "pixels":
        bank, z = groups_of(folder, config, len(features.train))
        own = bank.assign(z)
        metrics |= spread(bank, z, own) | {"nmi": nmi(own, features.val_labels)}
        more["groups"] = sheets(bank, z, own, settings)
    return Found(metrics, {"data": config.data.fingerprint, "val": len(features.val)}, more)


def rankme(x: Tensor) -> float:
    """Return exp of the entropy of the singular values of x [n, d] over their sum (RankMe, arXiv 2210.02885, eq. 1 and
    2), from 1 to min(n, d).

    The paper takes the embeddings behind the projector; here it is what the other tasks see, the backbone's features.
    """
    values = singular_values(x)
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + EPSILON
    return math.exp(-float(torch.special.xlogy(share, share).sum()))


def singular_values(x: Tensor) -> Tensor:
    """Return the singular values of x [n, d], float64 [min(n, d)], as roots of the eigenvalues of its Gram matrix.

    That of the shorter side s = min(n, d): 8 s^2 bytes, twice x at most, and n d s + s^3 products, where an SVD would
    hold x and a factor of its size in float64. Values below 1e-8 of the largest are lost, less than what EPSILON adds.
    """
    tall = x if len(x) >= x.shape[1] else x.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for part in tall.split(CHUNK):
        rows = part.double()
        gram.addmm_(rows.T, rows)
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def feature_std(x: Tensor) -> float:
    """Return the standard deviation of the features [n, d] on the sphere, the mean over dimensions, times sqrt(d):
    1 where they spread evenly in all directions, 0 where all are one point."""
    first = second = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(CHUNK):
        rows = F.normalize(part.double(), dim=1)
        first, second = first + rows.sum(dim=0), second + rows.square().sum(dim=0)
    variance = second / len(x) - (first / len(x)).square()
    return float(variance.clamp(min=0).sqrt().mean()) * math.sqrt(x.shape[1])


def groups_of(folder: Path, config: Config, train_images: int) -> tuple[GroupBank, Tensor]:
    """Return the groups of a run and the val images as training sees them where it assigns targets, z' [n, dim].

    Targets come from the momentum branch, f' and h' (and p' where method.predictor=both), never from the online one,
    and go to the nearest group by cosine among those active at the end. Two things differ from a step of training:
    BatchNorm takes its running statistics, and targets are not balanced over a batch (method.balanced_targets), so
    that the group of an image depends on no other image. Images are whole, not cropped.
    """
    content, method = read(folder / FILE), Smog(config)
    method.load_state_dict(content["method"])
    per_epoch = train_images // config.optim.batch
    method.bank.active = method.active_groups(Clock(content["step"], content["step"], per_epoch))
    device = choose_device(config.runtime.device)
    branch = method.momentum_branch.eval().to(device).to(memory_format=torch.channels_last)
    return method.bank, extract(branch, open_images(config, "val"), config, device)


def spread(bank: GroupBank, z: Tensor, own: Tensor) -> dict[str, float]:
    """Return how images [n, dim] of the groups ``own`` [n] spread: ``group_entropy`` over ln K, as GroupBank.usage has
    it, and ``group_dead``, the share of groups without any. Fewer images than groups leave some dead."""
    seen = GroupBank(bank.active, z.shape[1], cache_size=max(len(z), bank.active))
    seen.commit(bank.groups[: bank.active], z, own)
    usage = seen.usage()
    return {"group_entropy": usage["entropy"], "group_dead": usage["dead"] / bank.active}


def nmi(one: Tensor, other: Tensor) -> float:
    """Return the mutual information of two labelings [n] over the mean of their entropies, from 0 to 1."""
    pairs = one * (int(other.max()) + 1) + other
    first, second, joint = (_entropy(labels) for labels in (one, other, pairs))
    return min(1.0, max(0.0, 2 * (first + second - joint) / (first + second))) if first + second else 1.0


def _entropy(labels: Tensor) -> float:
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    return -float(torch.special.xlogy(share, share).sum())


def neighbours(x: Tensor, settings: Diagnostics) -> list[dict[str, Any]]:
    """Return for images spread evenly over x [n, d] their nearest others by cosine, the nearest first; the first image
    among equals."""
    queries = evenly(len(x), settings.queries)
    unit = F.normalize(x[queries], dim=1)
    cosine = torch.cat([unit @ F.normalize(part, dim=1).T for part in x.split(CHUNK)], dim=1)
    cosine[torch.arange(len(queries)), queries] = -math.inf
    order = cosine.sort(dim=1, descending=True, stable=True).indices[:, : min(settings.shown, len(x) - 1)]
    return [{"query": query, "nearest": row} for query, row in zip(queries, order.tolist(), strict=True)]


def sheets(bank: GroupBank, z: Tensor, own: Tensor, settings: Diagnostics) -> list[dict[str, Any]]:
    """Return some groups, each with the images [n, dim] of its own that are nearest to it by cosine.

    Of those with ``shown`` images or more, at even steps from the largest to the smallest; none where there are none.
    """
    counts, order = torch.bincount(own, minlength=bank.active).sort(descending=True, stable=True)
    enough = order[counts >= settings.shown].tolist()
    chosen = [enough[place] for place in evenly(len(enough), settings.groups)]
    return [_sheet(bank.groups[group], z, own, group, settings.shown) for group in chosen]


def _sheet(vector: Tensor, z: Tensor, own: Tensor, group: int, shown: int) -> dict[str, Any]:
    members = (own == group).nonzero().flatten()
    cosine = F.normalize(z[members], dim=1) @ F.normalize(vector, dim=0)
    nearest = members[cosine.sort(descending=True, stable=True).indices[:shown]]
    return {"group": group, "count": len(members), "nearest": nearest.tolist()}


def evenly(total: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` different places of ``total`` at even steps, the first and the last among them."""
    count = min(total, wanted)
    return [round(place * (total - 1) / max(1, count - 1)) for place in range(count)]
