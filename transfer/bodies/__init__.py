"""The backbones of other frameworks, of their own blocks under their own names, imported when chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from smog.errors import UsageError, nearest

INSTALL = {
    "torchvision": "pip install torchvision",
    "detectron2": "https://detectron2.readthedocs.io/en/latest/tutorials/install.html",
    "mmseg": "pip install mmengine mmcv-lite mmsegmentation ftfy regex",
}


def bodies_of(target: str) -> ModuleType:
    """Return the module with ``build(spec)`` and ``stages(body, images)`` of a framework.

    Raises UsageError for one that is not known or not installed.
    """
    if target not in INSTALL:
        raise UsageError(f"{target!r}: no such framework{nearest(target, INSTALL)}")
    try:
        return importlib.import_module(f"transfer.bodies.{target}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("transfer"):
            raise
        raise UsageError(f"{target} is not installed (no module {error.name}): {INSTALL[target]}") from None


def taps(body: nn.Module, layers: Sequence[nn.Module], images: Tensor, map_of: Callable[[Any], Tensor]) -> list[Tensor]:
    """Run ``body`` on images [b, 3, h, w] and return what the layers gave on the way, each through ``map_of``."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: found.append(map_of(output))) for layer in layers]
    try:
        body(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [b, n, c] as a map [b, c, h, w]; of more than h w tokens the last are taken."""
    return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
