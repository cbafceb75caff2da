import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from reports.stats import Measure, _power, decimals, holm, indistinct, paired, pooled_sd, seeds_needed, summarise

EXAMPLES = settings(max_examples=40, deadline=None)  # a deadline fails on a machine that others share
PERCENT = st.integers(0, 100_000).map(lambda number: number / 1000)
CELL = st.dictionaries(st.integers(0, 9), PERCENT, min_size=1)
TWO = st.lists(st.tuples(PERCENT, PERCENT), min_size=2, max_size=8)


@EXAMPLES
@given(st.lists(PERCENT, min_size=2, max_size=8))
def test_summary_is_scipys(values):
    found = summarise(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.sd == pytest.approx(statistics.stdev(values), abs=1e-9)
    if found.low is None:
        assert len(set(values)) == 1
    else:
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-10, abs=1e-10)


def test_one_value_has_no_spread_and_none_has_nothing():
    assert (summarise([3.0]).mean, summarise([3.0]).sd, summarise([3.0]).low) == (3.0, None, None)
    assert (summarise([]).n, summarise([]).mean) == (0, None)


@EXAMPLES
@given(TWO)
def test_paired_is_scipys(pairs):
    cell, other = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    found = paired(cell, other)
    differences = [a - b for a, b in pairs]
    assert found.n == len(pairs)
    assert found.difference == pytest.approx(statistics.fmean(differences), abs=1e-9)
    if found.p is None:
        assert max(differences) - min(differences) < 1e-8
    else:
        oracle = stats.ttest_1samp(differences, 0.0)
        assert found.p == pytest.approx(oracle.pvalue, rel=1e-10, abs=1e-10)
        assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-10, abs=1e-10)
        assert found.sd == pytest.approx(statistics.stdev(differences), rel=1e-10)


@EXAMPLES
@given(CELL)
def test_a_cell_does_not_differ_from_itself(cell):
    found = paired(cell, cell)
    assert (found.n, found.difference, found.low, found.p) == (len(cell), 0, None, None)


@EXAMPLES
@given(TWO, st.randoms())
def test_the_order_of_seeds_changes_nothing(pairs, random):
    cell, other = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    seeds = list(cell)
    random.shuffle(seeds)
    assert paired({seed: cell[seed] for seed in seeds}, other) == paired(cell, other)


@EXAMPLES
@given(TWO)
def test_swapping_the_cells_swaps_the_sign(pairs):
    cell, other = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    there, back = paired(cell, other), paired(other, cell)
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert there.p == pytest.approx(back.p) if there.p is not None else back.p is None


def test_only_common_seeds_count():
    found = paired({0: 1.0, 1: 2.0, 5: 90.0}, {0: 0.5, 1: 1.0, 2: 50.0})
    assert found.n == 2
    assert found.difference == pytest.approx(0.75)
    assert paired({0: 1.0}, {1: 1.0}).difference is None


def test_one_seed_and_equal_differences_have_no_interval():
    assert paired({0: 2.0}, {0: 1.0}).low is None
    shifted = paired({0: 2.1, 1: 3.1, 2: 9.1}, {0: 2.0, 1: 3.0, 2: 9.0})
    assert shifted.difference == pytest.approx(0.1)
    assert (shifted.low, shifted.p) == (None, None)
    assert (paired({0: 2.0}, {0: 1.0}).sd, shifted.sd) == (None, 0.0)


def test_indistinct():
    best = {0: 50.0, 1: 51.0, 2: 52.0}
    assert indistinct(best, best)
    assert indistinct({0: 50.5, 1: 50.0, 2: 52.1}, best)
    assert not indistinct({0: 40.0, 1: 41.5, 2: 42.0}, best)
    assert not indistinct({0: 49.0, 1: 50.0, 2: 51.0}, best)  # lower by 1 at each seed
    assert not indistinct({0: 50.0}, best)  # one seed decides nothing


