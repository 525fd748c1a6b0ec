"""Is a difference real? Comparison of variants with a base, paired by seed.

Two variants trained from the same seed share initial weights, order and augmentation, so the difference
within a seed varies less than either of them (on Fashion-MNIST 0.16 against 0.53 points). Intervals are
Student's (Gosset, "The probable error of a mean", 1908), which hold their level at three seeds, where
percentile bootstrap intervals called 95 % cover 74 %. Several comparisons with one base are corrected by
Holm's step-down procedure ("A simple sequentially rejective multiple test procedure", 1979). All of it speaks
about seeds only: the test images are taken as given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from .frame import one_grid

CONFIDENCE = 0.95  # of every interval; 1 minus it is the level of every test

# What a row of a comparison says, from clear to unknown; a "hint" is outside its own interval, but doesn't
# stand after Holm's correction. Only "above" and "below" name a direction.
VERDICTS = ("base", "above", "below", "hint", "inside noise", "no spread", "too few pairs")


@dataclass(frozen=True)
class Paired:
    """Paired differences summarised over seeds; arrays of equal shape, NaN where nothing can be said."""

    difference: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def paired(values: np.ndarray, base: np.ndarray, confidence: float = CONFIDENCE) -> Paired:
    """Mean of `values - base` over the last axis (seeds), its t interval and the paired t test's p.

    Differences that are all the same (up to rounding) have no spread to estimate: a t interval of no width
    and p = 0 would claim certainty that a few runs on a finite test set can't give, so `low`, `high` and `p`
    are NaN. They are NaN below two pairs as well.
    """
    values, base = np.asarray(values, float), np.asarray(base, float)
    differences = values - base
    n = differences.shape[-1]
    nothing = np.full(differences.shape[:-1], np.nan)
    if n == 0:
        return Paired(nothing, nothing, nothing, nothing, nothing)
    mean = differences.mean(-1)
    if n == 1:
        return Paired(mean, nothing, nothing, nothing, nothing)
    sd = differences.std(-1, ddof=1)
    scale = np.maximum(np.abs(values), np.abs(base)).max(-1)
    error = np.where(sd > 1e-12 * scale, sd, np.nan) / np.sqrt(n)
    half = special.stdtrit(n - 1, 0.5 + confidence / 2) * error
    p = 2 * special.stdtr(n - 1, -np.abs(mean / error))
    return Paired(mean, sd, mean - half, mean + half, p)


def holm(p: np.ndarray, declared: int | None = None) -> np.ndarray:
    """Holm's adjusted p values.

    Args:
        p: one p value a comparison; NaN (not testable) stays NaN.
        declared: how many comparisons were declared, tested or not; NaN count, so that a variant whose runs
            failed doesn't make the others look better.
    """
    p = np.asarray(p, float)
    m = len(p) if declared is None else declared
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * (m - np.arange(len(order)))))
    return adjusted


def compare(runs: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """The variants of one grid against its base: a row a variant, in declared order.

    Columns: `variant`; `base` (is it?); `metric`; `n` (seeds with a result), `failed` and `missing` (running,
    interrupted, not started or unreadable) runs; `mean` and `sd` (sample spread over seeds) of the metric;
    over the seeds that variant and base both have: `pairs`, `unpaired` (results on one side only, dropped),
    `difference` to the base with `sd_difference`, interval `low` to `high` and `p`; `p_holm` over all
    declared comparisons; `inside_noise` (the interval contains 0, or there is none: fewer than two pairs, or
    pairs without spread); `verdict`, one of `VERDICTS`; `parameters` and `macs` (folded); `note`. Accuracies
    are in percent and their differences in points.

    Raises:
        ValueError: several grids or data sets in one frame, or no such metric.
    """
    numeric = [name for name in runs.columns if pd.api.types.is_float_dtype(runs[name])]
    if metric not in numeric:
        raise ValueError(f"no metric {metric!r}; the runs have {', '.join(numeric)}")
    one_grid(runs)
    groups = {variant: group for variant, group in runs.groupby("variant", sort=False)}
    base = next((_by_seed(group, metric) for group in groups.values() if group["base"].any()), None)
    rows = [_row(str(variant), group, metric, base) for variant, group in groups.items()]
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    table["p_holm"] = holm(table["p"].to_numpy(), int((~table["base"]).sum()))
    table["inside_noise"] = ~table["base"] & ~((table["low"] > 0) | (table["high"] < 0))
    clear = (table["p_holm"] < 1 - CONFIDENCE).to_numpy()
    table["verdict"] = np.select(
        [
            table["base"].to_numpy(),
            table["pairs"].to_numpy() < 2,
            table["low"].isna().to_numpy(),
            table["inside_noise"].to_numpy(),
            ~clear,
            table["difference"].to_numpy() > 0,
        ],
        ["base", "too few pairs", "no spread", "inside noise", "hint", "above"],
        "below",
    )
    return table


_COLUMNS = {
    "variant": "str",
    "base": "bool",
    "metric": "str",
    "n": "int64",
    "failed": "int64",
    "missing": "int64",
    "mean": "float64",
    "sd": "float64",
    "pairs": "int64",
    "unpaired": "int64",
    "difference": "float64",
    "sd_difference": "float64",
    "low": "float64",
    "high": "float64",
    "p": "float64",
    "p_holm": "float64",
    "inside_noise": "bool",
    "verdict": "str",
    "parameters": "Int64",
    "macs": "Int64",
    "note": "str",
}


def _by_seed(group: pd.DataFrame, metric: str) -> pd.Series:
    return group[group["state"] == "done"].set_index("seed")[metric].dropna()


def _row(variant: str, group: pd.DataFrame, metric: str, base: pd.Series | None) -> dict[str, Any]:
    values = _by_seed(group, metric)
    failed = int((group["state"] == "failed").sum())
    row: dict[str, Any] = {
        "variant": variant,
        "base": bool(group["base"].any()),
        "metric": metric,
        "n": len(values),
        "failed": failed,
        "missing": len(group) - len(values) - failed,
        "mean": values.mean(),
        "sd": values.std(ddof=1),
        "pairs": 0,
        "unpaired": 0,
    }
    notes = []
    if not row["base"] and base is not None:
        seeds = [seed for seed in values.index if seed in base.index]
        result = paired(values[seeds].to_numpy(), base[seeds].to_numpy())
        row |= {"pairs": len(seeds), "unpaired": len(values) + len(base) - 2 * len(seeds)}
        row |= {"difference": float(result.difference), "sd_difference": float(result.sd)}
        row |= {"low": float(result.low), "high": float(result.high), "p": float(result.p)}
        if len(seeds) > 1 and np.isnan(row["p"]):
            notes.append("the same difference at every seed: its spread can't be estimated")
        if row["unpaired"] and len(values):
            notes.append(f"unpaired results dropped: {row['unpaired']}")
    for name in ("parameters", "macs"):
        counts = group[name].dropna().unique()
        row[name] = counts[0] if len(counts) else pd.NA
        if len(counts) > 1:
            notes.append(f"its runs differ in {name}: not one variant")
    row |= {"inside_noise": False, "verdict": "", "note": "; ".join(notes)}
    return row


def pooled_sd(comparison: pd.DataFrame) -> float:
    """The root mean square of the spreads of the paired differences; NaN where there are none."""
    spreads = comparison["sd_difference"].dropna()
    return float(np.sqrt((spreads**2).mean())) if len(spreads) else float("nan")


def smallest_visible_effect(sd_of_difference: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a paired t test (two-sided) over `n` seeds finds with probability `power`.

    In the unit of `sd_of_difference`, the spread of the paired difference over seeds (known from earlier
    runs). From the noncentral t distribution (Cohen, "Statistical Power Analysis", 1988); one comparison, so
    with Holm over m comparisons the honest `alpha` is between 0.05 / m and 0.05.

    Raises:
        ValueError: fewer than two seeds, a negative spread, or a probability outside (0, 1).
    """
    if n < 2:
        raise ValueError(f"{n} seeds show no spread: take at least 2")
    if not sd_of_difference >= 0:
        raise ValueError(f"a spread is at least 0, not {sd_of_difference}")
    if not (0 < alpha < power < 1):
        raise ValueError(f"power {power} and alpha {alpha}: 0 < alpha < power < 1 is needed")
    critical = special.stdtrit(n - 1, 1 - alpha / 2)

    def reached(shift: float) -> bool:
        return bool(1 - special.nctdtr(n - 1, shift, critical) >= power)

    low, high = 0.0, 1.0
    while not reached(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(high * sd_of_difference / np.sqrt(n))
