"""The optimiser and the schedule of its rate."""

from __future__ import annotations

import math

import timm.optim
from torch import nn
from torch.optim import Optimizer

from smog.schema import Optim

_TIMM = {"sgd": "momentum", "adamw": "adamw"}  # timm's "sgd" is Nesterov's


def build_optimizer(model: nn.Module, config: Optim) -> Optimizer:
    """Return the optimiser over all trainable parameters; biases and norms are not decayed (the field's habit)."""
    return timm.optim.create_optimizer_v2(
        model,
        opt=_TIMM[config.name],
        lr=peak(config),
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )


def peak(config: Optim) -> float:
    """Return the highest rate: linear in the batch (Goyal et al., arXiv 1706.02677)."""
    return config.lr * config.batch / 256


def rate(step: int, steps: int, per_epoch: int, config: Optim) -> float:
    """Return the learning rate of a step: linear warm-up from a first step above 0, then a cosine to final_lr."""
    warmup = min(round(config.warmup_epochs * per_epoch), steps)
    if step < warmup:
        return peak(config) * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return config.final_lr + (peak(config) - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: Optimizer, value: float) -> None:
    """Give all parameter groups one rate."""
    for group in optimizer.param_groups:
        group["lr"] = value