@settings(EXAMPLES, max_examples=8)  # statsmodels takes a tenth of a second a call
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_is_statsmodels_with_missing_comparisons_in_the_family(p_values):
    found = holm(p_values)
    assert [p is None for p in found] == [p is None for p in p_values]
    if any(p is not None for p in p_values):
        oracle = multipletests([1.0 if p is None else p for p in p_values], method="holm")[1]
        assert [p for p in found if p is not None] == pytest.approx(
            [a for a, p in zip(oracle, p_values, strict=True) if p is not None], rel=1e-10, abs=1e-10
        )


@pytest.mark.parametrize("deviations", [0.02, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_seeds_needed_are_those_of_statsmodels(deviations, power):
    exact = TTestPower().solve_power(effect_size=deviations, alpha=0.05, power=power)
    assert seeds_needed([1.0], deviations, power) == math.ceil(exact)


@pytest.mark.parametrize("n", [2, 3, 6, 34, 1000])
@pytest.mark.parametrize("effect", [0.05, 0.3, 1.0, 3.0])
def test_the_power_behind_them_is_that_of_statsmodels(n, effect):
    """Of its own side: a finding of the wrong sign is none."""
    oracle = TTestPower().power(effect, n, alpha=0.025, alternative="larger")
    assert _power(n, effect) == pytest.approx(oracle, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_intervals_cover_95_percent(n):
    """Of 20,000 made experiments with a known difference; the standard error of the share is 0.15 points."""
    drawn = np.random.default_rng(n).normal(0.7, 1.3, (20_000, n))
    found = [paired(dict(enumerate(sample)), dict.fromkeys(range(n), 0.0)) for sample in drawn]
    covered = sum(one.low <= 0.7 <= one.high for one in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.01)


def test_seeds_needed_are_those_of_the_published_table_and_of_simulation():
    assert seeds_needed([0.5 / 1.5]) == 6  # 5.7
    assert seeds_needed([1.0]) == 34  # effect 0.5 of a standard deviation: Cohen's 33.4
    drawn = np.random.default_rng(0).normal(0.5, 0.5 / 1.5, (2, 40_000, 6))  # so that six seeds are enough
    found = [(stats.ttest_1samp(sample[:, :n], 0.0, axis=1).pvalue < 0.05).mean() for sample in drawn for n in (5, 6)]
    assert max(found[::2]) < 0.8 < min(found[1::2])


def test_seeds_needed_stand_on_the_mean_variance_of_those_that_have_one():
    assert pooled_sd([3.0, None, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert seeds_needed([3.0, None, 4.0]) == seeds_needed([math.sqrt(12.5)])
    assert [pooled_sd([]), seeds_needed([]), seeds_needed([None]), seeds_needed([0.0, 0.0])] == [None] * 4


@pytest.mark.parametrize(("sd", "seeds"), [(1e-12, 2), (1e-3, 2), (0.1, 3), (50.0, 78_491)])
def test_seeds_needed_know_the_ends(sd, seeds):
    assert seeds_needed([sd]) == seeds  # where statsmodels' root finder gives nan or below two


def measure(values, images):
    return Measure("knn", "aaaaaaaa", "top1", dict.fromkeys(range(len(values)), "run"), dict(enumerate(values)), images)


@pytest.mark.parametrize(
    ("values", "images", "expected"),
    [
        ([40.0, 41.0, 42.0], 50_000, 1),  # sd 1.0: two digits
        ([40.0, 45.0, 50.0], 50_000, 0),  # sd 5
        ([40.0, 40.2, 40.4], 50_000, 2),  # sd 0.20
        ([40.0, 40.2, 40.4], 1000, 1),  # the test set knows 0.1
        ([40.0, 40.2, 40.4], 500, 0),  # the test set knows 0.2
        ([40.0], 10_000, 2),  # no error: what the test set allows
        ([40.123], None, 1),  # neither an error nor a test set
        ([], None, 1),
    ],
)
def test_decimals(values, images, expected):
    assert decimals([measure(values, images)]) == expected


@EXAMPLES
@given(st.lists(PERCENT, min_size=2, max_size=5), st.sampled_from([100, 500, 2000, 10_000, 50_000]))
def test_decimals_never_pass_the_test_set(values, images):
    assert 10.0 ** -decimals([measure(values, images)]) >= 100 / images * (1 - 1e-9) or math.isclose(images, 100)
