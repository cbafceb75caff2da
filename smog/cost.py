"""What a run will cost, from its configuration alone: a model that touches no data and measures nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from smog.data import scenes
from smog.data.sampler import check_batch
from smog.data.sources import open_source
from smog.devices import DEVICES, UTILISATION, Device
from smog.errors import UsageError
from smog.methods.smog import Smog
from smog.schema import Config

LABEL = "cost model, not measured"
BACKWARD = 2  # times the forward pass: one product for the gradient of the input, one for that of the weight
HEADROOM = 0.85  # share of a device's memory for what is counted; the rest is for what is not (our choice)
KMEANS = 11  # passes over the cache at a regroup: to start, and ten iterations at most
FLOAT = 4  # bytes; weights, gradients and the optimiser's state stay fp32 under autocast
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("bf16", "fp16", "fp32")
KNOWN = {  # training images; the longer names first, since the shorter are part of them
    "imagenet100": 126_689,  # the classes of CMC (arXiv 1906.05849), counted in clane9/imagenet-100 on Hugging Face
    "imagenette": 9_469,  # fastai/imagenette, version 2
    "imagenet": 1_281_167,  # ILSVRC 2012 (Russakovsky et al., arXiv 1409.0575)
    "cifar10": 50_000,  # Krizhevsky 2009
}


def cost(config: Config, gpus: int = 1) -> dict[str, Any]:
    """Return what a run on ``gpus`` equal devices will cost: parameters, steps, FLOPs, bytes a device, hours.

    Nothing is read but the list of images where ``data.root`` is there, and nothing is written. Raises UsageError
    for a network that can't be built, an unknown number of images, or a batch that the devices can't share evenly.
    """
    micro = micro_batch(config, gpus)
    with torch.device("meta"):  # shapes alone, so that the largest network takes no memory and no time
        method = Smog(config)
    schedule = _schedule(config)
    flops = _flops(method, config, schedule["steps"])
    used = {device.name: _precision(config, device) for device in DEVICES}
    memory = {name: _memory(method, config, name, micro) for name in PRECISIONS if name in used.values()}
    return {
        "what": LABEL,
        "recipe": config.recipe,
        "gpus": gpus,
        "micro_batch": micro,
        "parameters": _parameters(method),
        "schedule": schedule,
        "flops": flops,
        "memory": memory,
        "devices": [_device(device, used[device.name], flops["run"] / gpus, memory) for device in DEVICES],
    }


def micro_batch(config: Config, gpus: int) -> int:
    """Return how many images one device works on at once."""
    parts = gpus * config.optim.accumulate
    if config.optim.batch % parts:
        cut = f"gpus={gpus} x optim.accumulate={config.optim.accumulate}"
        raise UsageError(f"optim.batch={config.optim.batch} is no multiple of {cut}")
    return config.optim.batch // parts


def train_images(config: Config) -> tuple[int, str]:
    """Return the number of training images, and where it comes from; the data need not be there."""
    data = config.data
    if data.train_images:
        return data.train_images, "data.train_images"
    if data.name == "garments":
        return scenes.count("train"), "the embedded pictures"
    if data.root and not data.download and Path(data.root).exists():
        return len(open_source(data, "train").labels), data.root
    names = "".join(letter for letter in f"{data.name} {config.recipe} {data.root}".lower() if letter.isalnum())
    for name, count in KNOWN.items():
        if name in names:
            return count, f"the published size of {name}"
    raise UsageError(f"how many training images {data.name} has is not known: data.root=DIR or data.train_images=N")


def crops_seen(config: Config) -> tuple[Counter[int], Counter[int]]:
    """Return how many crops of an image the online and the momentum branch see, by their side in pixels."""
    views = config.views
    both = config.method.direction == "both"
    online = Counter({views.size: views.global_crops - (not both)}) + Counter({views.local_size: views.local_crops})
    return online, Counter({views.size: views.global_crops if both else 1})


def _schedule(config: Config) -> dict[str, Any]:
    """``effective_epochs``: times the crops of an image in units of a global crop's area (iBOT, arXiv 2111.07832)."""
    images, origin = train_images(config)
    check_batch(config, images)
    views, epochs = config.views, config.optim.epochs
    steps = round(epochs * (images // config.optim.batch))
    area = views.global_crops + views.local_crops * (views.local_size / views.size) ** 2
    return {
        "train_images": images,
        "train_images_from": origin,
        "batch": config.optim.batch,
        "steps": steps,
        "epochs": epochs,
        "effective_epochs": epochs * area,
        "images_seen": steps * config.optim.batch,
        "crops_seen": steps * config.optim.batch * (views.global_crops + views.local_crops),
    }


def _parameters(method: Smog) -> dict[str, int]:
    heads = [*method.projector.parameters(), *method.predictor.parameters()]
    return {
        "backbone": sum(p.numel() for p in method.backbone.parameters()),
        "heads": sum(p.numel() for p in heads),
        "momentum_copy": sum(p.numel() for p in method.momentum_branch.parameters()),
    }


# ---- computation ----


def _flops(method: Smog, config: Config, steps: int) -> dict[str, Any]:
    """Count a multiplication and an addition as two, as vendors do; element-wise work is not counted."""
    online, target = crops_seen(config)
    backbone = {side: forward_flops(method.backbone, config, side) for side in sorted(online | target, reverse=True)}
    h, p = forward_flops(method.projector, config), forward_flops(method.predictor, config)
    late = p if config.method.predictor == "both" else 0
    trained = sum(count * (backbone[side] + h + p) for side, count in online.items())
    followed = sum(count * (backbone[side] + h + late) for side, count in target.items())
    image = (1 + BACKWARD) * trained + followed
    groups = _group_flops(config, online, target)
    step = config.optim.batch * image + groups
    return {"backbone_forward": backbone, "image": image, "groups": groups, "step": step, "run": steps * step}


def _group_flops(config: Config, online: Counter[int], target: Counter[int]) -> int:
    """Own groups, target groups, logits with their two gradients, and the k-means spread over its interval."""
    method, batch = config.method, config.optim.batch
    own = online.total() - config.views.local_crops
    rows = batch * (own + target.total() + (1 + BACKWARD) * online.total())
    kmeans = method.cache_size * KMEANS // method.regroup_interval if method.regroup_interval else 0
    return 2 * (rows + kmeans) * method.num_groups * method.dim


def forward_flops(module: nn.Module, config: Config, side: int = 0) -> int:
    """Return the FLOPs of one image of a side in pixels, or of one row of features, through a module on ``meta``.

    On ``meta`` attention is two plain products; the fused kernels of the CPU are unknown to the counter.
    """
    wide = next((p.shape[1] for p in module.parameters() if p.dim() == 2), 0)
    shape = (1, 3, side, side) if side else (1, wide)
    module.eval()  # BatchNorm takes a single row
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _fitting(config, side):
        module(torch.empty(shape, device="meta"))
    module.train()
    return counter.get_total_flops()


@contextlib.contextmanager
def _fitting(config: Config, *sides: int) -> Iterator[None]:
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"backbone {config.backbone.name} at {' and '.join(map(str, sides))} px: {message}") from None


# ---- memory ----


def _memory(method: Smog, config: Config, precision: str, micro: int) -> dict[str, int]:
    """Return bytes on one device. Left out: workspaces, what the allocator wastes, buffers of collectives."""
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    two, four = (kept_for_backward(method, config, precision, images) for images in (2, 4))
    image = (four - two) // 2
    momenta = 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)
    views = config.views
    pixels = 3 * (views.global_crops * views.size**2 + views.local_crops * views.local_size**2)
    online = _bytes(method.backbone) + _bytes(method.projector) + _bytes(method.predictor)
    parts = {
        "weights": online,
        "momentum_copy": _bytes(method.momentum_branch),
        "gradients": FLOAT * trained,
        "optimizer": FLOAT * trained * momenta,
        "groups": FLOAT * method.bank.groups.numel(),
        "cache": _bytes(method.bank) - FLOAT * method.bank.groups.numel(),
        "fixed": two - 2 * image,  # what does not grow with the batch: weights cast to half precision, statistics
        "activations": micro * image,
        "images": micro * pixels * (1 + FLOAT),  # as they come, and normalised
    }
    return {**parts, "total": sum(parts.values())}


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


