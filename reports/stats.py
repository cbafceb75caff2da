"""Paired statistics over seeds (design 7): mean, standard deviation, t intervals, Holm. Nothing is resampled."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

LEVEL = 0.95
NO_SPREAD = 1e-9  # percent points: what is left of equal numbers after float subtraction


@dataclass(frozen=True)
class Summary:
    """The values of one cell: ``sd`` has ddof 1 and is None at n = 1; low and high are the t interval of the mean."""

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Paired:
    """A cell minus another one at the same seeds: n common seeds, paired t interval, p of the paired t-test.

    The interval and p are None below two common seeds, and where all differences are equal: the t-test is
    undefined there, and an interval of width 0 would claim a certainty that a few seeds cannot give.
    """

    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean, standard deviation and the 95 % t interval of the mean."""
    if not values:
        return Summary(0)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Summary(1, mean)
    if _constant(values):
        return Summary(len(values), mean, 0.0)
    low, high, _ = _t_test(values)
    return Summary(len(values), mean, statistics.stdev(values), low, high)


@dataclass(frozen=True)
class Measure:
    """One metric of one cell: the planned run of every seed, and the value of every seed that has a result."""

    task: str
    protocol: str
    metric: str
    runs: dict[int, str]
    values: dict[int, float]
    images: int | None

    @cached_property
    def summary(self) -> Summary:
        """Mean, standard deviation and t interval over the seeds that have a result."""
        return summarise([self.values[seed] for seed in sorted(self.values)])

    @property
    def missing(self) -> int:
        """How many planned results the store lacks."""
        return len(self.runs) - len(self.values)


def paired(cell: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """Return the paired difference of two cells, each a mapping from seed to value, over their common seeds."""
    differences = [cell[seed] - other[seed] for seed in sorted(cell.keys() & other.keys())]
    if not differences:
        return Paired(0)
    mean = statistics.fmean(differences)
    if len(differences) == 1 or _constant(differences):
        return Paired(len(differences), mean)
    return Paired(len(differences), mean, *_t_test(differences))


def indistinct(cell: Mapping[int, float], best: Mapping[int, float]) -> bool:
    """Tell whether the paired interval of a cell to the best one contains 0, or both are equal at n > 1."""
    pair = paired(cell, best)
    if pair.low is not None and pair.high is not None:
        return pair.low <= 0 <= pair.high
    return pair.n > 1 and abs(pair.difference or 0) <= NO_SPREAD


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p values within one family.

    A comparison without a p (a missing cell) stays in the family as p = 1: a grid that is half done must
    not correct for less than the grid that was declared.
    """
    if not any(p is not None for p in p_values):
        return [None for _ in p_values]
    from statsmodels.stats.multitest import multipletests  # here, since it brings pandas with it

    adjusted = multipletests([1.0 if p is None else p for p in p_values], method="holm")[1]
    return [None if p is None else float(value) for p, value in zip(p_values, adjusted, strict=True)]


def decimals(measures: Iterable[Measure]) -> int:
    """Return how many decimals a column may show: sd to one digit (two where it starts with 1 or 2), and the test set.

    One image of n is 100 / n percent points, so that n = 1000 allows one decimal, and n = 500 none.
    """
    measures = list(measures)
    variances = [one.summary.sd**2 for one in measures if one.summary.sd]
    allowed = [3]
    if variances:
        allowed.append(math.ceil(math.log10(3 / math.sqrt(sum(variances) / len(variances)))))
    if images := [one.images for one in measures if one.images and one.metric.startswith("top")]:
        allowed.append(math.floor(math.log10(min(images) / 100)))
    return max(0, min(allowed))


def _constant(values: Sequence[float]) -> bool:
    return math.isclose(max(values), min(values), rel_tol=1e-12, abs_tol=NO_SPREAD)


def _t_test(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the t interval of the mean (low, high) and p of the mean being 0."""
    from scipy import stats  # here, because a second of import is for those who compute

    test = stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)
