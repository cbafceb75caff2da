import copy
from collections import deque

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing

from smog import nearest
from smog.grouping import GroupBank

SEEDS = st.integers(0, 2**31)
EPSILON = 1e-12  # everything that is compared with an oracle is in float64


def normal(seed, *shape, unit=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1) if unit else values


def made_bank(seed, groups=5, dim=4, momentum=0.9, cache=16):
    bank = GroupBank(groups, dim, momentum, max(cache, groups)).double()
    bank.groups.copy_(normal(seed, groups, dim, unit=True))
    return bank


def in_blocks(patch, rows):
    """Compare so few rows with the groups at once."""
    patch.setattr(nearest, "CPU_CELLS", 1)
    patch.setattr(nearest, "LEAST_ROWS", rows)


def fill(bank, rows):
    bank.commit(bank.groups, rows)
    return bank


# ---- against lightly ----


@pytest.fixture(scope="module")
def oracle():
    heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is the oracle (extra dev)")
    return heads.SMoGPrototypes


SIZES = {"groups": st.integers(2, 12), "dim": st.integers(2, 8), "rows": st.integers(1, 40)}


@settings(max_examples=60)
@given(seed=SEEDS, momentum=st.floats(0, 1), length=st.sampled_from([None, 1e-2, 1.0, 30.0]), **SIZES)
def test_assignment_update_and_logits_are_lightlys(oracle, seed, groups, dim, rows, momentum, length):
    bank = made_bank(seed, groups, dim, momentum)
    z, q = normal(seed + 1, rows, dim, unit=length is None), normal(seed + 2, rows, dim)
    if length is not None:  # features as they come, and groups off the sphere
        z = z * length
        bank.groups.mul_(1 + normal(seed + 3, groups, 1).abs())
    theirs = oracle(bank.groups.clone(), beta=momentum)
    updated = bank.updated(z)
    assert torch.equal(bank.assign(z), theirs.assign_groups(z))
    torch.testing.assert_close(updated, theirs.get_updated_group_features(z), rtol=EPSILON, atol=EPSILON)
    for temperature in (0.07, 1.0):
        expected = theirs(q, updated, temperature=temperature)
        torch.testing.assert_close(bank.logits(q, updated, temperature), expected, rtol=1e-10, atol=1e-10)


def test_the_nearest_group_is_found_in_chunks_as_at_once(monkeypatch):
    bank, z = made_bank(0, groups=7), normal(1, 23, 4)
    whole = bank.assign(z)
    in_blocks(monkeypatch, rows=5)
    assert torch.equal(bank.assign(z), whole)
    assert whole.dtype == torch.int64


def test_the_nearest_is_the_largest_cosine_not_the_largest_product():
    bank = made_bank(0, groups=2, dim=2)
    bank.groups.copy_(torch.tensor([[1.0, 0.0], [30.0, 30.0]]))
    assert bank.assign(torch.tensor([[1.0, 0.1]], dtype=torch.float64)).tolist() == [0]


# ---- the update and its gradient ----


@settings(max_examples=25)
@given(seed=SEEDS, momentum=st.floats(0, 1), **SIZES)
def test_groups_without_features_stay_to_the_last_bit(seed, groups, dim, rows, momentum):
    bank = made_bank(seed, groups, dim, momentum)
    z = normal(seed + 1, rows, dim)
    idle = [group for group in range(groups) if group not in bank.assign(z).tolist()]
    assert torch.equal(bank.updated(z)[idle], bank.groups[idle])


def test_an_update_alone_changes_nothing():
    bank = made_bank(0)
    before = copy.deepcopy(bank.state_dict())
    bank.updated(normal(1, 9, 4))
    bank.assign(normal(1, 9, 4))
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_the_gradient_of_the_update_is_that_of_finite_differences(momentum):
    bank, z = made_bank(0, momentum=momentum), normal(1, 12, 4).requires_grad_()
    torch.autograd.gradcheck(bank.updated, [z])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_gradient_of_a_loss_through_the_update_is_that_of_finite_differences(momentum):
    bank, z, q = made_bank(0, momentum=momentum), normal(1, 12, 4).requires_grad_(), normal(2, 12, 4).requires_grad_()
    target = torch.arange(12) % 5
    torch.autograd.gradcheck(lambda z, q: F.cross_entropy(bank.logits(q, bank.updated(z), 0.5), target), [z, q])


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.99, 1.0])
def test_a_feature_gets_its_groups_gradient_times_one_minus_momentum_over_the_count(momentum):
    bank, z, upstream = made_bank(0, momentum=momentum), normal(1, 12, 4).requires_grad_(), normal(3, 5, 4)
    (bank.updated(z) * upstream).sum().backward()
    own = bank.assign(z)
    expected = (1 - momentum) * upstream[own] / own.bincount()[own][:, None]
    torch.testing.assert_close(z.grad, expected, rtol=EPSILON, atol=EPSILON)
    assert not bank.groups.requires_grad


# ---- the cache ----


@settings(max_examples=60)
@given(pushes=st.lists(st.integers(1, 20), min_size=1, max_size=8), size=st.integers(2, 9))
def test_the_cache_holds_the_last_features_pushed(pushes, size):
    bank, expected = GroupBank(2, 3, 0.9, size), deque(maxlen=size)
    numbers = iter(range(10_000))
    for count in pushes:
        rows = [float(next(numbers)) for _ in range(count)]
        fill(bank, torch.tensor(rows)[:, None].expand(-1, 3))
        expected.extend(rows)
        assert sorted(bank.cached()[:, 0].tolist()) == list(expected)
        assert torch.equal(bank.cached()[:, 0], bank.cached()[:, 2])


