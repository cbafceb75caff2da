"""Features beside many groups, a block of rows at a time, so that memory stays bounded and the products in cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CPU_CELLS = 2**18  # products that stay in cache until they are used, 1 MB of fp32
DEVICE_CELLS = 2**27  # half a GB of fp32; a GPU wants large products
LEAST_ROWS = 256  # fewer make a matrix product slow, whatever the cache
TILE = 128  # columns of which the maximum is taken first: a maximum is an eighth of the work of its index


def rows_at_once(columns: int, device: torch.device) -> int:
    """Return how many rows are compared with so many columns at once."""
    return max(LEAST_ROWS, (CPU_CELLS if device.type == "cpu" else DEVICE_CELLS) // columns)


@torch.no_grad()
def nearest(z: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the group with the largest product, the first of equals, int64 [n], and that product [n], for features
    [n, d] and groups [K, d] of one type. In bf16 the products are rounded to it as well."""
    tile = min(TILE, len(groups))
    width = math.ceil(len(groups) / tile) * tile
    rows = max(1, min(rows_at_once(width, z.device), len(z)))
    products = torch.empty(rows, width, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
    products[:, len(groups) :] = -math.inf  # never the largest
    beside = products[:, : len(groups)]
    rounded = beside if z.dtype == products.dtype else torch.empty_like(beside, dtype=z.dtype)
    found = []
    for part in z.split(rows):
        torch.mm(part, groups.T, out=rounded[: len(part)])
        if rounded is not beside:
            beside.copy_(rounded)
        found.append(_largest(products[: len(part)].unflatten(1, (-1, tile))))
    return torch.cat([index for index, _ in found]), torch.cat([value for _, value in found])


def _largest(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column of the largest value, the first of equals, and that value, in rows cut into tiles."""
    value, tile = tiles.amax(dim=2).max(dim=1)
    inside = tiles[torch.arange(len(tiles), device=tiles.device), tile].argmax(dim=1)
    return tile * tiles.shape[2] + inside, value
