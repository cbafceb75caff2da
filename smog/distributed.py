"""The few collectives, so that the rest reads as one process. Without a process group each is the identity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smog.attempts import attempt
from smog.errors import BusyError

control: Any = None  # a process group for messages of the CPU, beside that of the tensors; processes.joined opens it


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


@torch.no_grad()
def broadcast(x: torch.Tensor) -> torch.Tensor:
    """Put rank 0's values into every rank's tensor of the same shape, contiguous, and return it."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def agreed(*values: int) -> list[int]:
    """Return the largest that any rank has of each value, on the CPU: what all ranks then do together."""
    if world_size() == 1:
        return list(values)
    largest = torch.tensor(values)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=control)
    return largest.tolist()


def gathered(value: Any) -> list[Any]:
    """Return the ranks' values, of any kind, in order of rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=control)
    return values


def wait() -> None:
    """Return once all ranks have come here."""
    agreed(0)


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Let rank 0 through the body, and the others once it is done: it writes what they then only read."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


@contextlib.contextmanager
def held(folder: Path, stage: str) -> Iterator[None]:
    """Hold a stage of a run, rank 0 for all ranks; each raises BusyError where another process has it."""
    with contextlib.ExitStack() as stack:
        busy = None
        if not rank():
            try:
                stack.enter_context(attempt(folder, stage))
            except BusyError as error:
                busy = str(error), error.certain
        if refused := gathered(busy)[0]:
            raise BusyError(*refused)
        yield
