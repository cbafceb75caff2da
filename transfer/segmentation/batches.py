"""Images for mmsegmentation's networks by arithmetic: what a step sees is a function of (seed, step) alone, whichever
process reads it, and whether it was resumed."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from torch.utils.data import Dataset

from smog.distributed import rank, world_size
from smog.errors import UsageError
from transfer.segmentation.data import Pairs
from transfer.segmentation.protocol import Segmentation


class Batches(Dataset):
    """The part of each step's batch that is this process's, through mmsegmentation's own transforms. Images come in a
    new order each epoch, and batches run over its end."""

    def __init__(self, pairs: Pairs, chosen: Segmentation, pipeline: Sequence[dict[str, Any]]) -> None:
        self.pairs, self.seed, self.batch = pairs, chosen.seed, chosen.batch
        self.transforms = Compose(copy.deepcopy(list(pipeline)))  # some transforms build theirs in its place
        self.own, left = divmod(chosen.batch, world_size())
        self.rank = rank()
        if left:
            raise UsageError(
                f"batch={chosen.batch} can't be shared evenly by {world_size()} processes: take a multiple of "
                f"{world_size()}"
            )

    @property
    def per_epoch(self) -> float:
        """Return the steps of an epoch."""
        return len(self.pairs.images) / self.batch

    def __getitem__(self, step: int) -> dict[str, list[Any]]:
        first = step * self.batch + self.rank * self.own
        return pseudo_collate([self.sample(draw) for draw in range(first, first + self.own)])

    def sample(self, draw: int) -> dict[str, Any]:
        """Return draw number ``draw``: {inputs: uint8 [3, h, w] BGR, data_samples}."""
        epoch, place = divmod(draw, len(self.pairs.images))
        index = int(_order(self.seed, epoch, len(self.pairs.images))[place])
        state = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        np.random.seed(state)  # which the transforms draw from, and random
        random.seed(int(state[0]))
        return self.transforms(read(self.pairs, index, ("gt_seg_map",)))


class Tested(Dataset):
    """Images for testing, labels at their own size; each is a batch of one."""

    def __init__(self, pairs: Pairs, pipeline: Sequence[dict[str, Any]]) -> None:
        self.pairs, self.transforms = pairs, Compose(copy.deepcopy(list(pipeline)))

    def __len__(self) -> int:
        return len(self.pairs.images)

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        sample = self.transforms(read(self.pairs, index, ()))
        found = sample["data_samples"]
        for version in found if isinstance(found, list) else [found]:  # several of a multi-scale test
            version.set_metainfo({"number": index})
        return pseudo_collate([sample])


def read(pairs: Pairs, index: int, moved: Sequence[str]) -> dict[str, Any]:
    """Return an image as mmsegmentation's loading steps leave it; the labels are resized and cut with the image where
    ``moved`` names them."""
    pixels, labels = pairs.read(index)
    shape = pixels.shape[:2]
    return {
        "img": np.ascontiguousarray(pixels[:, :, ::-1]),
        "img_path": pairs.images[index].file,
        "img_shape": shape,
        "ori_shape": shape,
        "gt_seg_map": labels,
        "seg_fields": list(moved),
    }


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(count)
