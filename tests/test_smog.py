"""The method against what its formulas say: roles, targets, options, the momentum branch."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smog.config import compose
from smog.methods.smog import NONE, Smog
from smog.optim import Clock, build_optimizer, rate, schedule

SMALL = ["recipe=smoke", "method.regroup_interval=2"]
CLOCK = Clock(0, 20, 5)


def made(*overrides, seed=0):
    torch.manual_seed(seed)
    return Smog(compose([*SMALL, *overrides])).train()


def crops(large=2, small=0, batch=6, seed=1):
    draw = torch.Generator().manual_seed(seed)
    sizes = [torch.randn(large, batch, 3, 16, 16, generator=draw)]
    return sizes + ([torch.randn(small, batch, 3, 8, 8, generator=draw)] if small else [])


# ---- the loss, written out ----


def written_out(method, views, online, other, pairs):
    """Mean cross entropy over the pairs (crop, target crop), from the formulas of the paper, in one loop."""
    batch = views[0].shape[1]
    h = torch.cat([method.backbone(x.flatten(0, 1)) for x in (views[0][online], *views[1:])])
    z = method.projector(h)
    q = method.predictor(z)
    z = F.normalize(z[: len(online) * batch], dim=1)
    z_other = method.momentum_branch(views[0][other].flatten(0, 1))
    old = F.normalize(method.bank.groups, dim=1)
    own = (z @ old.T).argmax(1)
    beta, groups = method.config.group_momentum, method.bank.groups.clone()
    for k in own.unique():
        groups[k] = beta * method.bank.groups[k] + (1 - beta) * z[own == k].mean(0)
    target = (F.normalize(z_other, dim=1) @ old.T).argmax(1).view(len(other), batch)
    scores = F.normalize(q, dim=1) @ F.normalize(groups, dim=1).T / method.config.temperature
    losses = [
        F.cross_entropy(scores[place * batch + i][None], target[number][i][None])
        for place, number in pairs
        for i in range(batch)
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("direction", "step", "large", "small", "online", "other", "pairs"),
    [
        ("one_way", 0, 2, 0, [1], [0], [(0, 0)]),
        ("alternate", 1, 2, 0, [0], [1], [(0, 0)]),
        ("both", 0, 2, 0, [0, 1], [0, 1], [(0, 1), (1, 0)]),
        ("one_way", 0, 2, 2, [1], [0], [(0, 0), (1, 0), (2, 0)]),
        ("both", 0, 2, 1, [0, 1], [0, 1], [(0, 1), (1, 0), (2, 0), (2, 1)]),
        ("both", 0, 3, 0, [0, 1, 2], [0, 1, 2], [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),
    ],
)
def test_the_loss_and_its_gradient_are_the_papers(direction, step, large, small, online, other, pairs):
    overrides = [f"method.direction={direction}", f"views.global_crops={large}", f"views.local_crops={small}"]
    one, two = made(*overrides), made(*overrides)
    views = crops(large, small)
    loss, _ = one(views, dataclasses.replace(CLOCK, step=step))
    expected = written_out(two, views, online, other, pairs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_momentum_branch_sees_global_crops_alone():
    method, seen = made("views.local_crops=2", "method.direction=one_way"), []
    method.momentum_branch[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    method(crops(2, 2), CLOCK)
    assert seen == [(6, 3, 16, 16)]


@functools.cache
def composed_once():
    return compose(SMALL)


@given(large=st.integers(2, 5), small=st.integers(0, 3), step=st.integers(0, 9))
def test_no_crop_is_its_own_target_and_every_other_pair_is_there(large, small, step):
    method = object.__new__(Smog)
    torch.nn.Module.__init__(method)
    for direction in ("both", "alternate", "one_way"):
        config = dataclasses.replace(composed_once().method, direction=direction)
        method.config, method.local_crops = config, small
        online, other = method._roles(large, step)
        target = torch.arange(len(other))[:, None].expand(-1, 4)
        pairs = method._pairs(target, list(range(len(online) + small)), online, other).view(-1, 4, len(other))
        for place, seen in enumerate([*online, *[-1] * small]):
            expected = [NONE if seen == crop else number for number, crop in enumerate(other)]
            assert pairs[place, 0].tolist() == expected


# ---- the options ----


def test_gradient_through_the_groups_can_be_cut():
    """Without it, and with a predictor that passes nothing on, no gradient reaches the backbone."""
    found = []
    for on in (True, False):
        method = made(f"method.group_gradient={on}".lower(), "method.group_momentum=0.5")
        for parameter in method.predictor.parameters():
            parameter.data.zero_()
        method.predictor[-1].bias.data.fill_(1.0)
        method(crops(), CLOCK)[0].backward()
        found.append(max(float(p.grad.abs().max()) for p in method.backbone.parameters() if p.grad is not None))
    assert found[0] > 1e-6
    assert found[1] == 0


def test_groups_are_put_back_on_the_sphere():
    for on, expected in ((True, True), (False, False)):
        method = made(f"method.normalize_groups={on}".lower(), "method.group_momentum=0.5")
        method(crops(), CLOCK)
        norms = method.bank.groups.norm(dim=1)
        assert bool(((norms - 1).abs() < 1e-5).all()) is expected


def test_features_as_they_come_are_longer_than_the_sphere():
    method = made("method.normalize_features=false")
    method(crops(), CLOCK)
    assert method.bank.cached().norm(dim=1).mean() > 2  # BatchNorm leaves about sqrt(dim)


def test_targets_after_the_update_are_those_of_the_moved_groups():
    one, two = (made(f"method.targets={when}", "method.group_momentum=0.0") for when in ("before", "after"))
    losses = [float(method(crops(), CLOCK)[0].detach()) for method in (one, two)]
    assert losses[0] != losses[1]


def test_per_view_the_second_update_sees_the_first():
    once, turns = (
        made("method.direction=both", f"method.group_updates={how}", "method.group_momentum=0.5")
        for how in ("once", "per_view")
    )
    for method in (once, turns):
        method(crops(), CLOCK)
    assert int(once.bank.pushed) == int(turns.bank.pushed) == 12
    assert not torch.allclose(once.bank.groups, turns.bank.groups)


def test_groups_can_start_from_the_first_batch():
    method = made("method.initial_groups=batch", "method.group_momentum=1.0")
    method(crops(batch=8), CLOCK)
    torch.testing.assert_close(method.bank.groups[:8], method.bank.cached()[:8])


def test_the_orthant_is_positive():
    assert (made("method.initial_groups=orthant").bank.groups >= 0).all()
    assert (made().bank.groups < 0).any()


def test_the_momentum_branch_can_end_in_a_predictor():
    with_it, without = made("method.predictor=both"), made()
    assert len(with_it.momentum_branch) == len(without.momentum_branch) + 1
    with_it(crops(), CLOCK)[0].backward()
    assert all(p.grad is None for p in with_it.momentum_branch.parameters())


def test_without_a_predictor_z_itself_is_contrasted():
    method = made("method.predictor=none", "method.direction=one_way")
    views = crops()
    loss, _ = method(views, CLOCK)
    other = made("method.predictor=none", "method.direction=one_way")
    other.predictor = torch.nn.Identity()
    expected = written_out(other, views, [1], [0], [(0, 0)])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert not list(method.predictor.parameters())


def test_the_number_of_groups_grows_from_coarse_to_fine():
    method = made("method.start_groups=2", "method.growth_epochs=2", "method.regroup_interval=2")
    counts = [method.active_groups(Clock(step, 40, 5)) for step in range(16)]
    assert counts[0] == counts[1] == 2
    assert counts[-1] == 8
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


def test_the_groups_in_use_follow_the_step():
    method = made("method.start_groups=2", "method.growth_epochs=2", "method.regroup_interval=2")
    for step in range(12):
        clock = Clock(step, 40, 5)
        method(crops(seed=step), clock)
        assert method.bank.active == method.active_groups(clock)
        method.after_step(clock)


def test_instance_contrast_is_the_warm_up_of_moco_v3():
    method = made("method.instance_epochs=1", "method.direction=one_way")
    views = crops()
    loss, _ = method(views, CLOCK)
    other = made("method.instance_epochs=1", "method.direction=one_way")
    q = other.predictor(other.projector(other.backbone(views[0][1])))
    scores = F.normalize(q, dim=1) @ F.normalize(other.momentum_branch(views[0][0]), dim=1).T
    expected = F.cross_entropy(scores / other.config.temperature, torch.arange(6))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    later, _ = made("method.instance_epochs=1")(views, Clock(5, 20, 5))
    assert not torch.isclose(later, loss)


# ---- the momentum branch over time ----


def test_a_reset_copies_the_online_weights_when_it_regroups():
    for reset in (True, False):
        method = made(f"method.reset_momentum_encoder={reset}".lower(), "method.encoder_momentum=0.9")
        with torch.no_grad():
            for parameter in method.backbone.parameters():
                parameter.add_(1.0)
        method.after_step(Clock(1, 20, 5))
        ours, theirs = next(method.backbone.parameters()), next(method.momentum_branch.parameters())
        assert torch.equal(ours, theirs) is reset
        torch.testing.assert_close(theirs, ours - (0.0 if reset else 0.9))


def test_the_momentum_of_the_encoder_rises_to_one():
    method = made("method.encoder_schedule=cosine", "method.encoder_momentum=0.5", "method.regroup_interval=0")
    moved = []
    for step in (0, 10, 20):
        with torch.no_grad():
            for ours, theirs in zip(method.backbone.parameters(), method.momentum_branch.parameters(), strict=False):
                ours.copy_(theirs + 1.0)
        before = next(method.momentum_branch.parameters()).clone()
        method.after_step(Clock(step, 20, 5))
        moved.append(float((next(method.momentum_branch.parameters()) - before).mean()))
    assert moved == pytest.approx([0.5, 0.25, 0.0], abs=1e-5)


def test_paths_are_dropped_in_the_online_branch_alone():
    method = Smog(compose(["recipe=smoke", "backbone.args.drop_path_rate=0.5"]))
    drops = [module.drop_prob for module in method.backbone.modules() if hasattr(module, "drop_prob")]
    assert max(drops) > 0
    assert not any(getattr(module, "drop_prob", 0) for module in method.momentum_branch.modules())


# ---- optimiser and schedules ----


def groups_of(*overrides):
    config = compose([*SMALL, *overrides])
    return build_optimizer(Smog(config), config.optim), config.optim


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_biases_and_norms_are_not_decayed(name):
    optimizer, config = groups_of(f"optim.name={name}", "optim.weight_decay=0.1")
    schedule(optimizer, CLOCK, config)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.0 if all(p.ndim <= 1 for p in group["params"]) else 0.1)
    assert {len(p.shape) > 1 for group in optimizer.param_groups for p in group["params"]} == {True, False}


def test_position_embeddings_are_left_alone():
    config = compose(["recipe=smoke", "backbone=vit_small", "backbone.args.img_size=16", "optim.weight_decay=0.1"])
    method = Smog(config)
    optimizer = build_optimizer(method, config.optim)
    [plain] = [group["params"] for group in optimizer.param_groups if not group["weight_decay"]]
    assert any(p is method.backbone.pos_embed for p in plain)


def test_weight_decay_goes_to_its_end_along_a_cosine():
    optimizer, config = groups_of("optim.weight_decay=0.04", "optim.final_weight_decay=0.4")
    found = []
    for step in (0, 10, 20):
        schedule(optimizer, Clock(step, 20, 5), config)
        found.append(max(group["weight_decay"] for group in optimizer.param_groups))
    assert found == pytest.approx([0.04, 0.22, 0.4])


def test_the_warm_up_can_start_above_zero():
    config = compose(
        [*SMALL, "optim.warmup_start=0.5", "optim.warmup_epochs=2", "optim.lr=0.8", "optim.batch=64"]
    ).optim
    rates = [rate(Clock(step, 20, 5), config) for step in range(10)]
    assert rates[0] == pytest.approx(0.2 * (0.5 + 0.5 / 10))
    assert rates[9] == pytest.approx(0.2)
