"""Checkpoints: atomic, complete, exact. Files are read as data (weights_only), never as code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from smog.config import load
from smog.errors import UsageError
from smog.identity import run_id
from smog.models import build_backbone
from smog.schema import Config
from smog.store import find_run, write_atomically

FILE = "last.pt"


def save(
    folder: Path, config: Config, step: int, method: nn.Module, optimizer: Optimizer, progress: dict[str, Any]
) -> None:
    """Write everything that the next step depends on. ``progress`` holds plain values beside it, such as the cost."""
    content = {
        "run_id": run_id(config),
        "step": step,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": progress,
    }
    write_atomically(folder / FILE, lambda file: torch.save(content, file))


def restore(folder: Path, config: Config, method: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint into the method, the optimiser and the generators; return the step to go on with."""
    content = read(folder / FILE)
    if content.get("run_id") != run_id(config):
        raise UsageError(f"{folder / FILE} belongs to run {content.get('run_id')}, not to {run_id(config)}")
    method.load_state_dict(content["method"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return content["step"], content["progress"]


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU; one that is damaged or holds more than data is refused by name."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; has the run been started?") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is no checkpoint that can be read: {str(error).splitlines()[0]}") from None


def load_backbone(run: str | Path, store: str | Path = "runs") -> nn.Module:
    """Return the backbone of a run as a timm module in eval mode: images [b, 3, h, w] to features [b, num_features].

    ``run`` is a run's id or its first characters, its folder, or its checkpoint file.
    """
    folder = find_run(Path(store), str(run))
    config = load(folder / "config.yaml")
    state = read(folder / FILE)["method"]
    backbone = build_backbone(config.backbone, config.views.size)
    prefix = "backbone."
    backbone.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
    return backbone.eval()
