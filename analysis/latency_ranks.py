"""Which measure of cost ranks latency: Spearman's correlation of each with each runtime's medians, over networks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from .intervals import CONFIDENCE
from .latency import ways

# how the tables call a measure, and its column
MEASURES = {
    "multiply-adds": "macs",
    "parameters": "parameters",
    "activations": "activations",
    "bytes moved": "moved",  # numbers moved; at one precision, bytes rank the same
}


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each runtime and measure: n networks, `spearman`, and its 95 % interval `low` to `high`.

    A runtime that was timed in several ways (devices, threads, ...) has a row for each, named by `latency.ways`.
    Networks of any resolution count, each pair once, unfolded ones not. Rows without the measure are left out. The
    interval is Bonett and Wright's (2000): Fisher's z with variance (1 + r²/2)/(n − 3). There is none for fewer than
    five networks, nor for a correlation of 1, of which so few networks can't be sure.
    """
    found = []
    folded = rows[~rows["network"].str.endswith(" unfolded")]
    for runtime, group in folded.groupby(ways(folded), sort=False):
        group = group.drop_duplicates(["network", "resolution"], keep="last")
        for measure, column in MEASURES.items():
            known = group[group[column].notna()]
            r, low, high = spearman(known[column].to_numpy(float), known["median_ms"].to_numpy(float))
            found.append((runtime, measure, len(known), r, low, high))
    return pd.DataFrame(found, columns=["runtime", "measure", "n", "spearman", "low", "high"])


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation and its interval; NaN where there is none."""
    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan, math.nan, math.nan
    r = float(stats.spearmanr(x, y).statistic)
    if n < 5 or abs(r) > 1 - 1e-12:
        return r, math.nan, math.nan
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
