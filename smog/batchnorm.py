"""Batch norm whose statistics are those of the whole batch, however many processes share it (design 3)."""

from __future__ import annotations

import timm.layers
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smog.distributed import rows_of_all_ranks, sum_over_ranks, world_size
from smog.errors import UsageError

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Normalise(torch.autograd.Function):
    """x [b, c, ...] of each rank to zero mean and unit variance over all of them; equal numbers on every rank.

    One exchange each way. The variance is the mean of the ranks' own and the spread of their means, so that nothing
    cancels, as it would in a mean of squares. Ranks may hold different numbers of values, as detectors do.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = torch.batch_norm_update_stats(x, None, None, 0.0)  # ten times as fast as torch.var_mean
        values = torch.full_like(own[0], x.numel() // x.shape[1])
        means, variances, counts = rows_of_all_ranks(torch.stack([*own, values])[None]).unbind(1)
        count = counts[:, :1].sum()
        share = counts / count
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        scale = (variance + eps).rsqrt()
        y = (x - _along(mean, x)) * _along(scale, x)
        ctx.save_for_backward(y, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        y, scale, count = ctx.saved_tensors
        sums = torch.stack([grad.sum(_dims(y)), (grad * y).sum(_dims(y))])
        mean, slope = (sum_over_ranks(sums) / count).unbind()  # what moving mean and variance takes from x
        result = torch.addcmul(_along(-scale * mean, y), grad, _along(scale, y))
        return result.addcmul_(y, _along(-scale * slope, y)), None


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, [b, c] or [b, c, ...] each.

    torch.nn.SyncBatchNorm does the same on CUDA, and raises on the CPU. ``drop`` and ``act`` are what timm's
    BatchNormAct2d does after the norm. Evaluation needs no other rank.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias  # the same parameters: an optimiser may hold them already
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, half precision in float32 as torch does, and return what came in: shape and type."""
        if not self.training:
            return self.act(self.drop(super().forward(x)))
        wide = x if x.dtype == torch.float64 else x.float()
        y, mean, variance, count = _Normalise.apply(wide, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance * count / (count - 1))
        if self.affine:
            y = torch.addcmul(_along(self.bias, y), y, _along(self.weight, y))
        return self.act(self.drop(y.to(x.dtype)))

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are the average of all batches so far."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now, share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Take all shapes: what was converted has checked its own."""


def _dims(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Lay one value a channel, [c], along the channels of x [b, c, ...]."""
    return values.view(-1, *[1] * (x.dim() - 2))


def synchronize(module: nn.Module) -> nn.Module:
    """Let all batch norms of a module count over all ranks, and return it. Names, parameters and state stay, so that a
    checkpoint fits any number of processes. One process needs nothing and gets its module back as it is."""
    if world_size() == 1:
        return module
    if any(parameter.is_cuda for parameter in module.parameters()):
        return timm.layers.convert_sync_batchnorm(module)  # torch's, and timm's norm with an activation
    return _converted(module)


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, GlobalBatchNorm):  # reached before, in a part that two others share
        return module
    if isinstance(module, _BatchNorm):
        if type(module) not in (*PLAIN, BatchNormAct2d):
            raise UsageError(
                f"{type(module).__name__}: no statistics over several processes; train this backbone in one process"
            )
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module