def test_pushed_counts_every_feature_also_those_that_found_no_place():
    bank = GroupBank(2, 3, 0.9, cache_size=8)
    for rows in (5, 20, 3):
        fill(bank, torch.ones(rows, 3))
    assert int(bank.pushed) == 28


def test_committed_groups_are_kept_without_their_gradient():
    bank, z = made_bank(0), normal(1, 12, 4).requires_grad_()
    updated = bank.updated(z)
    bank.commit(updated, z)
    assert torch.equal(bank.groups, updated)
    assert torch.equal(bank.cached(), z)
    assert not bank.groups.requires_grad
    assert not bank.cache.requires_grad
    updated.sum().backward()  # committing in between does not disturb the graph


def test_a_state_dict_holds_all_there_is():
    bank, fresh = fill(made_bank(0), normal(1, 21, 4)), made_bank(9)
    fresh.load_state_dict(copy.deepcopy(bank.state_dict()))
    for one in (bank, fresh):
        fill(one, normal(2, 3, 4))
        one.regroup(torch.Generator().manual_seed(5))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert bank.usage() == fresh.usage()
    assert not list(bank.parameters())


# ---- regrouping ----


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


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(2, 30), more=st.integers(0, 60))
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


# ---- usage ----


def naive_usage(groups, features):
    groups, features = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (groups, features))
    counts = np.zeros(len(groups))
    for feature in features:
        counts[np.argmax([group @ feature for group in groups])] += 1
    share = counts[counts > 0] / len(features)
    return {
        "entropy": -sum(p * np.log(p) for p in share) / np.log(len(groups)),
        "dead": sum(count == 0 for count in counts),
        "duplicates": sum(any(groups[i] @ groups[j] > 0.99 for j in range(i)) for i in range(len(groups))),
        "largest": share.max(),
    }


@pytest.mark.parametrize("block", [8192, 3])
@settings(max_examples=30)
@given(
    seed=SEEDS, copies=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), rows=st.integers(1, 40)
)
def test_usage_is_what_a_loop_counts(block, seed, copies, rows):
    bank = made_bank(seed, groups=10, cache=24)
    for to, origin in copies:  # duplicates in all but length, which also leave groups dead
        bank.groups[to] = (1 + to) * bank.groups[origin] + 1e-3 * normal(seed + to, 4)
    fill(bank, normal(seed + 1, rows, 4) + 1)
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, block)
        assert bank.usage() == pytest.approx(naive_usage(bank.groups.numpy(), bank.cached().numpy()), abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, {"entropy": 0.0, "dead": 0.0, "duplicates": 0.0, "largest": 0.0}),
        (4, {"entropy": 1.0, "dead": 0.0, "duplicates": 0.0, "largest": 0.25}),
        (1, {"entropy": 0.0, "dead": 3.0, "duplicates": 0.0, "largest": 1.0}),
    ],
)
def test_usage_of_known_cases(rows, expected):
    bank = GroupBank(4, 4, 0.9, 8)
    bank.groups.copy_(torch.eye(4))
    fill(bank, torch.eye(4)[:rows])
    assert bank.usage() == pytest.approx(expected)


# ---- wrong use ----


@pytest.mark.parametrize("momentum", [1.1, -0.1, float("nan")])
def test_a_momentum_outside_of_0_to_1_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum}"):
        GroupBank(4, 4, momentum, 8)


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_of_0_or_less_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        GroupBank(4, 4).logits(torch.ones(2, 4), torch.ones(4, 4), temperature)


def test_more_groups_than_the_cache_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"num_groups=9 .*cache_size=8"):
        GroupBank(9, 4, 0.9, 8)


# ---- two processes ----

STEPS, BATCH = 4, 24  # 96 features through a cache of 50


def work(rank, world):
    """Some steps of training with this rank's part of every batch; return all that must not depend on the ranks."""
    bank = made_bank(0, groups=6, dim=5, momentum=0.7, cache=50)
    weight = normal(1, 7, 5).requires_grad_()
    found = {}
    for step in range(STEPS):
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        x, q = normal(10 + step, BATCH, 7)[mine], normal(20 + step, BATCH, 5)[mine]
        z = F.normalize(x @ weight, dim=1)
        groups = bank.updated(z)
        loss = F.cross_entropy(bank.logits(q @ weight[:5, :5], groups, 0.2), torch.arange(BATCH)[mine] % 6)
        (gradient,) = torch.autograd.grad(loss, weight)
        bank.commit(groups, z)
        if world > 1:  # what DDP does
            dist.all_reduce(gradient)
        found |= {f"groups {step}": groups.detach(), f"gradient {step}": gradient / world}
        with torch.no_grad():
            weight -= 0.1 * gradient / world
    found |= {f"{name} at the end": value.clone() for name, value in bank.state_dict().items()}
    bank.regroup(torch.Generator().manual_seed(3))
    usage = torch.tensor(list(bank.usage().values()), dtype=torch.float64)
    return found | {"regrouped": bank.groups, "usage": usage}


def in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(work(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    """What one process finds with whole batches, and each of two with half of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        multiprocessing.spawn(in_process, (str(folder),), nprocs=2)
    return work(0, 1), torch.load(folder / "0.pt"), torch.load(folder / "1.pt")


@pytest.mark.parametrize(
    "names", [["groups 0", "groups 3"], ["gradient 0", "gradient 3"], ["cache at the end", "pushed at the end"],
              ["groups at the end"], ["regrouped"], ["usage"]], ids=lambda names: names[0]
)  # fmt: skip
def test_two_processes_with_half_the_batch_give_what_one_gives(by_ranks, names):
    alone, first, second = by_ranks
    for name in names:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(first[name], second[name])
