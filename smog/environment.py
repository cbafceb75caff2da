"""What a number was computed with: versions, commit, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

COMMIT = "commit.json"  # beside the package in a frozen copy of the code, in place of .git
_PACKAGES = ("smog-suite", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "hydra-core")


@functools.cache
def provenance() -> dict[str, Any]:
    """Return the commit of the code, whether it was changed since, and the versions of what it stands on."""
    return {**_commit(), **_versions()}


def _commit() -> dict[str, Any]:
    kept = Path(__file__).resolve().parents[1] / COMMIT
    if kept.is_file():  # the code is a copy, frozen when a launch was submitted
        return json.loads(kept.read_text())
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "-uno"))}


def _versions() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"versions": {"python": platform.python_version(), **versions}}


def _git(*arguments: str) -> str | None:
    """Return what git says of the checkout this package lies in, or None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """Return what the hardware is, in words that say nothing of whose it is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory": psutil.virtual_memory().total,
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """Return how many GPUs this process may use. Torch, which takes seconds to import, is asked where a driver is."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory() -> int:
    """Return the largest memory that this process held so far, in bytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
