"""Mask R-CNN and Faster R-CNN of detectron2, after its base configurations and MoCo's detection code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2 import structures
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, build_proposal_generator, build_roi_heads
from detectron2.modeling.backbone import Backbone, SwinTransformer
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads, ROIHeads, build_mask_head
from detectron2.utils.events import EventStorage
from faster_coco_eval.core import mask as rle
from torch import Tensor, nn

from smog.pretrained import Pretrained
from transfer import convert
from transfer.bodies import detectron2 as bodies
from transfer.detector import Boxes, Detector
from transfer.loader import Sample
from transfer.names import fresh
from transfer.protocols import Detection
from transfer.spec import Resnet, Spec

STAGES = ["res2", "res3", "res4", "res5"]
POOLED = 14  # side of a region before the last stage of C4
FILE = "detectron2.yaml"
KEPT = {
    "pre_train": "PRE_NMS_TOPK_TRAIN", "pre_test": "PRE_NMS_TOPK_TEST",
    "post_train": "POST_NMS_TOPK_TRAIN", "post_test": "POST_NMS_TOPK_TEST",
}  # fmt: skip


def build(source: Pretrained, spec: Spec, chosen: Detection, classes: int) -> Detectron2Detector:
    """Return the detector with the backbone of a checkpoint, loaded strictly."""
    cfg = _config(source, spec, chosen, classes)
    state = convert.convert(source.network.state_dict(), spec, "detectron2")
    if chosen.head == "c4" and isinstance(spec, Resnet):
        net = _c4(cfg, spec, state)
    else:
        net = _fpn(cfg, spec, state, chosen.drop_path)
    return Detectron2Detector(net, cfg, chosen)


class Detectron2Detector(Detector):
    """detectron2's GeneralizedRCNN behind the interface of all engines."""

    def __init__(self, net: GeneralizedRCNN, cfg: CfgNode, chosen: Detection) -> None:
        super().__init__()
        self.net: Any = net
        self.cfg, self.c4 = cfg, chosen.head == "c4"
        self.engine = {"name": "detectron2", "version": detectron2.__version__}

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of training images, scalars by name."""
        with EventStorage():  # its layers log there, whether anybody reads it or not
            losses: dict[str, Tensor] = self.net([self._input(sample) for sample in samples])
        return losses

    def _input(self, sample: Sample) -> dict[str, Any]:
        objects = structures.Instances((sample.image.shape[1], sample.image.shape[2]))
        objects.gt_boxes = structures.Boxes(sample.boxes)
        objects.gt_classes = sample.labels
        if sample.masks is not None:
            objects.gt_masks = structures.BitMasks(sample.masks.bool())
        return {"image": sample.image, "instances": objects.to(self.net.device)}

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
        """Return what is found in images, uint8 RGB [3, h, w] each, in pixels of ``sizes``, (height, width) each."""
        inputs = [
            {"image": image, "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        return [_boxes(found["instances"].to("cpu")) for found in self.net(inputs)]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the backbone's stages for normalised images [b, 3, h, w]."""
        if not self.c4:
            return bodies.stages(self.net.backbone.bottom_up, images)
        maps = bodies.stages(self.net.backbone, images)
        last = maps[-1]
        for name, block in self.net.roi_heads.res5.named_children():
            last = block(last) if name != "norm" else last
        return [*maps, last]

    def stem_and_stages(self) -> list[nn.Module]:
        """Return the stem and the stages of the backbone."""
        body = self.net.backbone if self.c4 else self.net.backbone.bottom_up
        if isinstance(body, SwinTransformer):
            return [body.patch_embed, *body.layers]
        return [body.stem, *body.stages, *([self.net.roi_heads.res5] if self.c4 else [])]

    def prepare(self, images: Tensor) -> Tensor:
        """Return what the backbone gets for RGB images [b, 3, h, w] of values 0 to 255."""
        return (images - self.net.pixel_mean) / self.net.pixel_std

    def describe(self, work: Path) -> None:
        """Write detectron2's configuration."""
        (work / FILE).write_text(self.cfg.dump())


def _fpn(cfg: CfgNode, spec: Spec, state: dict[str, Tensor], drop_path: float) -> GeneralizedRCNN:
    body = bodies.build(spec, drop_path=drop_path)
    convert.load(body, state, fresh(spec, "detectron2"))
    channels, norm = cfg.MODEL.FPN.OUT_CHANNELS, "BN" if cfg.MODEL.FPN.NORM else ""  # over ranks once it is distributed
    shapes, top = body.output_shape(), LastLevelMaxPool()
    top.in_feature = f"p{int(math.log2(shapes[list(shapes)[-1]].stride))}"  # p5 unless a small stem makes strides finer
    backbone = FPN(body, list(shapes), channels, norm, top)
    levels = list(backbone.output_shape())
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:-1]
    return _assembled(cfg, backbone, build_roi_heads(cfg, backbone.output_shape()))


