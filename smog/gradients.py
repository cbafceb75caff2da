"""Gradients that are the average over the processes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smog.batchnorm import synchronize
from smog.distributed import world_size


def over_ranks(method: nn.Module) -> nn.Module:
    """Return what to call in a method's place, so that its statistics and gradients are those of all ranks.

    Looking for unused parameters keeps the gradients in the same buckets from first to last (torch's reducer orders
    them anew after the first step otherwise), so that a resumed run sums in the same order and ends with the same bits.
    """
    synchronize(method)
    if world_size() == 1:
        return method
    with warnings.catch_warnings():
        # torch 2.14 has a new name for it, which 2.9 does not know
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(_Wrapped(method), broadcast_buffers=False, find_unused_parameters=True)


class _Wrapped(nn.Module):
    """A method beside a parameter that it does not use: finding none, DDP would warn, past the filters of Python."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method
        self.unused = nn.Parameter(torch.zeros((), device=next(method.parameters()).device))

    def forward(self, *args: Any) -> Any:
        return self.method(*args)
