"""Mask R-CNN and Faster R-CNN of torchvision, after the recipes of detectron2: the engine that runs everywhere.

What differs from detectron2 and can't be set: smooth L1 with beta 1/9 in the losses of boxes where detectron2 has L1;
RoIAlign without its half-pixel shift; in C4 the regions of the mask head pass the last stage a second time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torchvision
from faster_coco_eval.core import mask as rle
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from smog.pretrained import Pretrained
from transfer import convert
from transfer.bodies import torchvision as bodies
from transfer.detector import Boxes, Detector
from transfer.loader import Sample
from transfer.protocols import Detection
from transfer.spec import Spec

FC = 1024  # of the head of the boxes: detectron2
LEVELS = 4
RATIOS = (0.5, 1.0, 2.0)
PADDED_TO = 32  # detectron2's size_divisibility of a pyramid


def build(source: Pretrained, spec: Spec, chosen: Detection, classes: int) -> TorchvisionDetector:
    """Return the detector with the backbone of a checkpoint, loaded strictly."""
    body = bodies.build(spec)
    convert.load(body, convert.convert(source.network.state_dict(), spec, "torchvision"))
    bodies.set_drop_path(body, chosen.drop_path)
    return TorchvisionDetector(body, source, chosen, classes)


class TorchvisionDetector(Detector):
    """torchvision's detector around a body of its own blocks."""

    def __init__(self, body: nn.Module, source: Pretrained, chosen: Detection, classes: int) -> None:
        super().__init__()
        self.engine = {"name": "torchvision", "version": torchvision.__version__}
        with torch.no_grad():
            widths = [maps.shape[1] for maps in bodies.stages(body.eval(), torch.zeros(1, 3, 64, 64))]
        parts = _fpn(body, widths, chosen, classes) if chosen.head == "fpn" else _c4(body, widths, chosen, classes)
        kind = MaskRCNN if chosen.masks else FasterRCNN
        self.net = kind(
            **parts,
            image_mean=list(source.mean),
            image_std=list(source.std),
            rpn_pre_nms_top_n_train=chosen.kept["pre_train"],
            rpn_pre_nms_top_n_test=chosen.kept["pre_test"],
            rpn_post_nms_top_n_train=chosen.kept["post_train"],
            rpn_post_nms_top_n_test=chosen.kept["post_test"],
            rpn_batch_size_per_image=max(1, chosen.regions // 2),
            box_batch_size_per_image=chosen.regions,
            size_divisible=PADDED_TO,
            min_size=1,
            max_size=1,
            _skip_resize=True,
        )

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of training images, scalars by name."""
        device = next(self.parameters()).device
        targets = []
        for sample in samples:
            target = {"boxes": sample.boxes.to(device), "labels": sample.labels.to(device) + 1}  # 0 is the ground
            if sample.masks is not None:
                target["masks"] = sample.masks.to(device)
            targets.append(target)
        losses: dict[str, Tensor] = self.net([sample.image.to(device).float() / 255 for sample in samples], targets)
        return losses

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        """Return what is found in images, uint8 RGB [3, h, w] each, in pixels of ``sizes``, (height, width) each."""
        device, net = next(self.parameters()).device, self.net
        normalised = [net.transform.normalize(image.to(device).float() / 255) for image in images]
        inputs = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        batch = torchvision.models.detection.image_list.ImageList(
            net.transform.batch_images(normalised, PADDED_TO), inputs
        )
        features = net.backbone(batch.tensors)
        proposals, _ = net.rpn(batch, features)
        found, _ = net.roi_heads(features, proposals, inputs)
        return [_boxes(*one) for one in zip(found, inputs, sizes, strict=True)]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the backbone's stages for normalised images [b, 3, h, w]."""
        return self.net.backbone.stages(images)

    def prepare(self, images: Tensor) -> Tensor:
        """Return what the backbone gets for RGB images [b, 3, h, w] of values 0 to 255."""
        return torch.stack([self.net.transform.normalize(image / 255) for image in images])

    def stem_and_stages(self) -> list[nn.Module]:
        """Return the stem and the stages of the backbone."""
        backbone = self.net.backbone
        return [*bodies.stem_and_stages(backbone.body), *getattr(backbone, "last", [])]


class Pyramid(nn.Module):
    """Body and feature pyramid: images [b, 3, h, w] to maps of ``out_channels`` by level, the last one pooled."""

    def __init__(self, body: nn.Module, widths: Sequence[int], channels: int, norm: bool) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        swin = isinstance(body, SwinTransformer)  # whose maps get a norm each, as its authors' code for detection does
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-5) if swin else nn.Identity() for width in widths)
        norm_layer = nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(list(widths), channels, LastLevelMaxPool(), norm_layer)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the body's stages."""
        return bodies.stages(self.body, images)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps by level, the finest first."""
        maps = [norm(one) for norm, one in zip(self.norms, self.stages(images), strict=True)]
        return self.fpn(OrderedDict((str(level), one) for level, one in enumerate(maps)))


class Trunk(nn.Module):
    """All of a ResNet but its last stage, which is the head of the regions: images to one map."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        self.last = [bodies.take_last_stage(body)]  # in a list: it belongs to the head

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the body's stages, that of the head included."""
        maps = bodies.stages(self.body, images)
        return [*maps, self.last[0](maps[-1])]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map of the last stage but one."""
        return {"0": bodies.stages(self.body, images)[-1]}


def _fpn(body: nn.Module, widths: Sequence[int], chosen: Detection, classes: int) -> dict[str, object]:
    levels, channels = [str(level) for level in range(LEVELS)], chosen.channels
    sides = tuple((chosen.anchor * 2**level,) for level in range(LEVELS + 1))
    parts: dict[str, object] = {
        "backbone": Pyramid(body, widths, channels, chosen.norm),
        "rpn_anchor_generator": AnchorGenerator(sides, (RATIOS,) * len(sides)),
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 0),
        "box_head": TwoMLPHead(channels * 7 * 7, FC),
        "box_predictor": FastRCNNPredictor(FC, classes + 1),
    }
    if chosen.masks:
        parts["mask_roi_pool"] = MultiScaleRoIAlign(levels, 14, 0)
        parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, classes + 1)
    return parts


def _c4(body: nn.Module, widths: Sequence[int], chosen: Detection, classes: int) -> dict[str, object]:
    trunk = Trunk(body, widths[-2])
    last = nn.Sequential(trunk.last[0], nn.BatchNorm2d(widths[-1]))  # the norm: MoCo's Res5ROIHeadsExtraNorm
    sides = tuple(chosen.anchor * 2**level for level in range(LEVELS + 1))
    parts: dict[str, object] = {
        "backbone": trunk,
        "rpn_anchor_generator": AnchorGenerator((sides,), (RATIOS,)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 14, 0),
        "box_head": nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "box_predictor": FastRCNNPredictor(widths[-1], classes + 1),
    }
    if chosen.masks:
        parts["mask_roi_pool"] = MultiScaleRoIAlign(["0"], 14, 0)
        parts["mask_head"] = last
        parts["mask_predictor"] = MaskRCNNPredictor(widths[-1], chosen.channels, classes + 1)
    return parts


def _boxes(found: dict[str, Tensor], inputs: tuple[int, int], size: tuple[int, int]) -> Boxes:
    """Return detections in the pixels of ``size`` from those in the pixels that went in."""
    height, width = size
    scale = torch.tensor([width / inputs[1], height / inputs[0]] * 2, device=found["boxes"].device)
    boxes = found["boxes"] * scale
    masks = None
    if "masks" in found:
        whole = paste_masks_in_image(found["masks"], boxes, size, padding=1)[:, 0] > 0.5
        masks = [rle.encode(np.asfortranarray(mask)) for mask in whole.to(torch.uint8).cpu().numpy()]
    return Boxes(boxes.cpu().numpy(), found["scores"].cpu().numpy(), found["labels"].cpu().numpy() - 1, masks)
