"""Devices that a run could have, and how fast they are said to be: for the cost model alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device that a run could have. ``rates`` are dense TFLOP/s by precision: the vendor's peak, or measured."""

    name: str
    memory: float  # GB; 0 is not known
    rates: Mapping[str, float]
    source: str
    measured: bool = False


# Share of the peak that training reaches. From NVIDIA's own throughput of ResNet-50 v1.5 (DeepLearningExamples, one
# GPU, 3 x 8.2 GFLOP an image): A100 mixed 2,470 images/s = 0.20, V100 mixed 1,200 = 0.24, V100 fp32 367 = 0.57.
UTILISATION = {"bf16": 0.20, "fp16": 0.20, "fp32": 0.50}
NVIDIA = (  # name, memory in GB, dense peaks in TFLOP/s; fp32 is that of the CUDA cores, without TF32
    (
        "NVIDIA H100 SXM 80 GB",
        80,
        {"bf16": 989.5, "fp16": 989.5, "fp32": 67},
        "H100 data sheet, half of its sparse peak",
    ),
    ("NVIDIA A100 SXM 80 GB", 80, {"bf16": 312, "fp16": 312, "fp32": 19.5}, "A100 data sheet"),
    ("NVIDIA V100 SXM2 32 GB", 32, {"fp16": 125, "fp32": 15.7}, "V100 data sheet; it has no bf16"),
    ("NVIDIA RTX 4090", 24, {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6}, "Ada whitepaper 2.02, appendix A"),
)
CORE = Device(
    "one AMD EPYC core, AVX-512 BF16",
    0,
    {"bf16": 0.198, "fp32": 0.114},
    "ours: 128 images of 32 px through resnet10_small and back in 62 ms, in fp32 107 ms",
    measured=True,
)
DEVICES = (*(Device(*row) for row in NVIDIA), CORE)
