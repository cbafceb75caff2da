import copy
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_groups import SEEDS, fill, in_blocks, made_bank, normal

from smog import grouping
from smog.grouping import GroupBank

EPSILON = 1e-12  # everything that is compared with an oracle is in float64


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
        fill(bank, torch.tensor(rows)[:, None].expand(-1, 3), torch.tensor(rows).long() % 2)
        expected.extend(rows)
        assert sorted(bank.cached()[:, 0].tolist()) == list(expected)
        assert torch.equal(bank.cached_own[: len(expected)], bank.cached()[:, 0].long() % 2)
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


# ---- only some of the groups ----


@pytest.mark.parametrize("active", [2, 5])
def test_only_the_active_groups_exist(active):
    """A bank with idle groups behaves as a smaller bank; what is idle stays to the last bit."""
    large, small = made_bank(0, groups=9), made_bank(0, groups=active)
    large.active = active
    small.groups.copy_(large.groups[:active])
    idle = large.groups[active:].clone()
    z = normal(1, 16, 4)
    for one in (large, small):
        fill(one, z[:5])
        one.commit(one.updated(z), z)
    for call in (lambda b: b.assign(z), lambda b: b.balanced(z), lambda b: b.updated(z), GroupBank.usage):
        assert_equal(call(large), call(small))
    for one in (large, small):
        one.regroup(torch.Generator().manual_seed(0))
    assert torch.equal(large.groups[:active], small.groups)
    assert torch.equal(large.cached_own, small.cached_own)
    assert torch.equal(large.groups[active:], idle)


def assert_equal(one, other):
    assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_groups_once_idle_come_in_with_a_regroup():
    bank = made_bank(0, groups=9, cache=16)
    bank.active = 2
    fill(bank, normal(1, 16, 4))
    bank.active = 9
    bank.regroup(torch.Generator().manual_seed(0))
    assert bank.usage()["dead"] == 0
    assert "active" not in bank.state_dict()


# ---- what the caller gives ----


def test_an_assignment_that_is_given_is_taken():
    bank, z, own = made_bank(0), normal(1, 12, 4), torch.arange(12) % 2
    assert torch.equal(bank.updated(z, bank.assign(z)), bank.updated(z))
    moved = bank.updated(z, own)
    expected = [0.9 * bank.groups[k] + 0.1 * z[own == k].mean(dim=0) for k in (0, 1)]
    torch.testing.assert_close(moved[:2], torch.stack(expected), rtol=EPSILON, atol=EPSILON)
    assert torch.equal(moved[2:], bank.groups[2:])
    bank.commit(moved, z, own)
    assert bank.cached_own[:12].tolist() == own.tolist()


def test_groups_that_are_given_are_those_compared_with():
    bank, z, groups = made_bank(0), normal(1, 12, 4), 3 * normal(2, 7, 4)
    other = made_bank(0, groups=7)
    other.groups.copy_(groups)
    assert torch.equal(bank.assign(z, groups), other.assign(z))
    assert torch.equal(bank.balanced(z, groups), other.balanced(z))


def test_views_and_images_may_stay_apart():
    bank, z, own = made_bank(0), normal(1, 3, 6, 4), torch.arange(18).view(3, 6) % 5
    flat = copy.deepcopy(bank)
    assert torch.equal(bank.assign(z).flatten(), flat.assign(z.flatten(0, 1)))
    assert torch.equal(bank.balanced(z).flatten(), flat.balanced(z.flatten(0, 1)))
    assert torch.equal(bank.updated(z, own), flat.updated(z.flatten(0, 1), own.flatten()))
    bank.commit(bank.updated(z), z, own)
    flat.commit(flat.updated(z.flatten(0, 1)), z.flatten(0, 1), own.flatten())
    for name, value in bank.state_dict().items():
        assert torch.equal(value, flat.state_dict()[name]), name


# ---- the start ----


@pytest.mark.parametrize("start", ["sphere", "orthant", "batch"])
def test_groups_start_as_unit_vectors(start):
    groups = GroupBank(500, 8, start=start).groups
    torch.testing.assert_close(groups.norm(dim=1), torch.ones(500))
    assert bool((groups >= 0).all()) is (start == "orthant")


@pytest.mark.parametrize(("active", "rows"), [(5, 12), (5, 3), (2, 12)])
def test_groups_may_start_from_the_first_features(active, rows):
    bank, z = made_bank(0), normal(1, 2, rows // 2 + 1, 4)
    bank.active, before = active, bank.groups.clone()
    bank.start_from(z)
    taken = min(active, 2 * (rows // 2 + 1))
    assert torch.equal(bank.groups[:taken], z.flatten(0, 1)[:taken])
    assert torch.equal(bank.groups[taken:], before[taken:])
    assert not int(bank.pushed)


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


def test_usage_tells_where_features_were_when_they_were_pushed():
    bank = GroupBank(4, 4, 0.9, 8)
    fill(bank, torch.eye(4)[[0, 1, 1]], own=torch.tensor([2, 3, 3]))
    expected = {"entropy": pytest.approx(0.6365 / 1.3863, abs=1e-4), "dead": 2.0, "largest": pytest.approx(2 / 3)}
    assert bank.usage().items() >= expected.items()
    bank.groups.neg_()  # groups that move on take nothing with them
    assert bank.usage().items() >= expected.items()
    bank.active = 3
    assert bank.usage().items() >= {"entropy": 0.0, "dead": 2.0, "largest": 1.0}.items()


def test_of_many_groups_duplicates_are_estimated(monkeypatch):
    bank = made_bank(0, groups=600, dim=24)
    bank.groups[300:] = bank.groups[:300]
    fill(bank, bank.groups[:4].clone())
    assert bank.usage()["duplicates"] == 300
    monkeypatch.setattr(grouping, "SAMPLED", 64)
    assert bank.usage()["duplicates"] == pytest.approx(300, abs=600 / 64)
    bank.groups[:] = normal(1, 600, 24)
    assert bank.usage()["duplicates"] == 0


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


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"start='sphere2'.*sphere, batch, orthant"):
        GroupBank(4, 4, start="sphere2")
