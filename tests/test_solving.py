"""Shares of seeds that solve a task, and their steps: against closed forms and naive enumeration."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import solving

NAN = math.nan


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_the_interval_of_a_share_is_clopper_and_pearsons(seeds):
    """Nobody and everybody have closed forms; others come from the beta distribution."""
    low, high = solving.share_interval(0, seeds)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / seeds)))
    assert solving.share_interval(seeds, seeds) == (pytest.approx(0.025 ** (1 / seeds)), 1)
    for solved in range(1, seeds):
        expected = stats.beta.ppf([0.025, 0.975], [solved, solved + 1], [seeds - solved + 1, seeds - solved])
        assert solving.share_interval(solved, seeds) == pytest.approx(tuple(expected))


def test_the_test_of_shares_is_boschloos():
    """All against none: the worst nuisance share is one half, so p = 2 / 2**(2n). Alike shares: no difference."""
    for n in (3, 5):
        assert solving.share_test(n, n, 0, n) == pytest.approx(2 / 4**n)
        assert solving.share_test(0, n, 0, n) == solving.share_test(n, n, n, n) == 1
    assert solving.share_test(1, 3, 3, 3) == pytest.approx(solving.share_test(2, 3, 0, 3)) and (
        solving.share_test(1, 3, 3, 3) <= stats.fisher_exact([[1, 3], [2, 0]]).pvalue
    )


def test_steps_are_compared_by_their_ranks_over_all_permutations():
    ours, theirs = [100, 200, NAN, NAN], [300, 400, 500, NAN]
    ranks = stats.rankdata([100, 200, 1e9, 1e9, 300, 400, 500, 1e9])
    centre = 4 * ranks.mean()
    sums = [sum(ranks[list(chosen)]) for chosen in itertools.combinations(range(8), 4)]
    naive = np.mean([abs(s - centre) >= abs(ranks[:4].sum() - centre) - 1e-9 for s in sums])
    assert solving.steps_test(ours, theirs) == pytest.approx(naive)
    assert solving.steps_test([100, 200, 300], [NAN] * 3) == pytest.approx(2 / math.comb(6, 3))
    assert solving.steps_test([NAN] * 3, [NAN] * 3) == 1


def test_the_median_counts_who_did_not_solve_it_as_later_than_any():
    assert solving.median_steps([300, 100, 200]) == 200
    assert solving.median_steps([300, NAN, 200]) == 300
    assert math.isnan(solving.median_steps([300, NAN, NAN])) and math.isnan(solving.median_steps([]))


def runs_of(**solved_at):
    rows = [
        {"variant": name, "state": "failed" if at == "failed" else "done", "steps": 600,
         "solved_at": NAN if at == "failed" else at}
        for name, seeds in solved_at.items() for at in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_failed_run_has_not_solved_the_task():
    runs = runs_of(attention=[200, 300, 250], pooling=[NAN, NAN, NAN], other=[100, "failed", NAN])
    table = solving.shares(runs, ["attention", "pooling", "other", "absent"], "attention")
    assert list(table["solved"])[:3] == [3, 0, 1] and list(table["ended"]) == [3, 3, 3, 0]
    assert list(table["mixed"]) == [False, False, True, False]
    assert table.loc["other", "gain"] == pytest.approx(1 / 3 - 1)
    assert table.loc["pooling", "p_share"] == pytest.approx(2 / 64) and math.isnan(table.loc["attention", "p_share"])
    assert table.loc["absent"].drop(["ended", "mixed"]).isna().all()


@pytest.mark.parametrize("needed, few", [(250, False), (300, False), (400, True)])
def test_only_twice_the_steps_of_the_base_count_as_not_solving(needed, few):
    runs = runs_of(attention=[needed] * 3, pooling=[NAN] * 3)
    table = solving.shares(runs, ["attention", "pooling"], "attention").rename_axis("variant").reset_index()
    line, *more = solving.unsolved(table.assign(base=table["variant"] == "attention"))
    assert line == "Not solved within 600 steps: pooling."
    assert more == ["600 steps are fewer than twice the base's 400: too few to judge by."] * few
