"""The few collectives, so that the rest reads as one process. Without a process group each is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist


def rank() -> int:
    """Return the number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """Sum over ranks; every rank's loss depends on every rank's summand, so gradients are summed as well."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, grad)


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of the ranks' tensors of equal shape, with gradient. Under DDP's averaging it is exact as it is:
    the mean of the ranks' losses has the mean of the ranks' parameter gradients, each already holding all losses."""
    return _Sum.apply(x) if world_size() > 1 else x


@torch.no_grad()
def rows_of_all_ranks(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Return the ranks' tensors, of equal shape, one after the other along ``dim`` in order of rank. At 0, rows [n, d]
    become [world x n, d]."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim)
