"""The optimiser of a detector: which weights decay, and by how much."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from transfer.protocols import Detection

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
TABLES = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")  # Swin's recipe has them undecayed


def build_optimizer(model: nn.Module, chosen: Detection) -> Optimizer:
    """Return SGD, or AdamW, over all weights that are trained; norms have their own decay (detectron2's default 0)."""
    undecayed = {id(weight) for part in model.modules() if isinstance(part, NORMS) for weight in part.parameters(False)}
    undecayed |= {id(weight) for name, weight in model.named_parameters() if name.endswith(TABLES)}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if id(weight) not in undecayed], "weight_decay": chosen.weight_decay},
        {"params": [weight for weight in weights if id(weight) in undecayed], "weight_decay": chosen.norm_weight_decay},
    ]
    groups = [group for group in groups if group["params"]]
    if chosen.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=chosen.lr, betas=(chosen.momentum, 0.999))
    return torch.optim.SGD(groups, lr=chosen.lr, momentum=chosen.momentum)
