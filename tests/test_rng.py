"""Seeds by purpose and orders by epoch."""

import numpy as np
import pytest
from scipy import stats

from metamixer.rng import derive, permutation


def test_derive_separates_types_and_borders() -> None:
    parts: list[tuple[int | str, ...]] = [
        (),
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("ab",),
        ("a", "b"),
        ("", "ab"),
        (-1,),
        (2**70,),
        ("s1:a",),
        ("i1:",),
    ]
    seeds = {derive(*each) for each in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(int(np.int64(5)), "x") == derive(np.arange(6)[5], "x")


def test_values_never_change() -> None:
    """Written down from another process: recorded runs rest on them."""
    assert derive(1, "a") == 2888731115568171042
    assert permutation(1, 2, 5).tolist() == [3, 0, 1, 4, 2]


def test_permutation_shuffles() -> None:
    order = permutation(0, 0, 2000)
    assert sorted(order) == list(range(2000))
    np.testing.assert_array_equal(order, permutation(0, 0, 2000))
    for other in (permutation(0, 1, 2000), permutation(1, 0, 2000), np.arange(2000)):
        assert (order == other).sum() < 12  # one match on average
        assert abs(np.corrcoef(order, other)[0, 1]) < 0.1
    firsts = np.array([permutation(5, epoch, 10) for epoch in range(2000)])
    for place in range(10):
        assert stats.chisquare(np.bincount(firsts[:, place], minlength=10)).pvalue > 1e-4


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="derive takes integers and strings"):
        derive(1.5)  # type: ignore[arg-type]
