"""The optimiser and the schedules: learning rate, weight decay, momentum of the encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import timm.optim
from torch import nn
from torch.optim import Optimizer

from smog.schema import Optim

_TIMM = {"sgd": "momentum", "lars": "lars", "adamw": "adamw"}  # timm's "sgd" is Nesterov's


@dataclass(frozen=True)
class Clock:
    """Where a run stands: before step ``step`` of ``steps``, with ``per_epoch`` steps an epoch."""

    step: int
    steps: int
    per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done so far."""
        return self.step / self.per_epoch

    def cosine(self, start: float, end: float) -> float:
        """Return what goes from ``start`` to ``end`` along half a cosine over all steps."""
        return cosine(start, end, self.step / max(1, self.steps))


def build_optimizer(model: nn.Module, config: Optim) -> Optimizer:
    """Return the optimiser over all trainable parameters; biases and norms are not decayed (the field's habit).

    LARS scales the rate of the others too: its trust coefficient is timm's 0.001, which SwAV uses as well.
    """
    optimizer = timm.optim.create_optimizer_v2(
        model,
        opt=_TIMM[config.name],
        lr=peak(config),
        weight_decay=max(config.weight_decay, config.final_weight_decay),
        momentum=config.momentum,
    )
    for group in optimizer.param_groups:
        group["decayed"] = group["weight_decay"] > 0
    return optimizer


def peak(config: Optim) -> float:
    """Return the highest rate: linear in the batch (Goyal et al., arXiv 1706.02677)."""
    return config.lr * config.batch / 256


def cosine(start: float, end: float, share: float) -> float:
    """Return the point at ``share`` (0 to 1) of half a cosine from ``start`` to ``end``; equal ends stay exact."""
    return start if start == end else end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def rate(clock: Clock, config: Optim) -> float:
    """Return the learning rate of a step: linear warm-up from a first step above its start, then a cosine."""
    warmup = min(round(config.warmup_epochs * clock.per_epoch), clock.steps)
    if clock.step < warmup:
        share = config.warmup_start + (1 - config.warmup_start) * (clock.step + 1) / warmup
        return peak(config) * share
    return cosine(peak(config), config.final_lr, (clock.step - warmup) / max(1, clock.steps - warmup))


def schedule(optimizer: Optimizer, clock: Clock, config: Optim) -> None:
    """Set the learning rate of all parameters, and the weight decay of those that are decayed at all."""
    decay = clock.cosine(config.weight_decay, config.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = rate(clock, config)
        group["weight_decay"] = decay if group["decayed"] else 0.0
