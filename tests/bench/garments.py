"""How hard the embedded garments are with labels: the demo's backbone, supervised to the end. Its figure stands in the
README beside raw pixels, an untrained network and SMoG. ``python tests/bench/garments.py [epochs=20] [seed=0]``"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from smog.__main__ import take
from smog.config import compose
from smog.data.images import open_images
from smog.data.sampler import Batches, loader
from smog.data.sources import with_fingerprint
from smog.data.views import normalize, whole_view
from smog.errors import exit_code
from smog.models import build_backbone


def main(arguments: Sequence[str]) -> int:
    """Train with labels on crops, flips and a mild jitter; print top-1 on val after the last epoch."""
    epochs, rest = take(arguments, "epochs", "20")
    seed, _ = take(rest, "seed", "0")
    with tempfile.TemporaryDirectory() as store:
        config = with_fingerprint(compose(["recipe=demo", f"seed={seed}", f"runtime.store={store}"]))
        mild = replace(config.views.first, jitter=0.8, scale_min=0.5)
        config = replace(config, views=replace(config.views, first=mild, second=mild))
        images, val = (open_images(config, split) for split in ("train", "val"))
        torch.manual_seed(config.seed)
        backbone = build_backbone(config.backbone, config.views.size)
        network = nn.Sequential(backbone, nn.Linear(backbone.num_features, len(images.classes)))  # type: ignore[arg-type]
        network.to(memory_format=torch.channels_last)
        fit(network, Batches(config, images), torch.from_numpy(images.labels), round(float(epochs)))
        batch = torch.stack([torch.from_numpy(whole_view(val[i], config.views.size).copy()) for i in range(len(val))])
        with torch.inference_mode():
            found = network.eval()(normalize(batch, torch.device("cpu"))).argmax(1)
        top1 = 100 * (found == torch.from_numpy(val.labels)).double().mean()
    print(f"supervised, {epochs} epochs, seed {seed}: top-1 {top1:.1f} % on {len(val)} val images")
    return 0


def fit(network: nn.Module, batches: Batches, labels: torch.Tensor, epochs: int) -> None:
    """AdamW under a one-cycle rate; both views of an image are used."""
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step, batch in enumerate(loader(batches, 0, steps, workers=0)):
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(normalize(batch.views[0].flatten(0, 1), torch.device("cpu")))
        loss = F.cross_entropy(scores.float(), labels[batches.indices(step)].repeat(2), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
