"""Features and groups for the tests, in float64 so that an oracle can be compared with to many digits."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from smog import nearest
from smog.grouping import GroupBank

SEEDS = st.integers(0, 2**31)


def normal(seed, *shape, unit=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1) if unit else values


def made_bank(seed, groups=5, dim=4, momentum=0.9, cache=16):
    bank = GroupBank(groups, dim, momentum, max(cache, groups)).double()
    bank.groups.copy_(normal(seed, groups, dim, unit=True))
    return bank


def fill(bank, rows, own=None):
    bank.commit(bank.groups[: bank.active].clone(), rows, own)
    return bank


def in_blocks(patch, rows):
    """Compare so few rows with the groups at once."""
    patch.setattr(nearest, "CPU_CELLS", 1)
    patch.setattr(nearest, "LEAST_ROWS", rows)
