import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_groups import SEEDS, in_blocks, normal

from smog import nearest
from smog.grouping import GroupBank
from smog.losses import group_cross_entropy


def made(seed, rows, groups, targets, dim=6, length=1.0):
    """q, groups and a target that is missing for a third of the pairs, each of which may come twice."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(groups, (rows, targets) if targets else (rows,), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = -100
    target.view(-1)[0] = 0  # one there always is
    q, bank = normal(seed + 1, rows, dim) * length, normal(seed + 2, groups, dim) / length
    return q.requires_grad_(), bank.requires_grad_(), target


def whole(q, groups, target, temperature):
    """PyTorch's own, with all logits in memory."""
    logits = F.normalize(q, dim=1) @ F.normalize(groups, dim=1).T / temperature
    if target.dim() == 2:
        logits, target = logits.repeat_interleave(target.shape[1], dim=0), target.flatten()
    return F.cross_entropy(logits, target)


@settings(max_examples=60)
@given(
    seed=SEEDS,
    rows=st.integers(1, 30),
    groups=st.integers(1, 20),
    targets=st.integers(0, 4),
    temperature=st.sampled_from([1e-3, 0.02, 0.07, 0.1, 1.0, 20.0]),
    length=st.sampled_from([1e-3, 1.0, 1e3]),
    block=st.sampled_from([2, 7, 100]),
)
def test_loss_and_gradients_are_those_of_pytorchs_cross_entropy(
    seed, rows, groups, targets, temperature, length, block
):
    q, bank, target = made(seed, rows, groups, targets, length=length)
    expected = whole(q, bank, target, temperature)
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, block)
        ours = group_cross_entropy(q, bank, target, temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for found, other in zip(*(torch.autograd.grad(3 * x, [q, bank]) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-8, atol=1e-12 / temperature / min(length, 1 / length))


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_the_gradient_is_that_of_finite_differences(targets, temperature):
    q, groups, target = made(3, 9, 5, targets)
    torch.autograd.gradcheck(lambda q, groups: group_cross_entropy(q, groups, target, temperature), [q, groups])


def test_the_gradient_goes_on_to_the_features_that_moved_the_groups():
    bank = GroupBank(5, 4, 0.5, 8).double()
    z, q, target = normal(0, 12, 4).requires_grad_(), normal(1, 12, 4).requires_grad_(), torch.arange(12) % 5
    torch.autograd.gradcheck(lambda z, q: bank.loss(q, bank.updated(z), target, 0.5), [z, q])


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 0.0239, 0.0242, 0.1])
def test_in_single_precision_no_power_overflows(temperature):
    q, groups, target = made(5, 40, 30, 2)
    q.data[0], groups.data[0] = 1, 1  # as near as can be
    expected = whole(q, groups, target, temperature)
    ours = group_cross_entropy(q.float(), groups.float(), target, temperature)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)
    for found, other in zip(*(torch.autograd.grad(x, [q, groups]) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradient_goes_only_where_it_is_wanted(needs):
    q, groups, target = made(1, 8, 5, 0)
    wanted = [
        x for x, need in zip((q.requires_grad_(needs[0]), groups.requires_grad_(needs[1])), needs, strict=True) if need
    ]
    ours, expected = (loss(q, groups, target, 0.1) for loss in (group_cross_entropy, whole))
    assert ours.requires_grad is any(needs)
    for found, other in zip(*(torch.autograd.grad(x, wanted) if wanted else () for x in (ours, expected)), strict=True):
        torch.testing.assert_close(found, other)


def test_without_gradient_it_is_the_same_number():
    q, groups, target = made(1, 8, 5, 2)
    with torch.no_grad():
        ours = group_cross_entropy(q, groups, target, 0.1)
    assert not ours.requires_grad
    assert torch.equal(ours, group_cross_entropy(q, groups, target, 0.1))


def test_without_any_target_loss_and_gradient_are_nothing():
    q, groups, target = made(1, 8, 5, 2)
    loss = group_cross_entropy(q, groups, torch.full_like(target, -100), 0.1)
    loss.backward()
    assert [float(x.detach().abs().sum()) for x in (loss, q.grad, groups.grad)] == [0, 0, 0]


def test_half_precision_features_meet_the_groups_in_theirs():
    q, groups, target = made(1, 8, 5, 0)
    low = q.detach().bfloat16().requires_grad_()
    group_cross_entropy(low, groups, target, 0.1).backward()
    assert low.grad.dtype == torch.bfloat16


def test_a_target_beyond_the_groups_is_refused():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        group_cross_entropy(normal(0, 3, 4), normal(1, 5, 4), torch.tensor([0, 5, 1]), 0.1)


def test_the_logits_of_very_many_groups_are_never_all_there():
    q, groups = torch.ones(512, 8).requires_grad_(), torch.ones(100_000, 8).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = group_cross_entropy(q, groups, torch.zeros(512, dtype=torch.int64), 0.1)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 4 * nearest.rows_at_once(100_000, q.device) * 100_000 + 2**20
    assert float(loss.detach()) == pytest.approx(math.log(100_000), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_a_temperature_of_0_or_less_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        GroupBank(4, 4).loss(torch.ones(2, 4), torch.ones(4, 4), torch.zeros(2, dtype=torch.int64), temperature)
