"""Spherical k-means, alone and as the bank's regroup."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_groups import SEEDS, fill, made_bank, normal

from smog import kmeans
from smog.grouping import GroupBank
from smog.kmeans import spherical_kmeans


def cosine_to_own(features, centroids):
    features, centroids = (F.normalize(torch.as_tensor(x), dim=1) for x in (features, centroids))
    return float((features @ centroids.T).max(dim=1).values.mean())


def regrouped(features, groups, seed=0):
    bank = GroupBank(groups, features.shape[1], 0.9, len(features)).double()
    fill(bank, features)
    bank.regroup(torch.Generator().manual_seed(seed))
    return bank


def even(seed):
    return normal(seed, 600, 16)


def stretched(seed):
    return normal(seed, 800, 12) * torch.logspace(0, -1, 12, dtype=torch.float64) * 3


def clustered(seed):
    return (normal(seed, 20, 16, unit=True)[torch.arange(1000) % 20] + 0.15 * normal(seed + 1, 1000, 16)) * 5


@pytest.mark.parametrize("groups", [8, 20])
@pytest.mark.parametrize("made", [even, stretched, clustered])
def test_regrouping_is_within_two_percent_of_scikit_learns_kmeans(made, groups):
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is the oracle (extra dev)")
    ours, theirs = [], []
    for seed in range(5):
        features = made(seed)
        unit = F.normalize(features, dim=1).numpy()
        ours.append(cosine_to_own(features, regrouped(features, groups, seed).groups))
        fitted = cluster.KMeans(groups, n_init=1, random_state=seed).fit(unit)
        theirs.append(cosine_to_own(features, fitted.cluster_centers_))
    assert np.mean(ours) > 0.98 * np.mean(theirs)
    assert 1 - np.mean(ours) < 1.02 * (1 - np.mean(theirs))


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(2, 40), more=st.integers(0, 90))
def test_no_group_is_empty_after_regrouping(seed, groups, more):
    bank = regrouped(normal(seed, groups + more, 6), groups, seed)
    assert bank.usage()["dead"] == 0


def test_a_few_odd_features_among_equal_ones_get_groups_of_their_own():
    features = torch.cat([normal(0, 1, 8) + 1e-3 * normal(1, 200, 8), normal(2, 5, 8)])
    for seed in range(5):
        assert regrouped(features, 6, seed).usage()["dead"] == 0


def test_regrouped_groups_are_unit_vectors():
    torch.testing.assert_close(regrouped(even(0), 9).groups.norm(dim=1), torch.ones(9).double())


@pytest.mark.parametrize("seed", range(5))
def test_with_fewer_different_features_than_groups_each_is_still_a_group(seed):
    features = normal(0, 3, 8).repeat_interleave(torch.tensor([40, 9, 1]), dim=0)
    groups = regrouped(features, 6, seed).groups
    torch.testing.assert_close(groups.norm(dim=1), torch.ones(6).double())
    assert cosine_to_own(features, groups) == pytest.approx(1)


def test_regrouping_depends_on_the_generators_seed_alone():
    features, state = even(0), torch.get_rng_state()
    first, second, other = (regrouped(features, 9, seed).groups for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    regroup_only = fill(made_bank(0), normal(1, 16, 4))
    before = torch.get_rng_state()
    regroup_only.regroup(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("cached", "moves"), [(0, False), (4, False), (5, True)])
def test_regrouping_waits_for_as_many_features_as_groups(cached, moves):
    bank = made_bank(0, groups=5)
    fill(bank, normal(1, cached, 4))
    before = bank.groups.clone()
    bank.regroup(torch.Generator().manual_seed(0))
    assert torch.equal(bank.groups, before) is not moves


# ---- the parts ----


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sample", [8192, 20])
@settings(max_examples=30)
@given(seed=SEEDS, clusters=st.integers(1, 40), more=st.integers(0, 400), kinds=st.integers(1, 500))
def test_clusters_are_the_means_of_their_features_and_none_is_empty(sample, seed, clusters, more, kinds):
    """Also where the features are few different ones, down to a single one, and where it starts on some of them."""
    features = normal(seed, kinds, 6)[torch.arange(clusters + more) % kinds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "LEAST_SAMPLE", sample)
        centroids, own = spherical_kmeans(features, clusters, generator(seed))
    assert own.bincount(minlength=clusters).min() > 0
    unit = F.normalize(features, dim=1)
    means = torch.stack([unit[own == cluster].sum(dim=0) for cluster in range(clusters)])
    torch.testing.assert_close(centroids, F.normalize(means, dim=1), rtol=1e-6, atol=1e-6)


@settings(max_examples=30)
@given(seed=SEEDS, rows=st.integers(1, 80), clusters=st.integers(1, 12), used=st.integers(1, 12))
def test_empty_clusters_take_what_is_represented_worst_and_empty_no_other(seed, rows, clusters, used):
    features, centroids = normal(seed, rows + clusters, 4, unit=True), normal(seed + 1, clusters, 4, unit=True)
    own = torch.randint(min(used, clusters), (rows + clusters,), generator=generator(seed))
    empty = set(range(clusters)) - set(own.tolist())
    filled = kmeans._without_empty(features, own, centroids)
    cosine = (features * centroids[own]).sum(dim=1)
    moved = (filled != own).nonzero().flatten()
    assert len(moved) == len(empty)
    assert set(filled.tolist()) == set(range(clusters))
    stayed = [i for i in range(len(own)) if filled[i] == own[i]]
    best = {k: max((i for i in range(len(own)) if own[i] == k), key=lambda i: cosine[i]) for k in set(own.tolist())}
    for i in moved.tolist():
        assert all(cosine[i] <= cosine[j] for j in stayed if best[int(own[j])] != j)


@settings(max_examples=20)
@given(seed=SEEDS, clusters=st.integers(1, 90), more=st.integers(0, 200), kinds=st.integers(1, 100))
def test_no_row_is_a_start_twice(seed, clusters, more, kinds):
    features = normal(seed, kinds, 6, unit=True)[torch.arange(clusters + more) % kinds]
    rows, far = kmeans._spread(features, clusters, generator(seed))
    assert len(set(rows.tolist())) == clusters
    expected = 1 - (features @ features[rows].T).max(dim=1).values
    expected[rows] = 0
    torch.testing.assert_close(far, expected, rtol=0, atol=1e-11)


def test_rows_are_drawn_in_proportion_to_their_distance():
    far, draws = torch.tensor([0.0, 1.0, 0.0, 2.0, 5.0, 0.0], dtype=torch.float64), generator()
    drawn = torch.cat([kmeans._draws(far, 1, draws) for _ in range(4000)])
    np.testing.assert_allclose(drawn.bincount(minlength=6) / 4000, far / 8, atol=0.02)


def test_features_that_are_no_numbers_do_not_hold_it_up():
    features = normal(0, 60, 6)
    features[7] = float("nan")
    spherical_kmeans(features, 9, generator())


# ---- in half the bits ----


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="bf16 is used where the CPU multiplies it fast")
@pytest.mark.parametrize("made", [even, stretched, clustered])
def test_half_the_bits_lose_next_to_nothing(made, monkeypatch):
    features = made(0).float()
    low = spherical_kmeans(features, 30, generator())[0]
    monkeypatch.setattr(kmeans, "APART", 2)  # as if the clusters were too near one another
    high = spherical_kmeans(features, 30, generator())[0]
    assert not torch.equal(low, high)
    assert 1 - cosine_to_own(features, low) < 1.02 * (1 - cosine_to_own(features, high))


def test_clusters_that_are_too_near_for_it_are_told_apart_in_full():
    features = F.normalize(normal(0, 1, 16) + 0.02 * normal(1, 2000, 16), dim=1).float()
    far = kmeans._spread(features, 30, generator())[1]
    assert kmeans._type_of_products(features, far) == torch.float32
    assert kmeans._type_of_products(features.double(), 1 + far.double()) == torch.float64
