"""The proof of a conversion: the same image gives the same feature maps, stage by stage.

Sizes are those at which the frameworks compute the same. For a ResNet any multiple of 32, and one that is not square.
For a Swin multiples of its windows: where a map is padded to whole windows, timm shifts before it pads and the others
after, so that maps differ near the right and lower edges. For a ViT the size of its position embeddings, which the
others interpolate by another kernel, or not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smog.errors import RunError, UsageError
from transfer.spec import Spec, Swin, Vit

LIMIT = 1e-4  # of the largest difference, to the largest magnitude of the source's map
BATCH = 2
MULTIPLE = 32  # the stride of the last stage, at most


@torch.no_grad()
def parity(
    network: nn.Module,
    spec: Spec | None,
    stages: Callable[[Tensor], list[Tensor]],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    indices: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for every map of the source: stage, shape, max_abs (the largest difference) and scale (the source's
    largest magnitude), in float32 and evaluation mode.

    ``network`` is the timm source; ``stages`` gives the maps [b, c, h, w] of the converted one for images [b, 3, h, w],
    RGB normalised by ``mean`` and ``std``; where it is the method of a module, that is in evaluation mode meanwhile.
    ``indices`` are those of the source's maps that it gives, by default all but the stem's. ``spec`` may be None for a
    ResNet of any kind.
    Raises RunError, which names the first stage that differs, where max_abs is above 1e-4 of scale, a shape is
    another or a map is missing.
    """
    source, maps = _source(network, spec), _indices(spec) if indices is None else list(indices)
    rows: list[dict[str, Any]] = []
    owner = getattr(stages, "__self__", None)
    with _evaluating(source, owner if isinstance(owner, nn.Module) else source):
        for height, width in _sizes(spec, size):
            images = _normalised(_pixels(height, width), mean, std).to(next(source.parameters()).device)
            ours = source.forward_intermediates(images, indices=maps, intermediates_only=True)
            rows += _compared(ours, stages(images), f"at {height}x{width} px")
    return rows


def input_parity(
    prepare: Callable[[Tensor], Tensor], size: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Return the row of what goes in: colour order, mean and standard deviation of another framework's preparation.

    ``prepare`` takes RGB images [b, 3, size, size] of values 0 to 255 as float32 and returns what its backbone gets.
    Raises RunError as ``parity`` does.
    """
    pixels = _pixels(size, size)
    where = "in colour order, mean or standard deviation"
    return _row("input", _normalised(pixels, mean, std), prepare(pixels), where)


def without_token(network: nn.Module) -> nn.Module:
    """Return a copy of a timm ViT without its class token: what detectron2's ViT computes (ViTDet, 2203.16527)."""
    copied: Any = copy.deepcopy(network)
    copied.cls_token = None
    copied.pos_embed = nn.Parameter(copied.pos_embed[:, 1:].detach().clone())
    copied.num_prefix_tokens = 0
    return copied


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [f"{'map':<10}{'shape':<22}{'largest difference':>20}{'largest value':>16}"]
    lines += [
        f"{row['stage']:<10}{'x'.join(map(str, row['shape'])):<22}{row['max_abs']:>20.2e}{row['scale']:>16.3g}"
        for row in rows
    ]
    return "\n".join(lines)


def _compared(ours: Sequence[Tensor], theirs: Sequence[Tensor], where: str) -> list[dict[str, Any]]:
    if len(ours) != len(theirs):
        raise RunError(f"the converted network gives {len(theirs)} maps where the source gives {len(ours)}")
    pairs = enumerate(zip(ours, theirs, strict=True), 1)
    return [_row(f"stage {number}", one, other, where) for number, (one, other) in pairs]


def _row(stage: str, one: Tensor, other: Tensor, where: str) -> dict[str, Any]:
    if one.shape != other.shape:
        raise RunError(f"{stage} differs {where}: shape {[*other.shape]} where the source has {[*one.shape]}")
    difference, scale = float((one - other.to(one)).abs().max()), float(one.abs().max())
    if not difference <= LIMIT * scale:  # a NaN is a difference too
        raise RunError(f"{stage} differs {where}, by up to {difference:.2g} where values reach {scale:.2g}")
    return {"stage": stage, "shape": [*one.shape], "max_abs": difference, "scale": scale}


def _source(network: nn.Module, spec: Spec | None) -> Any:
    if not isinstance(spec, Swin):
        return network
    copied: Any = copy.deepcopy(network)  # one that takes any size, as the converted network does
    copied.patch_embed.strict_img_size = False
    for stage in copied.layers:
        for block in stage.blocks:
            block.dynamic_mask = True
    return copied


def _sizes(spec: Spec | None, size: int) -> list[tuple[int, int]]:
    """Return heights and widths to prove it at, near ``size``; see the top of this file."""
    if isinstance(spec, Vit):
        return [(spec.image, spec.image)]
    if isinstance(spec, Swin):
        whole = spec.patch * 8 * spec.window  # the last stage has one window
        return [(whole, whole), (whole, 2 * whole)]
    side = -(-size // MULTIPLE) * MULTIPLE
    return [(side, side), (side, side + MULTIPLE)]


def _indices(spec: Spec | None) -> list[int] | None:
    """All maps but that of the stem, which timm gives before pooling."""
    return None if isinstance(spec, Swin | Vit) else [1, 2, 3, 4]


def _pixels(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (BATCH, 3, height, width), generator=generator).float()


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError(f"mean={mean}, std={std}: three values each for red, green and blue, std above 0")
    return (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Have networks in evaluation mode, and every part back in its own mode afterwards."""
    modes = {part: part.training for network in networks for part in network.modules()}
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
