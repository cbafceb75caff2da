"""The loss against many groups without their logits in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smog.nearest import rows_at_once

EPSILON = 1e-12  # of F.normalize
LARGEST = 60.0  # power of 2 whose sum over 10^9 groups fp32 holds; logits above are shifted by their maximum first


def group_cross_entropy(q: Tensor, groups: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the mean cross entropy of the cosines of q [n, d] and the groups [K, d] over the temperature with the
    target, int64 [n], or [n, T] where a row has several: the mean is over the targets; -100, as any negative, is none.
    Without any target it is 0. It is F.cross_entropy of GroupBank.logits, with gradient to q and the groups.

    Loss and gradients come in one pass, a block of rows at a time: three matrix products, no [n, K] that stays.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    several = target if target.dim() == 2 else target[:, None]
    gradient = torch.is_grad_enabled() and (q.requires_grad or groups.requires_grad)
    return _GroupCrossEntropy.apply(q.to(groups.dtype), groups, several, temperature, gradient)


class _GroupCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, groups: Tensor, target: Tensor, temperature: float, gradient: bool) -> Tensor:
        unit_q, length_q = _unit(q)
        unit_groups, length_groups = _unit(groups)
        gradients = (torch.empty_like(unit_q), torch.zeros_like(unit_groups)) if gradient else None
        loss = _pass(unit_q, unit_groups, target, temperature, gradients)
        if gradients is not None:
            to_q = _before_unit(gradients[0], unit_q, length_q)
            ctx.save_for_backward(to_q, _before_unit(gradients[1], unit_groups, length_groups))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        to_q, to_groups = ctx.saved_tensors
        return upstream * to_q, upstream * to_groups, None, None, None


def _pass(
    q: Tensor, groups: Tensor, target: Tensor, temperature: float, gradients: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return the loss of unit q [n, d] and groups [K, d], and fill the gradients to both, the second from zeros."""
    known = target >= 0
    count = known.sum(dim=1)
    pairs = count.sum().clamp(min=1)
    rows = rows_at_once(len(groups), q.device)
    products = q.new_empty(min(rows, len(q)), len(groups))
    scaled = q * (1 / (temperature * math.log(2)))  # for powers of 2, a quarter of the time of those of e
    loss = q.new_zeros(())
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        logits = torch.mm(scaled[part], groups.T, out=products[: len(scaled[part])])
        if 1 / (temperature * math.log(2)) > LARGEST:
            logits.sub_(logits.amax(dim=1, keepdim=True))
        found, residues, total = _block(logits, target[part].clamp(min=0), known[part], count[part])
        loss += found
        if gradients is not None:
            weight = (count[part] / (total * pairs * temperature))[:, None]
            torch.mm(residues, groups, out=gradients[0][part]).mul_(weight)
            gradients[1].addmm_(residues.T, q[part] * weight)
    return loss * math.log(2) / pairs


def _block(logits: Tensor, at: Tensor, known: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of log2(total) - logit over the targets, the gradient to the logits but for a factor of each row,
    in their place, and the rows' totals of 2^logit.

    With p = 2^logit / total the gradient to a row's logits is (p - its targets' share) x the number of its targets: the
    share comes off the powers, and the factor count / total is left for the rows of the products, which are shorter.
    """
    hit = (logits.gather(1, at) * known).sum()
    total = logits.exp2_().sum(dim=1)
    share = total / count.clamp(min=1)
    logits.scatter_add_(1, at, -share[:, None] * known)
    return (total.log2() * count).sum() - hit, logits, total


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return F.normalize(x, dim=1) and the lengths that it divides by, [n, 1]."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=EPSILON)
    return x / length, length


def _before_unit(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """Turn, in place, a gradient to unit rows into one to the rows before: without its part along them, shorter."""
    along = (gradient * unit).sum(dim=1, keepdim=True)
    return gradient.addcmul_(unit, along, value=-1).div_(length)
