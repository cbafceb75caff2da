"""Which images a fraction of a training set holds."""

from __future__ import annotations

import numpy as np

from smog.errors import UsageError


def drawn(total: int, share: float, seed: int) -> np.ndarray:
    """Return the places of a random share of ``total`` images, ascending, int64: 0 < share <= 1, at least one image.

    The smaller shares of a seed lie within its larger ones. Raises UsageError for another share or a negative seed.
    """
    if not 0 < share <= 1 or seed < 0:
        raise UsageError(f"a fraction is above 0 and at most 1, its seed not negative; not {share} with seed {seed}")
    # raw words, whose stream numpy guarantees: the same images in every numpy
    draws = np.random.Philox(key=seed).random_raw(total)
    return np.sort(np.argsort(draws, kind="stable")[: max(1, round(share * total))])
