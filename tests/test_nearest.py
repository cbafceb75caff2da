import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_groups import SEEDS, in_blocks, normal

from smog.nearest import TILE, nearest


@settings(max_examples=80)
@given(
    seed=SEEDS,
    rows=st.integers(0, 40),
    groups=st.integers(1, 2 * TILE + 30),
    dim=st.integers(1, 6),
    block=st.integers(1, 50),
)
def test_it_is_the_first_of_the_largest_products(seed, rows, groups, dim, block):
    """In whole numbers, so that equals are equal; in one dimension all products of a feature may be negative."""
    z, others = normal(seed, rows, dim).mul(4).round(), normal(seed + 1, groups, dim).abs().mul(4).round() + 1
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, block)
        index, value = nearest(z, others)
    products = z.long() @ others.long().T
    first = [max(range(groups), key=row.__getitem__) for row in products.tolist()]
    assert index.tolist() == first
    assert value.tolist() == products.amax(dim=1).tolist()


def test_in_bf16_products_are_its_own():
    z, groups = normal(0, 500, 32, unit=True).bfloat16(), normal(1, 300, 32, unit=True).bfloat16()
    index, value = nearest(z, groups)
    products = z @ groups.T
    assert torch.equal(value, products.float().max(dim=1).values)
    assert torch.equal(products.gather(1, index[:, None])[:, 0].float(), value)


def test_a_feature_that_is_no_number_belongs_to_some_group():
    z = normal(0, 9, 4)
    z[3] = float("nan")
    index, value = nearest(z, normal(1, 200, 4))
    assert 0 <= int(index[3]) < 200
    assert value.isnan().tolist() == [row == 3 for row in range(9)]