def _c4(cfg: CfgNode, spec: Resnet, state: dict[str, Tensor]) -> GeneralizedRCNN:
    trunk, last = bodies.build(spec, last="res4"), bodies.last_stage(spec)
    own = {name.removeprefix("res5."): value for name, value in state.items() if name.startswith("res5.")}
    convert.load(trunk, {name: value for name, value in state.items() if not name.startswith("res5.")})
    convert.load(last, own)
    width = spec.outputs[-1]
    last.add_module("norm", nn.BatchNorm2d(width))  # MoCo's Res5ROIHeadsExtraNorm
    region = ShapeSpec(channels=width, height=POOLED, width=POOLED)
    heads = Res5ROIHeads(
        in_features=["res4"],
        pooler=ROIPooler(POOLED, (1 / trunk.output_shape()["res4"].stride,), 0, "ROIAlignV2"),
        res5=last,
        box_predictor=FastRCNNOutputLayers(cfg, ShapeSpec(channels=width, height=1, width=1)),
        mask_head=build_mask_head(cfg, region) if cfg.MODEL.MASK_ON else None,
        **ROIHeads.from_config(cfg),
    )
    return _assembled(cfg, trunk, heads)


def _assembled(cfg: CfgNode, backbone: Backbone, heads: nn.Module) -> GeneralizedRCNN:
    return GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(cfg, backbone.output_shape()),
        roi_heads=heads,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
    )


def _config(source: Pretrained, spec: Spec, chosen: Detection, classes: int) -> CfgNode:
    """Return the whole protocol as detectron2's own configuration."""
    cfg = get_cfg()
    for name, value in {
        **_common(source, chosen, classes),
        **(_of_fpn(chosen) if chosen.head == "fpn" else _of_c4(chosen)),
        **(_of_resnet(spec) if isinstance(spec, Resnet) else {}),
    }.items():
        cfg.merge_from_list([name, value])
    return cfg


def _common(source: Pretrained, chosen: Detection, classes: int) -> dict[str, Any]:
    steps, batch = chosen.steps, chosen.batch
    return {
        "MODEL.PIXEL_MEAN": [255 * value for value in source.mean],
        "MODEL.PIXEL_STD": [255 * value for value in source.std],
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": tuple(chosen.sizes),
        "INPUT.MAX_SIZE_TRAIN": chosen.largest,
        "INPUT.MIN_SIZE_TEST": chosen.test_size,
        "INPUT.MAX_SIZE_TEST": chosen.largest,
        "MODEL.MASK_ON": chosen.masks,
        "MODEL.BACKBONE.FREEZE_AT": chosen.freeze,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        **{f"MODEL.RPN.{KEPT[name]}": count for name, count in chosen.kept.items()},
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": max(1, chosen.regions // 2),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": chosen.regions,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": chosen.lr * batch / 16,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": tuple(round(drop * steps) for drop in chosen.drops),
        "SOLVER.WARMUP_ITERS": round(chosen.warmup / batch),
        "SOLVER.WARMUP_FACTOR": chosen.warmup_start,
        "SOLVER.MOMENTUM": chosen.momentum,
        "SOLVER.WEIGHT_DECAY": chosen.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": chosen.norm_weight_decay,
        "TEST.PRECISE_BN.ENABLED": bool(chosen.precise_bn),
        "TEST.PRECISE_BN.NUM_ITER": -(-chosen.precise_bn // batch),
        "SEED": chosen.seed,
    }


def _of_fpn(chosen: Detection) -> dict[str, Any]:
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": STAGES,
        "MODEL.FPN.IN_FEATURES": STAGES,
        "MODEL.FPN.OUT_CHANNELS": chosen.channels,
        "MODEL.FPN.NORM": "SyncBN" if chosen.norm else "",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[chosen.anchor * 2**level] for level in range(5)],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": chosen.channels,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    }


def _of_c4(chosen: Detection) -> dict[str, Any]:
    return {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[chosen.anchor * 2**level for level in range(5)]],
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.ROI_MASK_HEAD.CONV_DIM": chosen.channels,
    }


def _of_resnet(spec: Resnet) -> dict[str, Any]:
    return {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.RESNETS.STRIDE_IN_1X1": False}


def _boxes(found: structures.Instances) -> Boxes:
    masks = None
    if found.has("pred_masks"):
        masks = [rle.encode(np.asfortranarray(mask)) for mask in found.pred_masks.to(torch.uint8).numpy()]
    return Boxes(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy(), masks)
