"""The networks: timm backbones, the projector and the predictor."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from smog.errors import UsageError, nearest
from smog.schema import Backbone, Method


class Pixels(nn.Module):
    """No network: an image [b, 3, h, w] as the vector of its pixels [b, 3 h w]. The floor of every comparison."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = 3 * size * size

    def forward(self, x: Tensor) -> Tensor:
        """Flatten the image."""
        return x.flatten(1)


def build_backbone(config: Backbone, size: int) -> nn.Module:
    """Return a backbone that takes images [b, 3, size, size] to features [b, num_features].

    Raises UsageError for a model that timm does not have, arguments that it refuses, or a stem that can't be
    replaced.
    """
    if config.name == "pixels":
        return Pixels(size)
    if not timm.is_model(config.name):
        raise UsageError(
            f"backbone.name={config.name!r}: timm has no such model{nearest(config.name, timm.list_models())}"
        )
    try:
        network = timm.create_model(config.name, num_classes=0, **config.args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(f"backbone {config.name} with {config.args}: {' '.join(str(error).split())}") from None
    if config.stem_stride:
        _small_stem(network, config)
    _try(network, config, size)
    return network


@torch.no_grad()
def _try(network: nn.Module, config: Backbone, size: int) -> None:
    """Refuse a network that can't take images of this size, before anything is written."""
    try:
        network.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(f"backbone {config.name} at views.size={size}: {' '.join(str(error).split())}") from None
    network.train()


def _small_stem(network: nn.Module, config: Backbone) -> None:
    """Put one 3x3 convolution in place of the stem of a ResNet, without pooling (SimCLR, appendix B.9)."""
    norm = getattr(network, "bn1", None)
    if not isinstance(norm, nn.BatchNorm2d) or not hasattr(network, "maxpool"):
        raise UsageError(f"backbone.stem_stride={config.stem_stride}: {config.name} has no ResNet stem; take 0")
    small = nn.Conv2d(3, norm.num_features, 3, stride=config.stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")  # as timm's own stem
    network.conv1, network.maxpool = small, nn.Identity()


def projector(features: int, config: Method) -> nn.Sequential:
    """Return h: [b, features] to [b, dim]. Two layers; the hidden one and the output have BatchNorm (paper, quoted
    in lightly's heads); the output's has no affine part (lightly's reading)."""
    output = [nn.Linear(config.hidden, config.dim, bias=False), nn.BatchNorm1d(config.dim, affine=False)]
    return nn.Sequential(*_hidden(features, config.hidden), *output)


def predictor(config: Method) -> nn.Module:
    """Return p: [b, dim] to [b, dim]. Two layers, BatchNorm on the hidden one alone (paper, quoted in lightly).
    Without one, the identity."""
    if config.predictor == "none":
        return nn.Identity()
    return nn.Sequential(*_hidden(config.dim, config.hidden), nn.Linear(config.hidden, config.dim))


def _hidden(inputs: int, hidden: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]


def chosen_precision(asked: str, device: torch.device) -> str:
    """Return bf16 or fp32: what is asked for, and for ``auto`` bf16 where it is faster."""
    if asked == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return asked


def fast_bf16(device: torch.device) -> bool:
    """Say whether the hardware multiplies bf16 faster than fp32, so that autocast is worth it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
