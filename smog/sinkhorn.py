"""Assignment that keeps all groups in use (Sinkhorn-Knopp as SwAV has it, arXiv 2006.09882, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from smog.distributed import sum_over_ranks
from smog.nearest import rows_at_once

EPSILON = 0.05  # SwAV's; exp(cosine / 0.05) is from 2e-9 to 5e8, so that no sum in fp32 over- or underflows
ITERATIONS = 3  # SwAV's
KEPT_CELLS = 2**28  # 1 GB of fp32; larger matrices are made anew in every iteration, a block of rows at a time


@torch.no_grad()
def balanced(z: Tensor, groups: Tensor) -> Tensor:
    """Return the groups, int64 [n], that unit features [n, d] of all ranks share out evenly among unit groups [K, d].

    Rows and columns of exp(cosine / 0.05) are scaled in turn until each feature weighs the same and each group as well;
    a feature takes the group with its largest entry. Only the columns' scale bears on that, so it alone is kept.
    """
    blocks = _powers(z, groups)
    used = torch.stack([block.sum(dim=0) for block in blocks()]).sum(dim=0)
    for _ in range(ITERATIONS - 1):
        scale = sum_over_ranks(used).reciprocal()
        used = torch.stack([(block @ scale).reciprocal() @ block for block in blocks()]).sum(dim=0)
    scale = sum_over_ranks(used).reciprocal()
    return torch.cat([(block * scale).max(dim=1).indices for block in blocks()])


def _powers(z: Tensor, groups: Tensor) -> Callable[[], Iterable[Tensor]]:
    """Return what goes through exp(cosine / 0.05) [n, K] in blocks of rows, as often as it is called."""
    scaled, rows = z * (1 / (EPSILON * math.log(2))), rows_at_once(len(groups), z.device)

    def made() -> Iterator[Tensor]:
        return ((part @ groups.T).exp2_() for part in scaled.split(rows))

    if len(z) * len(groups) > KEPT_CELLS:
        return made
    kept = list(made())
    return lambda: kept
