"""Paired statistics over seeds (design 7): mean, standard deviation, t intervals, Holm. Nothing is resampled."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

LEVEL = 0.95
EFFECT, POWER = 0.5, 0.8  # what a grid should be able to see: half a percent point, four times out of five
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

    ``sd`` is that of the differences, None below two common seeds.
    The interval and p are None below two common seeds, and where all differences are equal: the t-test is
    undefined there, and an interval of width 0 would claim a certainty that a few seeds cannot give.
    """

    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    sd: float | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean, standard deviation and the 95 % t interval of the mean."""
    if not values:
        return Summary(0)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Summary(1, mean)
    if _constant(values):
        return Summary(len(values), mean, 0.0)
    sd = _deviation(values, mean)
    low, high, _ = _t_test(len(values), mean, sd)
    return Summary(len(values), mean, sd, low, high)


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


def counted_results(measures: Iterable[Measure]) -> tuple[int, int]:
    """Return how many results were planned for some measures, several of one result once, and how many are missing: not
    there, or without one of the metrics."""
    planned: set[tuple[str, ...]] = set()
    lacking: set[tuple[str, ...]] = set()
    for one in measures:
        for seed, run in one.runs.items():
            planned.add((run, one.task, one.protocol))
            if seed not in one.values:
                lacking.add((run, one.task, one.protocol))
    return len(planned), len(lacking)


def paired(cell: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """Return the paired difference of two cells, each a mapping from seed to value, over their common seeds."""
    differences = [cell[seed] - other[seed] for seed in sorted(cell.keys() & other.keys())]
    if not differences:
        return Paired(0)
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Paired(1, mean)
    if _constant(differences):
        return Paired(len(differences), mean, sd=0.0)
    sd = _deviation(differences, mean)
    return Paired(len(differences), mean, *_t_test(len(differences), mean, sd), sd)


def indistinct(cell: Mapping[int, float], best: Mapping[int, float]) -> bool:
    """Tell whether the paired interval of a cell to the best one contains 0, or both are equal at n > 1."""
    pair = paired(cell, best)
    if pair.low is not None and pair.high is not None:
        return pair.low <= 0 <= pair.high
    return pair.n > 1 and abs(pair.difference or 0) <= NO_SPREAD


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p values within one family.

    A comparison without a p (a missing cell) stays in the family as p = 1: a grid that is half done must
    not correct for less than the grid that was declared. statsmodels computes the same (the tests hold it to that),
    but brings pandas and scipy.stats with it, most of a second.
    """
    family = [1.0 if p is None else p for p in p_values]
    adjusted, highest = dict.fromkeys(range(len(family)), 0.0), 0.0
    for rank, place in enumerate(sorted(range(len(family)), key=family.__getitem__)):
        highest = adjusted[place] = max(highest, min(1.0, family[place] * (len(family) - rank)))
    return [None if p is None else adjusted[place] for place, p in enumerate(p_values)]


def pooled_sd(sds: Iterable[float | None]) -> float | None:
    """Return the root of the mean variance of those comparisons that have a spread (None: fewer than two seeds)."""
    variances = [sd**2 for sd in sds if sd is not None]
    return math.sqrt(statistics.fmean(variances)) if variances else None


def seeds_needed(sds: Iterable[float | None], effect: float = EFFECT, power: float = POWER) -> int | None:
    """Return with how many seeds the paired t-test at 5 % finds a difference of ``effect`` with probability ``power``.

    ``sds`` are those of the paired differences, one a comparison. None where no comparison has a spread.
    """
    sd = pooled_sd(sds)
    if not sd:
        return None
    # Beyond 100 standard deviations scipy has no number, and two seeds are enough for long.
    standardised = min(effect / sd, 100.0)
    many = 2
    while _power(many, standardised) < power:
        many *= 2
    return bisect.bisect_left(range(many), power, lo=2, key=lambda n: _power(n, standardised))


def _power(n: int, effect: float) -> float:
    """Return the power of the paired t-test for an effect in standard deviations.

    Only the effect's own side counts: a finding of the wrong sign is none, and at a power of 80 % rarer than 1e-5.
    """
    from scipy.special import nctdtr

    return 1 - float(nctdtr(n - 1, effect * math.sqrt(n), _critical(n - 1)))


def decimals(measures: Iterable[Measure]) -> int:
    """Return how many decimals a column may show: sd to one digit (two where it starts with 1 or 2), and the test set.

    One image of n is 100 / n percent points, so that n = 1000 allows one decimal, and n = 500 none. Where neither
    says anything, one seed of an AP, there is one decimal.
    """
    measures = list(measures)
    variances = [one.summary.sd**2 for one in measures if one.summary.sd]
    allowed = [3]
    if variances:
        allowed.append(math.ceil(math.log10(3 / math.sqrt(sum(variances) / len(variances)))))
    if images := [one.images for one in measures if one.images and one.metric.startswith("top")]:
        allowed.append(math.floor(math.log10(min(images) / 100)))
    return max(0, min(allowed)) if len(allowed) > 1 else 1


def _constant(values: Sequence[float]) -> bool:
    return math.isclose(max(values), min(values), rel_tol=1e-12, abs_tol=NO_SPREAD)


def _deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _t_test(n: int, mean: float, sd: float) -> tuple[float, float, float]:
    """Return the t interval of the mean (low, high) and p of the mean being 0."""
    from scipy.special import stdtr  # scipy.stats computes with the same functions, but is slow to import and to call

    error = sd / math.sqrt(n)
    half = _critical(n - 1) * error
    return mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean / error)))


@cache
def _critical(df: int) -> float:
    """Return the t value beyond which lies 5 %, on both sides together."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))
