"""Is a difference real? Comparison of variants with a base, paired by seed.

Two variants trained from the same seed share initial weights, order and augmentation, so the difference
within a seed varies less than either of them (on Fashion-MNIST 0.16 against 0.53 points). Each comparison has
Student's interval over seeds; where the runs kept their predictions, one over seeds and test images together as well,
as the test split is a sample too. A difference counts as real only if it stands in both, corrected by Holm's
procedure for all comparisons that the grid declared: its variants with its base, in its metric. Everything else is
exploratory, and is at most a hint.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import rates
from .examples import right
from .frame import one_grid
from .intervals import (
    CONFIDENCE,
    Paired,
    crossed,
    false_positives,
    holm,
    paired,
    smallest_visible_effect,
)
from .rates import Rate

__all__ = [
    "CONFIDENCE",
    "VERDICTS",
    "Paired",
    "Rate",
    "compare",
    "crossed",
    "declared",
    "explore",
    "false_positive_rate",
    "false_positives",
    "holm",
    "paired",
    "pooled_sd",
    "smallest_visible_effect",
]

# What a row of a comparison says, from clear to unknown; a "hint" is outside its own intervals, but doesn't
# stand after Holm's correction, or wasn't declared. Only "above" and "below" name a direction.
VERDICTS = ("base", "above", "below", "hint", "inside noise", "no spread", "too few pairs")


def compare(runs: pd.DataFrame, metric: str = "top1", rate: Rate = "fixed") -> pd.DataFrame:
    """The variants of one grid against its base: a row a variant, in declared order.

    Columns: `variant`; `base` (is it?); `metric`; `exploratory` (not the grid's own metric: nothing is more than a
    hint); `n` (seeds with a result), `failed` and `missing` (running, interrupted, not started or unreadable) runs;
    `mean` and `sd` (sample spread over seeds) of the metric; over the seeds that variant and base both have: `pairs`,
    `unpaired` (results on one side only, dropped), `difference` to the base with `sd_difference`; Student's interval
    over seeds `low_seeds` to `high_seeds` with `p_seeds`; where predictions were kept, the one over seeds and test
    images together, `low_both` to `high_both` with `p_both`; `low` to `high`, all that the two span, and `p`, the
    larger one: what verdicts rest on; `p_holm`, p corrected for all declared comparisons; `inside_noise` (the interval
    contains 0, or there is none: fewer than two pairs, or pairs without spread); `verdict`, one of `VERDICTS`;
    `parameters` and `macs` (folded), `epochs`; where learning rates were tried, which `rate` was asked for, the
    variant's `lr` and how many `rates` ended; `note`. Accuracies are in percent and their differences in points.

    Args:
        runs: as `frame.load` gives them.
        metric: a column of figures.
        rate: where a set of learning rates was tried, the recipe's own or each variant's best on validation data.

    Raises:
        ValueError: several grids or data sets in one frame, or no such metric.
    """
    numeric = [name for name in runs.columns if pd.api.types.is_float_dtype(runs[name])]
    if metric not in numeric:
        raise ValueError(f"no metric {metric!r}; the runs have {', '.join(numeric)}")
    one_grid(runs)
    chosen = rates.at(runs, rate)
    groups = _by_variant(runs, chosen, metric)
    correct = _correct(runs, chosen, metric)
    base = next((_by_pair(group) for group in groups.values() if any(run.base for run in group)), None)
    rows = [_row(variant, group, base, correct) | {"metric": metric} for variant, group in groups.items()]
    if rates.tried(runs):
        tested = runs[runs["state"].isin(["done", "failed"])].groupby("variant")["lr"].nunique()
        for row in rows:
            row["rate"] = rate
            row["rates"] = int(tested.get(row["variant"], 0))
            if rate == "best" and not np.isnan(row["lr"]):
                row["note"] = "; ".join([*filter(None, [row["note"]]), *rates.notes(runs, row["variant"], row["lr"])])
    if _about(runs).get("aa"):
        share, number = false_positive_rate(runs, metric)
        said = (
            f"A/A: of random splits of its {number} runs into two, {share:.1%} are called different, 5 % are expected"
        )
        rows[-1]["note"] = "; ".join(filter(None, [rows[-1]["note"], said if number > 3 else ""]))
    table = pd.DataFrame([{"rate": "", **row} for row in rows], columns=list(_COLUMNS)).astype(_COLUMNS)
    table["exploratory"] = metric != (_about(runs).get("metric") or "top1")
    return _judged(table)


def declared(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The comparisons that a grid declared: at the recipe's learning rate, then, where a set of them was tried and
    there is validation data to choose by, at each variant's best."""
    both = rates.tried(runs) and bool(runs["val_top1"].notna().any())
    return [compare(runs), *([compare(runs, rate="best")] if both else [])]


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what follows from its intervals: Holm's p, what is inside the noise, and the verdicts."""
    table["p_holm"] = holm(table["p"].to_numpy(), int((~table["base"]).sum()))
    table["inside_noise"] = ~table["base"] & ~((table["low"] > 0) | (table["high"] < 0))
    clear = (table["p_holm"] < 1 - CONFIDENCE).to_numpy() & ~table["exploratory"].to_numpy()
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


