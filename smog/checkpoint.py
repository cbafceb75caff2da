"""Checkpoints: atomic, complete, exact. Files are read as data (weights_only), never as code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from smog.distributed import gathered, rank, wait, world_size
from smog.errors import RunError, UsageError
from smog.identity import as_dict, run_id
from smog.progress import say
from smog.schema import Config

FILE, PREVIOUS = "last.pt", "previous.pt"
NEXT = "next.pt"  # while it is written
SHOWN = 3  # values that differ, of those of another run


def exists(folder: Path) -> bool:
    """Say whether there is something to go on from."""
    return (folder / FILE).exists() or (folder / PREVIOUS).exists()


def save(
    folder: Path,
    config: Config,
    step: int,
    method: nn.Module,
    optimizer: Optimizer,
    progress: dict[str, Any],
    scaler: GradScaler | None = None,
) -> None:
    """Write everything that the next step depends on; all ranks call it, rank 0 writes.

    ``progress`` holds plain values beside it, such as the cost. The checkpoint before stays as previous.pt.
    """
    streams = gathered((torch.get_rng_state(), _cuda_rng()))
    content = {
        "run_id": run_id(config),
        "config": as_dict(config, science_only=True),
        "step": step,
        "world": world_size(),
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "rng": torch.stack([cpu for cpu, _ in streams]),  # [world, bytes]
        "cuda_rng": torch.stack([cuda for _, cuda in streams]),
        "progress": progress,
    }
    if not rank():
        write(folder, content)
    wait()


def _cuda_rng() -> torch.Tensor:
    """Return the state of this process's own device, or nothing where CUDA is not in use."""
    return torch.cuda.get_rng_state() if torch.cuda.is_initialized() else torch.empty(0, dtype=torch.uint8)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in the place of the last; at every moment one of three files is whole and on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NEXT, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if (folder / FILE).exists():
        os.replace(folder / FILE, folder / PREVIOUS)
    os.replace(folder / NEXT, folder / FILE)


def forget_previous(folder: Path) -> None:
    """Remove all but the last checkpoint, when the run is done."""
    for name in (PREVIOUS, NEXT):
        (folder / name).unlink(missing_ok=True)


def restore(
    folder: Path, config: Config, method: nn.Module, optimizer: Optimizer, scaler: GradScaler | None = None
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint into the method, the optimiser and the generators; return the step to go on with."""
    content = latest(folder)
    if content.get("run_id") != run_id(config):
        raise UsageError(
            f"{folder / FILE} belongs to run {content.get('run_id')}, not to {run_id(config)}"
            f"{_differences(content, config)}"
        )
    try:
        method.load_state_dict(content["method"])
        optimizer.load_state_dict(content["optimizer"])
        if scaler and content["scaler"]:
            scaler.load_state_dict(content["scaler"])
        step, progress = content["step"], content["progress"]
        _restore_streams(content, config.seed)
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder / FILE} is of another version of the program ({why}); move {folder} away") from None
    return step, progress


def latest(folder: Path) -> dict[str, Any]:
    """Return the content of the newest whole checkpoint of a folder; all ranks call it, and read the same."""
    content, path = _newest(folder / FILE)
    steps = gathered(content.get("step"))  # no rank goes on before all have read
    if len(set(steps)) > 1:
        raise RunError(f"{path}: the processes read it at the steps {steps}; they must see the same files", kind="node")
    if path.name == PREVIOUS and not rank():
        os.replace(path, folder / FILE)  # or the next save would put the damaged file in the place of this one
    return content


def own_stream(seed: int, step: int) -> None:
    """Start the generators of this process anew, as a function of the seed, the step and the rank alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]))


def _restore_streams(content: dict[str, Any], seed: int) -> None:
    """The generators serve dropout and drop path; everything else draws from its own."""
    if content["world"] != world_size():
        own_stream(seed, content["step"])
        if not rank():
            now = f"{world_size()} process{'es' if world_size() > 1 else ''}"
            say(
                f"run {content['run_id']}: resumed with {now} after {content['world']}: the same run, but not to the "
                "last bit; random numbers of dropout and drop path start anew"
            )
        return
    # a copy: torch crashes with a row of a larger tensor
    torch.set_rng_state(content["rng"][rank()].clone())
    if content["cuda_rng"].numel() and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(content["cuda_rng"][rank()].clone())


def _differences(content: dict[str, Any], config: Config) -> str:
    """Return ``": key is a there and b here, ..."`` for what differs between a checkpoint's configuration and ours."""
    theirs, ours = dict(_flat(content.get("config", {}))), dict(_flat(as_dict(config, science_only=True)))
    keys = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    shown = ", ".join(f"{key} is {theirs[key]} there and {ours[key]} here" for key in keys[:SHOWN])
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f": {shown}{more}" if keys else ""


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU; one that is damaged or holds more than data is refused by name.

    For a last.pt that a crash took, a previous.pt beside it stands in, and that is said.
    """
    return _newest(path)[0]


def _newest(path: Path) -> tuple[dict[str, Any], Path]:
    try:
        return _read(path), path
    except UsageError as error:
        before = path.with_name(PREVIOUS)
        if path.name != FILE or not before.exists():
            raise
        try:
            content = _read(before)
        except UsageError:
            raise error from None
        if not rank():
            say(f"{path} can't be read; {before.name} beside it stands in, at step {content.get('step')}")
        return content, before


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; has the run been started?") from None
    except Exception as error:  # damage has many names
        why = next(iter(str(error).splitlines()), "it ends too early").partition(". ")[0]
        raise UsageError(f"{path} is no checkpoint that can be read: {why}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no checkpoint that can be read: it holds one {type(content).__name__}")
    return content


def load_backbone(ckpt: str | Path, store: str | Path = "runs") -> nn.Module:
    """Return the backbone of a checkpoint as a timm module in eval mode: images [b, 3, h, w] to [b, num_features].

    ``ckpt`` is a run (its id or first characters, its folder, its checkpoint file), an export, or a stranger's file;
    see smog.pretrained.open_pretrained, which also says where it comes from.
    """
    from smog.pretrained import open_pretrained  # which reads runs with this module

    return open_pretrained(ckpt, store).network
