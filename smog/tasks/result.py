"""From a finished run to one result file: features, the task's own function, and all that the number stands on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smog.checkpoint import load_backbone
from smog.config import load
from smog.data.images import Images, open_images
from smog.data.views import normalize, whole_view
from smog.environment import now, peak_memory, provenance
from smog.errors import RunError, UsageError
from smog.identity import as_dict, group_id, run_id
from smog.schema import Config
from smog.store import DONE, RESULT_SCHEMA, write_json
from smog.tasks import protocol
from smog.training import choose_device, device_name, precision

BATCH = 256


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set: float32 [n, d], labels int64 [n], for train and val."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    classes: int


@dataclass(frozen=True)
class Found:
    """What a task found: numbers, what they were computed on, and what else its result keeps."""

    metrics: dict[str, float]
    inputs: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)


def compute(folder: Path, task: str, chosen: Any, module: ModuleType, path: Path) -> None:
    """Compute a task and write its result."""
    if not (folder / DONE).exists():
        raise UsageError(f"run {folder.name} is not finished; run the same `smog train` again to finish it")
    config = load(folder / "config.yaml")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    started = time.monotonic()
    of_run = getattr(module, "of_run", _of_features(module))
    found = of_run(folder, config, chosen)
    who = {"run_id": run_id(config), "group_id": group_id(config), "seed": config.seed}
    write_result(path, who, task, chosen, found, time.monotonic() - started, choose_device(config.runtime.device))


def _of_features(module: ModuleType) -> Callable[[Path, Config, Any], Found]:
    """Return how a task that looks at features alone is computed from a run."""

    def of_run(folder: Path, config: Config, chosen: Any) -> Found:
        features = features_of(folder, config)
        inputs = {"data": config.data.fingerprint, "train": len(features.train), "val": len(features.val)}
        return Found(module.compute(features, chosen), inputs)

    return of_run


def write_result(
    path: Path, who: dict[str, Any], task: str, chosen: Any, found: Found, seconds: float, device: torch.device
) -> None:
    """Write a result with all that its numbers stand on. ``who``: run_id, group_id and seed of the checkpoint."""
    cost = {"seconds": round(seconds, 3), "device": device_name(device), "peak_memory": peak_memory()}
    write_json(
        path,
        {
            "schema": RESULT_SCHEMA,
            **who,
            "task": task,
            "protocol": protocol(task, chosen),
            "version": chosen.VERSION,
            "settings": as_dict(chosen, science_only=True),
            "metrics": found.metrics,
            "cost": cost,
            "inputs": found.inputs,
            **found.more,
            "provenance": provenance(),
            "created": now(),
        },
    )


_last: tuple[Path, Features] | None = None


def features_of(folder: Path, config: Config) -> Features:
    """Return the features of a run's backbone; those of the last run stay in memory for its other tasks."""
    global _last
    if _last is None or _last[0] != folder.resolve():
        device = choose_device(config.runtime.device)
        backbone = load_backbone(folder).to(device).to(memory_format=torch.channels_last)
        images = {split: open_images(config, split) for split in ("train", "val")}
        train, val = (extract(backbone, images[split], config, device) for split in ("train", "val"))
        labels = {split: torch.from_numpy(images[split].labels) for split in images}
        found = Features(train, labels["train"], val, labels["val"], len(images["train"].classes))
        _last = folder.resolve(), found
    return _last[1]


@torch.inference_mode()
def extract(network: torch.nn.Module, images: Images, config: Config, device: torch.device) -> Tensor:
    """Return what a network in eval mode makes of every image, whole: float32 [n, d], on the CPU."""
    half = precision(config, device) == "bf16"
    parts = []
    for start in range(0, len(images), BATCH):
        views = [whole_view(images[i], config.views.size) for i in range(start, min(start + BATCH, len(images)))]
        batch = normalize(torch.from_numpy(np.stack(views)), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            parts.append(network(batch).float().cpu())
    features = torch.cat(parts)
    if not torch.isfinite(features).all():
        raise RunError("the backbone gives features that are not finite: the run has diverged", kind="nan")
    return features
