"""Tiny timm backbones with random weights and statistics, so that no part of them is the identity by chance."""

import importlib.util

import pytest
import torch

from smog.models import build_backbone
from smog.schema import Backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DETECTRON2 = [  # marks of the tests that need it
    pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),  # of its own code, as the next
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Importing from timm.models.layers:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]
NARROW = {"stem_type": "deep", "stem_width": 4}  # the stem itself is replaced, as in conf/backbone
BACKBONES = {
    "basic": Backbone("resnet18", 0, {"layers": [1, 2, 1, 1], "channels": [64, 24, 40, 56]}),
    "basic, small stem": Backbone("resnet18", 1, {"layers": [2, 1, 1, 1], "channels": [8, 16, 24, 40], **NARROW}),
    "basic, small stem of stride 2": Backbone(
        "resnet18", 2, {"layers": [1] * 4, "channels": [8, 12, 16, 32], **NARROW}
    ),
    "bottleneck": Backbone("resnet50", 0, {"layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]}),
    "groups": Backbone("resnext50_32x4d", 0, {"layers": [1, 1, 2, 1], "channels": [16, 32, 48, 64], "cardinality": 4}),
    "wide": Backbone("wide_resnet50_2", 0, {"layers": [1, 1, 1, 2], "channels": [8, 16, 32, 48]}),
    "swin": Backbone(
        "swin_tiny_patch4_window7_224",
        0,
        {"embed_dim": 16, "depths": [2, 1, 3, 2], "num_heads": [1, 2, 4, 4], "window_size": 2, "img_size": 64},
    ),
    "vit": Backbone(
        "vit_tiny_patch16_224", 0, {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    ),
}
KEEPS_CHANNELS = Backbone("resnet18", 2, {"layers": [1] * 4, "channels": [8, 8, 16, 16], **NARROW})
SIZES = {"swin": 64, "vit": 32}


def network(backbone, size=64, seed=0):
    """The backbone in eval mode; all weights and statistics random."""
    if isinstance(backbone, str):
        size = SIZES.get(backbone, size)
        backbone = BACKBONES[backbone]
    return shaken(build_backbone(backbone, size), seed)


@torch.no_grad()
def shaken(made, seed=0):
    """The network in eval mode, every weight and statistic drawn by the seed.

    timm's own start is too tame for a test: with deviations of 0.02 attention is uniform, whatever is swapped in it.
    """
    generator = torch.Generator().manual_seed(seed)
    for key, values in made.state_dict().items():
        if not values.is_floating_point():
            continue
        if key.endswith("running_var") or (values.ndim == 1 and key.endswith("weight")):  # the weight of a norm
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
        elif values.ndim == 1 or "pos_embed" in key or "token" in key or "bias_table" in key:
            values.copy_(torch.rand(values.shape, generator=generator) - 0.5)
        else:
            values.copy_(torch.randn(values.shape, generator=generator) * (2 / values[0].numel()) ** 0.5)
    return made.eval()