class _Online(nn.Module):
    """The online branch up to the loss, as the method runs it, with any groups for targets."""

    def __init__(self, method: Smog) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = method.backbone, method.projector, method.predictor
        self.bank, self.temperature = method.bank, method.config.temperature

    def forward(self, crops: list[Tensor], targets: int) -> Tensor:
        z = self.projector(torch.cat([self.backbone(x) for x in crops]))
        q = self.predictor(z)
        with torch.autocast("cpu", enabled=False):
            z = F.normalize(z[: len(crops[0])].float(), dim=1)  # global crops alone move the groups
            groups = self.bank.groups.index_add(0, torch.zeros(len(z), dtype=torch.int64), z)
            any_groups = torch.zeros(len(q), targets, dtype=torch.int64)
            return self.bank.loss(q.float(), groups, any_groups, self.temperature)


def kept_for_backward(method: Smog, config: Config, precision: str, images: int) -> int:
    """Return the bytes that autograd keeps of a forward pass over so many images, beyond weights and images.

    Fake tensors have shapes, types and storages but no memory. They pose as the CPU's rather than ``meta``'s, which
    knows neither autocast nor fused attention; CUDA's autocast keeps LayerNorm in fp32 besides.
    """
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    online, target = crops_seen(config)
    network = _Online(method).train()
    with FakeTensorMode(), torch.autocast("cpu", HALF.get(precision, torch.bfloat16), enabled=precision in HALF):
        weights = {name: _like(t) for name, t in [*network.named_parameters(), *network.named_buffers()]}
        crops = [torch.empty(images * count, side, side, 3).permute(0, 3, 1, 2) for side, count in online.items()]
        # the method picks the global crops by index, which copies them; of the others autograd keeps the images
        own = {tensor.untyped_storage()._cdata for tensor in [*weights.values(), *crops[1:]]}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _fitting(config, *online):
            loss = torch.func.functional_call(network, weights, (crops, target.total()))
        found = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    del loss  # not before: it holds the graph, and with it every address
    return found


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)


# ---- time ----


def _precision(config: Config, device: Device) -> str | None:
    """Return what a device would compute in, None where it lacks the precision that is asked for."""
    wanted = config.optim.precision
    if wanted == "auto":
        return "bf16" if "bf16" in device.rates else "fp32"
    return wanted if wanted in device.rates else None


def _device(device: Device, precision: str | None, flops: float, memory: dict[str, dict[str, int]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": device.name, "precision": precision, "source": device.source}
    if precision is None:
        return {**row, "peak_tflops": None, "utilisation": None, "hours": None, "fits": None}
    share = 1.0 if device.measured else UTILISATION[precision]
    return {
        **row,
        "peak_tflops": None if device.measured else device.rates[precision],
        "utilisation": None if device.measured else share,
        "hours": flops / (device.rates[precision] * share * 1e12) / 3600,
        "fits": memory[precision]["total"] <= HEADROOM * device.memory * 1e9 if device.memory else None,
    }
