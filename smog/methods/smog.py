"""Synchronous Momentum Grouping (arXiv 2207.06167): contrast each view with groups that move at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from smog.distributed import rank, rows_of_all_ranks
from smog.grouping import GroupBank
from smog.models import build_backbone, predictor, projector
from smog.optim import Clock
from smog.schema import Config

NONE = -100  # no target: a crop is not predicted from its own group


class Smog(nn.Module):
    """The online branch f, h, p, its momentum copy f', h', and the groups."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.seed, self.local_crops = config.method, config.seed, config.views.local_crops
        self.backbone = build_backbone(config.backbone, config.views.size)
        self.projector = projector(self.backbone.num_features, config.method)  # type: ignore[arg-type]
        self.predictor = predictor(config.method)
        self.bank = GroupBank(
            config.method.num_groups,
            config.method.dim,
            config.method.group_momentum,
            config.method.cache_size,
            start="orthant" if config.method.initial_groups == "orthant" else "sphere",
        )
        self.momentum_branch = copy.deepcopy(self._online()).requires_grad_(False)
        for module in self.momentum_branch.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0  # as MoBY: targets come from the whole network

    def _online(self) -> nn.Sequential:
        parts = [self.backbone, self.projector]
        return nn.Sequential(*parts, self.predictor) if self.config.predictor == "both" else nn.Sequential(*parts)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that the backbone wants left alone; timm's optimisers ask for them."""
        listed = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in listed()}

    def forward(self, views: Sequence[Tensor], clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its diagnostics for global crops [crops, b, 3, h, w] and, after them, local ones if any.

        z = h(f(x)) and z' = h'(f'(x)); the momentum branch sees global crops alone. The targets of a crop are the
        groups that the *other* global crops belong to in the momentum branch. The groups move by the online features
        of the global crops first, and the loss is taken against the moved ones (paper, eq. 3 to 5).
        """
        online, other = self._roles(len(views[0]), clock.step)
        h = torch.cat([self.backbone(x.flatten(0, 1)) for x in (views[0][online], *views[1:])])
        z = self.projector(h)
        q = self.predictor(z)
        with torch.no_grad():
            z_other = self.momentum_branch(views[0][other].flatten(0, 1))
        batch = views[0].shape[1]
        with torch.autocast(h.device.type, enabled=False):
            z = z[: len(online) * batch].float().unflatten(0, (len(online), batch))
            if self.config.normalize_features:
                z = F.normalize(z, dim=-1)
            z_other = z_other.float().unflatten(0, (len(other), batch))
            return self._loss(z, q.float().unflatten(0, (-1, batch)), z_other, online, other, clock)

    def _roles(self, crops: int, step: int) -> tuple[list[int], list[int]]:
        """Return which global crops the online and which the momentum branch sees; see Method.direction."""
        if self.config.direction == "both":
            return list(range(crops)), list(range(crops))
        target = step % crops if self.config.direction == "alternate" else 0
        return [crop for crop in range(crops) if crop != target], [target]

    def _loss(
        self, z: Tensor, q: Tensor, z_other: Tensor, online: list[int], other: list[int], clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z [global crops online, b, d], q [crops online, b, d], z_other [targets, b, d] -> loss and diagnostics."""
        self.bank.active = self.active_groups(clock)
        if clock.step == 0 and self.config.initial_groups == "batch" and not int(self.bank.pushed):
            self.bank.start_from(z.detach())
        before = self.bank.groups[: self.bank.active].clone()
        own = self.bank.assign(z.flatten(0, 1)).view(z.shape[:2])
        target = self._targets(z_other) if self.config.targets == "before" else None
        losses, weights = [], []
        for place, crops in self._turns(len(z), len(q)):
            part, part_own = z[place], own[place]
            rows = part.flatten(0, 1) if self.config.group_gradient else part.detach().flatten(0, 1)
            groups = self.bank.updated(rows, part_own)
            found = self._targets(z_other, groups.detach()) if target is None else target
            apart = self._pairs(found, crops, online, other)
            losses.append(self._contrast(q[crops], z_other, groups, apart, clock))
            weights.append((apart != NONE).sum())
            kept = F.normalize(groups, dim=1) if self.config.normalize_groups else groups
            self.bank.commit(kept, part, part_own)
        share = torch.stack(weights).float()
        loss = (torch.stack(losses) * share).sum() / share.sum()
        first = self._targets(z_other[:1]) if target is None else target[:1]
        moved = 1 - F.cosine_similarity(before, self.bank.groups[: self.bank.active]).mean()
        return loss, {"agreement": (own[-1] == first[0]).float().mean(), "group_movement": moved}

    def _turns(self, global_crops: int, crops: int) -> list[tuple[slice, list[int]]]:
        """Return which global crops update the groups together, and which crops are then contrasted with them."""
        if self.config.group_updates == "once":
            return [(slice(0, global_crops), list(range(crops)))]
        turns = [(slice(i, i + 1), [i]) for i in range(global_crops)]
        turns[-1][1].extend(range(global_crops, crops))
        return turns

    def _targets(self, z_other: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the group of every feature [targets, b, d], int64 [targets, b]."""
        rows = z_other.flatten(0, 1)
        if self.config.balanced_targets:
            return self.bank.balanced(rows, groups).view(z_other.shape[:2])
        return self.bank.assign(rows, groups).view(z_other.shape[:2])

    def _pairs(self, target: Tensor, crops: list[int], online: list[int], other: list[int]) -> Tensor:
        """Return the targets of every crop, [crops x b, targets]; a crop has none from itself."""
        seen = [*online, *[-1] * self.local_crops]
        own = torch.tensor([[seen[crop] == one for one in other] for crop in crops], device=target.device)
        pairs = target.T.expand(len(crops), *target.T.shape)
        return pairs.masked_fill(own[:, None, :], NONE).flatten(0, 1)

    def _contrast(self, q: Tensor, z_other: Tensor, groups: Tensor, pairs: Tensor, clock: Clock) -> Tensor:
        """Return the loss against the groups or, while the warm-up lasts, against the images of the batch (InfoNCE,
        MoCo v3, arXiv 2104.02057, eq. 1)."""
        temperature = self.config.temperature
        if clock.epoch >= self.config.instance_epochs:
            return self.bank.loss(q.flatten(0, 1), groups, pairs, temperature)
        place = rank() * q.shape[1] + torch.arange(q.shape[1], device=q.device)
        apart = pairs.view(len(q), q.shape[1], -1)
        losses = []
        for number, keys in enumerate(z_other):
            images = torch.where(apart[:, :, number] == NONE, NONE, place).flatten()
            losses.append(self.bank.loss(q.flatten(0, 1), rows_of_all_ranks(keys), images, temperature))
        return torch.stack(losses).mean()

    def active_groups(self, clock: Clock) -> int:
        """Return how many groups are in use: a function of the last regroup before this step alone."""
        start, everything = self.config.start_groups, self.config.num_groups
        interval = self.config.regroup_interval
        if not start or not interval:
            return everything
        epoch = clock.step // interval * interval / clock.per_epoch
        share = min(1.0, epoch / self.config.growth_epochs) if self.config.growth_epochs else 1.0
        return round(start * (everything / start) ** share)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Let the momentum branch follow, and regroup when it is time (paper, table 7b)."""
        interval = self.config.regroup_interval
        regroup = interval and (clock.step + 1) % interval == 0
        reset = regroup and self.config.reset_momentum_encoder
        momentum = self.config.encoder_momentum
        if self.config.encoder_schedule == "cosine":
            momentum = clock.cosine(momentum, 1.0)
        ours: list[Tensor] = list(self._online().parameters())
        theirs: list[Tensor] = list(self.momentum_branch.parameters())
        torch._foreach_lerp_(theirs, ours, 1.0 if reset else 1 - momentum)
        if regroup:
            self.bank.active = self.active_groups(Clock(clock.step + 1, clock.steps, clock.per_epoch))
            # from the seed and the step alone, so that a resumed run regroups as the uninterrupted one
            self.bank.regroup(torch.Generator().manual_seed(self.seed << 32 | clock.step))

    def diagnose(self) -> dict[str, float]:
        """Return how the groups are used (see GroupBank.usage), how many there are, and the loss of guessing, ln K."""
        usage = {f"group_{name}": value for name, value in self.bank.usage().items()}
        return {**usage, "group_active": float(self.bank.active), "chance_loss": math.log(self.bank.active)}
