"""The cheapest head: one 1x1 convolution."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Batch norm and one 1x1 convolution on a level, as DINOv2's linear segmentation has it (arXiv 2304.07193)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.norm = build_norm_layer(self.norm_cfg, self.in_channels)[1]

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return the logits [b, classes, h, w] of the level that ``in_index`` names, at its size."""
        return self.cls_seg(self.norm(self._transform_inputs(levels)))
