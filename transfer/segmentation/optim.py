"""The optimiser of a segmentor as mmengine builds it: in the precision of the protocol, with rates by depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Precise(OptimWrapper):
    """An optimiser whose losses are computed in bf16 where that is asked for; mmengine's own is for CUDA alone."""

    def __init__(self, half: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.half = half

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass within."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16, enabled=self.half):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """Rates that fall by ``layer_decay`` from each block of the backbone to the one before (BEiT, arXiv 2106.08254):
    mmsegmentation's own knows the names of its own networks alone. Biases, norms and positions are not decayed."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser of a segmentor, or of what wraps one."""
        whole: Any = getattr(model, "module", model)
        settings = dict(self.optimizer_cfg)
        decay, factor = settings["weight_decay"], self.paramwise_cfg["layer_decay"]
        network = whole.backbone.network
        blocks = param_groups_layer_decay(network, decay, network.no_weight_decay(), layer_decay=factor)
        highest = settings["lr"] * factor  # of the last block: timm starts from 1 there, as it sees no head behind it
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"], "lr": highest * group["lr_scale"]}
            for group in blocks
        ]
        rest = [weight for name, weight in whole.named_parameters() if not name.startswith("backbone.")]
        groups += [
            {"params": [weight for weight in rest if weight.ndim > 1], "weight_decay": decay},
            {"params": [weight for weight in rest if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS.build({**settings, "params": groups})
        return OPTIM_WRAPPERS.build({**self.optim_wrapper_cfg, "optimizer": optimizer})
