import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_groups import SEEDS, in_blocks, normal

from smog import sinkhorn
from smog.sinkhorn import balanced


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("lightly.loss.swav_loss", reason="lightly is the oracle (extra dev)").sinkhorn


@pytest.mark.parametrize("kept", [2**28, 0])
@settings(max_examples=40)
@given(seed=SEEDS, rows=st.integers(1, 60), groups=st.integers(1, 30), dim=st.integers(2, 8), block=st.integers(1, 70))
def test_it_is_the_largest_of_lightlys_codes(oracle, kept, seed, rows, groups, dim, block):
    z, bank = normal(seed, rows, dim, unit=True), normal(seed + 1, groups, dim, unit=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "KEPT_CELLS", kept)
        in_blocks(patch, block)
        ours = balanced(z, bank)
    codes = oracle(z @ bank.T)
    assert ours.dtype == torch.int64
    torch.testing.assert_close(codes[torch.arange(rows), ours], codes.max(dim=1).values, rtol=1e-9, atol=0)


def test_groups_far_from_everything_are_used_all_the_same():
    z = F.normalize(normal(0, 1, 8) + 0.3 * normal(1, 512, 8), dim=1)
    groups = F.normalize(torch.cat([z[:1], -z[1:8] + 0.3 * normal(2, 7, 8)]), dim=1)
    assert (z @ groups.T).argmax(dim=1).bincount(minlength=8).tolist() == [512, 0, 0, 0, 0, 0, 0, 0]
    assert balanced(z, groups).bincount(minlength=8).min() > 16


@pytest.mark.parametrize("sign", [1, -1])
def test_no_extreme_is_too_much_for_single_precision(oracle, sign):
    """Features all alike, and groups on them and opposite to them."""
    z = F.normalize(torch.ones(1, 16) + 1e-2 * normal(0, 300, 16), dim=1)
    groups = F.normalize(torch.cat([sign * z[:5], -sign * z[:1]]), dim=1)
    codes, ours = oracle(z @ groups.T), balanced(z.float(), groups.float())
    torch.testing.assert_close(codes[torch.arange(300), ours], codes.max(dim=1).values, rtol=1e-4, atol=0)


def test_it_takes_no_gradient():
    assert not balanced(normal(0, 5, 4, unit=True).requires_grad_(), normal(1, 3, 4, unit=True)).requires_grad
