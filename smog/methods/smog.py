"""Synchronous Momentum Grouping (arXiv 2207.06167): contrast each view with groups that move at every step."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smog.grouping import GroupBank
from smog.models import build_backbone, predictor, projector
from smog.schema import Config


class Smog(nn.Module):
    """The online branch f, h, p, its momentum copy f', h', and the groups."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.seed = config.method, config.seed
        self.backbone = build_backbone(config.backbone, config.views.size)
        self.projector = projector(self.backbone.num_features, config.method)  # type: ignore[arg-type]
        self.predictor = predictor(config.method)
        self.bank = GroupBank(
            config.method.num_groups, config.method.dim, config.method.group_momentum, config.method.cache_size
        )
        self.momentum_branch = copy.deepcopy(self._online()).requires_grad_(False)

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, views: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its diagnostics for views [2, b, 3, h, w].

        z = h(f(x)) and z' = h'(f'(x)) are put on the sphere before they meet the groups (our choice; the paper leaves
        it open). The target of a view is the group that the *other* view belongs to in the momentum branch. The groups
        move by the online features first, and the loss is taken against the moved ones (paper, eq. 3 to 5).
        """
        online, other = self._roles(views, step)
        z = self.projector(self.backbone(online))
        q = self.predictor(z)
        with torch.no_grad():
            z_other = self.momentum_branch(other)
        with torch.autocast(online.device.type, enabled=False):
            return self._loss(F.normalize(z.float(), dim=1), q.float(), z_other.float())

    def _roles(self, views: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return what the online and the momentum branch see; see Method.direction."""
        if self.config.direction == "both":
            return views.flatten(0, 1), views.flip(0).flatten(0, 1)
        online = step % 2 if self.config.direction == "alternate" else 1
        return views[online], views[1 - online]

    def _loss(self, z: Tensor, q: Tensor, z_other: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = self.bank.assign(z_other)
        own = self.bank.assign(z)
        groups = self.bank.updated(z)
        loss = F.cross_entropy(self.bank.logits(q, groups, self.config.temperature), target)
        self.bank.commit(groups, z)
        return loss, {"agreement": (own == target).float().mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let the momentum branch follow, and regroup when it is time (paper, table 7b)."""
        regroup = self.config.regroup_interval and (step + 1) % self.config.regroup_interval == 0
        reset = regroup and self.config.reset_momentum_encoder
        ours: list[Tensor] = list(self._online().parameters())
        theirs: list[Tensor] = list(self.momentum_branch.parameters())
        torch._foreach_lerp_(theirs, ours, 1.0 if reset else 1 - self.config.encoder_momentum)
        if regroup:
            # from the seed and the step alone, so that a resumed run regroups as the uninterrupted one
            self.bank.regroup(torch.Generator().manual_seed(self.seed << 32 | step))

    def diagnose(self) -> dict[str, float]:
        """Return how the groups are used; see GroupBank.usage."""
        return {f"group_{name}": value for name, value in self.bank.usage().items()}