_COUNTS = ("parameters", "macs", "epochs")
_COLUMNS = {
    "variant": "str",
    "base": "bool",
    "metric": "str",
    "exploratory": "bool",
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
    "low_seeds": "float64",
    "high_seeds": "float64",
    "p_seeds": "float64",
    "low_both": "float64",
    "high_both": "float64",
    "p_both": "float64",
    "inside_noise": "bool",
    "verdict": "str",
    "parameters": "Int64",
    "macs": "Int64",
    "epochs": "Int64",
    "rate": "str",
    "lr": "float64",
    "rates": "Int64",
    "note": "str",
}


def _about(runs: pd.DataFrame) -> dict[str, Any]:
    """What the manifest says of the grid besides its runs."""
    return (runs.attrs.get("grids") or [{}])[0]


class _Run(NamedTuple):
    """What a comparison looks at in a run; a missing number is NaN."""

    base: bool
    pair: int
    hash: str
    state: str
    value: float  # of the metric
    lr: float
    parameters: float
    macs: float
    epochs: float


Values = dict[int, tuple[float, str]]  # by pair: the metric, and the run's hash


def _by_variant(runs: pd.DataFrame, chosen: pd.DataFrame, metric: str) -> dict[str, list[_Run]]:
    """The chosen runs by variant, in declared order; plain tuples, as pandas takes seconds for thousands of groups."""
    columns = [chosen[name].tolist() for name in ("base", "pair", "hash", "state")]
    columns += [chosen[name].astype("float64").tolist() for name in (metric, "lr", *_COUNTS)]
    groups: dict[str, list[_Run]] = {str(variant): [] for variant in runs["variant"].unique()}
    for variant, *values in zip(chosen["variant"], *columns, strict=True):
        groups[str(variant)].append(_Run(*values))
    return groups


def _by_pair(group: list[_Run]) -> Values:
    return {int(run.pair): (run.value, run.hash) for run in group if run.state == "done" and run.value == run.value}


