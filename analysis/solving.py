"""Tasks that a run solves or does not: the share of seeds that solved one, their steps, and exact tests of both.

Near a threshold some seeds solve a task and the others stay near chance. The mean is then the score of no run, and
Student's interval does not hold. Shares and ranks do not ask how scores are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats


def share_interval(solved: int, seeds: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0 to 1 (Clopper and Pearson, 1934)."""
    found = stats.binomtest(solved, seeds).proportion_ci(0.95, method="exact")
    return found.low, found.high


def median_steps(solved_at: ArrayLike) -> float:
    """The step by which half of the seeds had solved a task; NaN (did not solve) counts as later than any."""
    late = np.nan_to_num(np.asarray(solved_at, float), nan=np.inf)
    found = float(np.quantile(late, 0.5, method="inverted_cdf")) if len(late) else math.inf
    return found if math.isfinite(found) else math.nan


def share_test(solved: int, seeds: int, base_solved: int, base_seeds: int) -> float:
    """p of two equal shares: Boschloo's exact test (1970); 1 where both shares are all or nothing alike."""
    p = stats.boschloo_exact([[solved, base_solved], [seeds - solved, base_seeds - base_solved]]).pvalue
    return 1.0 if math.isnan(p) else float(p)


def steps_test(solved_at: ArrayLike, base_solved_at: ArrayLike) -> float:
    """p of equally many steps: the rank sum test (Mann and Whitney, 1947), by permutation.

    Seeds that did not solve the task (NaN) rank last, all alike.
    """
    ours, theirs = (np.nan_to_num(np.asarray(at, float), nan=1e18) for at in (solved_at, base_solved_at))
    if not len(ours) or not len(theirs) or len({*ours, *theirs}) < 2:
        return 1.0
    return float(stats.mannwhitneyu(ours, theirs, method=stats.PermutationMethod(rng=0)).pvalue)


def shares(runs: pd.DataFrame, variants: Sequence[str], base: str) -> pd.DataFrame:
    """One row per variant: how many of its `ended` seeds `solved` the task, after how many steps, and tests of both.

    Columns: `ended`, failed runs among them; `solved`; the share's interval `share_low` to `share_high`; `solved_at`,
    the median; `steps`, how many were trained; `gain`, the share less the base's; `mixed`, whether some seeds solved
    it and some did not; `p_share` and `p_steps`, against the base.
    """
    ended = runs[runs["state"].isin(["done", "failed"])]
    at = {name: group["solved_at"].to_numpy(float) for name, group in ended.groupby("variant")}
    steps = ended.groupby("variant")["steps"].max().astype(float)
    none = np.empty(0)
    theirs = at.get(base, none)
    rows = []
    for name in variants:
        ours = at.get(name, none)
        solved, seeds = int((~np.isnan(ours)).sum()), len(ours)
        share = (solved, *share_interval(solved, seeds)) if seeds else [math.nan] * 3
        row = [seeds, *share, median_steps(ours), steps.get(name, math.nan), 0 < solved < seeds]
        tests = [math.nan] * 3
        if name != base and seeds and len(theirs):
            of_base = int((~np.isnan(theirs)).sum())
            tests = [solved / seeds - of_base / len(theirs)]
            tests += [share_test(solved, seeds, of_base, len(theirs)), steps_test(ours, theirs)]
        rows.append([*row, *tests])
    names = ["ended", "solved", "share_low", "share_high", "solved_at", "steps", "mixed", "gain", "p_share", "p_steps"]
    return pd.DataFrame(rows, columns=names, index=pd.Index(variants))


def unsolved(comparison: pd.DataFrame) -> list[str]:
    """Lines on the variants of which no seed solved the task, and the steps that they had."""
    none = comparison[(comparison["solved"] == 0) & comparison["steps"].notna()]
    found = [f"Not solved within {steps:.0f} steps: {', '.join(of['variant'])}." for steps, of in none.groupby("steps")]
    return found + too_few(comparison)


def too_few(comparison: pd.DataFrame) -> list[str]:
    """A line where variants that did not solve the task had fewer than twice the steps that the base needed."""
    needed = comparison.loc[comparison["base"], "solved_at"].max()
    steps = comparison.loc[comparison["solved"] == 0, "steps"].min()
    if not steps < 2 * needed:
        return []
    return [f"{steps:.0f} steps are fewer than twice the base's {needed:.0f}: too few to judge by."]
