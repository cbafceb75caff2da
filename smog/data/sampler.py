"""Batches by arithmetic: batch ``step`` is a function of (seed, step) alone, so a resume just starts counting later;
each of several processes knows its part of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from smog.data.images import Images
from smog.data.views import make_views
from smog.distributed import rank, world_size
from smog.errors import UsageError
from smog.schema import Config
from smog.signals import outlive_signals


@dataclass(frozen=True)
class Batch:
    """The part of a batch that is this process's. ``views`` one tensor a size, uint8 [crops, b, side, side, 3], the
    global crops first; ``bad`` the images that did not decode, path -> reason."""

    views: list[torch.Tensor]
    bad: dict[str, str]


class Batches(Dataset):
    """The batches of a run, numbered by step. An epoch is a permutation; its incomplete last batch is left out."""

    def __init__(self, config: Config, images: Images) -> None:
        check_batch(config, len(images))
        self.seed, self.views, self.batch = config.seed, config.views, config.optim.batch
        self.parts, self.world, self.rank = config.optim.accumulate, world_size(), rank()
        self.images = images
        self.said = set[str]()  # the bad images that were reported, once for all runs that share the batches
        self.per_epoch = len(images) // self.batch

    def indices(self, step: int) -> np.ndarray:
        """Return the images of a step, int64 [batch]."""
        epoch, place = divmod(step, self.per_epoch)
        return _permutation(self.seed, epoch, len(self.images))[place * self.batch : (place + 1) * self.batch]

    def own(self, step: int) -> np.ndarray:
        """Return this process's images of a step, int64 [b]: an equal part of each micro-batch, in order of rank."""
        return self.indices(step).reshape(self.parts, self.world, -1)[:, self.rank].flatten()

    def __getitem__(self, step: int) -> Batch:
        epoch, v, own = step // self.per_epoch, self.views, self.own(step)
        large = np.empty((v.global_crops, len(own), v.size, v.size, 3), np.uint8)
        small = np.empty((v.local_crops, len(own), v.local_size, v.local_size, 3), np.uint8)
        for place, index in enumerate(own.tolist()):
            make_views(self.images[index], v, self.seed, epoch, index, large[:, place], small[:, place])
        sizes = [large, small] if v.local_crops else [large]
        return Batch([torch.from_numpy(crops) for crops in sizes], dict(self.images.bad))


def check_batch(config: Config, images: int) -> None:
    """Refuse a batch that is larger than the set of training images."""
    if images < config.optim.batch:
        raise UsageError(
            f"optim.batch={config.optim.batch} is above the {images} training images; take optim.batch={images} or less"
        )


def check_processes(config: Config, processes: int) -> None:
    """Refuse a batch that several processes can't share evenly, or of which each would get a single image."""
    batch, parts = config.optim.batch, config.optim.accumulate
    asked = f"optim.batch={batch}" + (f" in {parts} micro-batches" if parts > 1 else "")
    own, left = divmod(batch // parts, processes)
    if left:
        raise UsageError(
            f"{asked} can't be shared evenly by {processes} processes: take a multiple of {parts * processes}"
        )
    if own < 2:
        raise UsageError(f"{asked} over {processes} processes leaves {own} image a process; BatchNorm needs 2")


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(count)


def loader(batches: Dataset, start: int, stop: int, workers: int) -> Iterator[Any]:
    """Yield the batches from step ``start`` to before ``stop``, made in ``workers`` processes or, at 0, in this one."""
    return iter(data_loader(batches, start, stop, workers))


def data_loader(batches: Dataset, start: int, stop: int, workers: int) -> DataLoader:
    """Return what ``loader`` iterates over."""
    return DataLoader(
        batches,
        batch_size=None,  # a batch is made whole in one process, so that nothing small crosses between them
        sampler=range(start, stop),
        num_workers=workers,
        # forked from this process, workers notice when it is killed; from a fork server they would stay for ever
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_as_it_is,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, or every start of a loader would draw from the run's
    )


def _as_it_is(batch: Any) -> Any:
    return batch