def _correct(runs: pd.DataFrame, chosen: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """Which test images each run has right, by hash, for accuracies whose predictions were kept."""
    kinds = {"top1": None, "top1_raw": "raw", "top1_ema": "ema"}
    if metric not in kinds or "root" not in runs.attrs:
        return {}
    done = chosen[chosen["state"] == "done"]
    weights = [kinds[metric] or str(kind) for kind in done["weights"]]
    return right(runs.attrs["root"], zip(done["hash"], weights, strict=True))[0]


def _row(variant: str, group: list[_Run], base: Values | None, correct: dict[str, np.ndarray]) -> dict[str, Any]:
    own = _by_pair(group)
    values = np.array([value for value, _ in own.values()])
    failed = sum(run.state == "failed" for run in group)
    row: dict[str, Any] = {
        "variant": variant,
        "base": any(run.base for run in group),
        "exploratory": False,
        "n": len(values),
        "failed": failed,
        "missing": len(group) - len(values) - failed,
        "mean": values.mean() if len(values) else np.nan,
        "sd": values.std(ddof=1) if len(values) > 1 else np.nan,
        "pairs": 0,
        "unpaired": 0,
        "lr": group[0].lr if group else np.nan,
    }
    notes: list[str] = []
    if not row["base"] and base is not None:
        both = [pair for pair in own if pair in base]
        row |= _difference([own[pair] for pair in both], [base[pair] for pair in both], correct, notes)
        row["unpaired"] = len(own) + len(base) - 2 * len(both)
        if row["unpaired"] and len(own):
            notes.append(f"unpaired results dropped: {row['unpaired']}")
    finished = [run for run in group if run.state == "done"]
    for name in _COUNTS:
        found = [getattr(run, name) for run in finished]
        counts = list(dict.fromkeys(int(count) for count in found if count == count))
        row[name] = counts[0] if counts else pd.NA
        if len(counts) > 1:
            notes.append(f"its runs differ in {name}: not one variant")
    row |= {"inside_noise": False, "verdict": "", "note": "; ".join(notes)}
    return row


def _difference(
    ours: list[tuple[float, str]], theirs: list[tuple[float, str]], correct: dict[str, np.ndarray], notes: list[str]
) -> dict[str, Any]:
    a, b = (np.array([value for value, _ in side]) for side in (ours, theirs))
    found = paired(a, b)
    low, high, p = float(found.low), float(found.high), float(found.p)
    row: dict[str, Any] = {"pairs": len(a), "difference": float(found.difference), "sd_difference": float(found.sd)}
    row |= {"low_seeds": low, "high_seeds": high, "p_seeds": p, "low": low, "high": high, "p": p}
    if len(a) < 2:
        return row
    if np.isnan(p):
        notes.append("the same difference at every seed: its spread can't be estimated")
        return row
    keys = [(x, y) for (_, x), (_, y) in zip(ours, theirs, strict=True)]
    if all(x in correct and y in correct for x, y in keys):
        images = np.stack([correct[x].astype(np.int8) - correct[y] for x, y in keys])
        both = crossed(100 * images.astype(float))
        row |= {"low_both": float(both.low), "high_both": float(both.high), "p_both": float(both.p)}
        row |= {"low": min(low, row["low_both"]), "high": max(high, row["high_both"]), "p": max(p, row["p_both"])}
    return row


def explore(runs: pd.DataFrame, metric: str = "top1", rate: Rate = "fixed") -> pd.DataFrame:
    """Every pair of variants that the grid did not declare, the base left out: exploratory, not corrected, no winner.

    Columns: `variant`, `other`, `pairs`, `difference` (variant − other) with the interval `low` to `high` over seeds,
    and `verdict`: "hint" where it excludes 0, else "inside noise", "no spread" or "too few pairs".

    Raises:
        ValueError: as `compare`.
    """
    one_grid(runs)
    chosen = rates.at(runs, rate)
    groups = {
        variant: _by_pair(group)
        for variant, group in _by_variant(runs, chosen, metric).items()
        if group and not any(run.base for run in group)
    }
    rows = []
    for (name, own), (other, theirs) in itertools.combinations(groups.items(), 2):
        both = [pair for pair in own if pair in theirs]
        found = paired(np.array([own[p][0] for p in both]), np.array([theirs[p][0] for p in both]))
        low, high = float(found.low), float(found.high)
        unknown = "too few pairs" if len(both) < 2 else "no spread"
        verdict = unknown if np.isnan(low) else "hint" if low > 0 or high < 0 else "inside noise"
        rows.append((name, other, len(both), float(found.difference), low, high, verdict))
    return pd.DataFrame(rows, columns=["variant", "other", "pairs", "difference", "low", "high", "verdict"])


def false_positive_rate(runs: pd.DataFrame, metric: str = "top1") -> tuple[float, int]:
    """Of an A/A grid: the share of random splits of its runs that is called different, and the number of runs."""
    one_grid(runs)
    values = runs.loc[(runs["state"] == "done"), metric].dropna().to_numpy()
    return false_positives(values), len(values)


def pooled_sd(comparison: pd.DataFrame) -> float:
    """The root mean square of the spreads of the paired differences; NaN where there are none."""
    spreads = comparison["sd_difference"].dropna()
    return float(np.sqrt((spreads**2).mean())) if len(spreads) else float("nan")
