"""A linear classifier on frozen features. Its settings are chosen on a part of train, its number comes from val."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smog.errors import UsageError
from smog.tasks.protocols import Linear
from smog.tasks.result import Features


def compute(features: Features, settings: Linear) -> dict[str, float]:
    """Return top-1 and top-5 in percent on val after the last epoch, and what was chosen.

    All heads (learning rate x weight decay) are trained on train without minival; the best on minival gives the
    rate and the decay with which one head is trained on all of train. Val is looked at once.
    """
    train, val = _standardized(features.train, features.val)
    part, minival = _split(features.train_labels, settings)
    if not len(part):
        raise UsageError(f"minival={settings.minival} leaves none of the {len(train)} training images to train on")
    grid = [(lr, decay) for lr in settings.lrs for decay in settings.weight_decays]
    heads = fit(train[part], features.train_labels[part], grid, features.classes, settings)
    scores = _top(heads, train[minival], features.train_labels[minival], 1, features.classes)
    lr, decay = chosen = grid[int(scores.argmax())]
    head = fit(train, features.train_labels, [chosen], features.classes, settings)
    return {
        "top1": float(_top(head, val, features.val_labels, 1, features.classes)),
        "top5": float(_top(head, val, features.val_labels, min(5, features.classes), features.classes)),
        "minival_top1": float(scores.max()),
        "lr": lr,
        "weight_decay": decay,
    }


def fit(x: Tensor, y: Tensor, grid: list[tuple[float, float]], classes: int, settings: Linear) -> tuple[Tensor, Tensor]:
    """Return weights [d, heads x classes] and biases [heads x classes], one head a (lr, weight decay).

    SGD with momentum and a cosine over all epochs; every head sees the same batches in the same order. The heads
    stand side by side in one matrix, so that many cost little more than one.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    weight = torch.zeros(x.shape[1], len(grid) * classes)
    bias = torch.zeros(len(grid) * classes)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    rates, decays = (torch.tensor(column).repeat_interleave(classes) for column in zip(*grid, strict=True))
    batch = min(settings.batch, len(x))
    per_epoch = len(x) // batch
    for step in range(settings.epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[step % per_epoch * batch :][:batch]
        factor = 0.5 * (1 + math.cos(math.pi * step / (settings.epochs * per_epoch)))
        error = _error(x[rows] @ weight + bias, y[rows], classes)
        gradients = (x[rows].T @ error + decays * weight, error.sum(dim=0))
        for value, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
            value -= factor * rates * speed.mul_(settings.momentum).add_(gradient)
    return weight, bias


def _error(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the gradient of every head's mean cross entropy with respect to its logits, [b, heads x classes]."""
    error = logits.view(len(y), -1, classes).softmax(dim=-1)
    error[torch.arange(len(y)), :, y] -= 1
    return error.flatten(1) / len(y)


def _top(head: tuple[Tensor, Tensor], x: Tensor, y: Tensor, k: int, classes: int) -> Tensor:
    """Return the top-k accuracy in percent of every head, [heads]."""
    best = (x @ head[0] + head[1]).view(len(y), -1, classes).topk(k, dim=-1).indices
    return 100 * (best == y[:, None, None]).any(dim=-1).double().mean(dim=0)


def _standardized(train: Tensor, val: Tensor) -> tuple[Tensor, Tensor]:
    """Give every feature mean 0 and deviation 1 over train, so that one grid of rates fits all backbones."""
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    return (train - mean) / deviation, (val - mean) / deviation


def _split(labels: Tensor, settings: Linear) -> tuple[Tensor, Tensor]:
    """Return the indices of train without minival, and of minival: the same share of every class."""
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].sort(stable=True).indices]  # by class, shuffled within
    counts = torch.bincount(labels)
    rank = torch.cat([torch.arange(int(n)) for n in counts])
    held = rank < (counts[labels[order]] * settings.minival).ceil()
    return order[~held], order[held]
