"""Is a difference real? Comparison of variants with a base, paired by seed.

Two variants trained from the same seed share initial weights, order and augmentation, so the difference within a seed
varies less than either of them (on Fashion-MNIST 0.16 against 0.53 points). docs/analysis.md says when a difference
counts as real.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np
import pandas as pd

from . import rates
from .frame import Meta, each
from .intervals import crossed, holm, paired, verdicts
from .solving import shares

UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, BadStream)  # what reading a torn file of them raises
COUNTED = ("top1", "accuracy")  # metrics that count right samples, which runs keep
COLUMNS = {
    "variant": "str", "base": "bool", "metric": "str",
    "n": "int64", "failed": "int64", "missing": "int64", "mean": "float64", "sd": "float64",
    "lowest": "float64", "highest": "float64",
    "pairs": "int64", "unpaired": "int64", "difference": "float64", "sd_difference": "float64",
    "low": "float64", "high": "float64", "p": "float64", "p_holm": "float64",
    "low_seeds": "float64", "high_seeds": "float64", "p_seeds": "float64",
    "low_both": "float64", "high_both": "float64", "p_both": "float64",
    "ended": "float64", "solved": "float64", "share_low": "float64", "share_high": "float64", "gain": "float64",
    "mixed": "bool", "p_share": "float64", "solved_at": "float64", "steps": "float64",
    "p_steps": "float64", "p_steps_holm": "float64",
    "test": "str", "verdict": "str",
    "parameters": "Int64", "macs": "Int64", "epochs": "Int64",
    "lr": "float64", "rates": "Int64", "note": "str",
}  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """What the chosen runs of a grid reached.

    Attributes:
        runs: a run of each variant and pair at most, done or not.
        values: the metric of the done ones, one row per variant, one column per pair (seed); NaN where there is none.
        right: which test images each run has right, by its hash, for accuracies whose predictions were kept.
    """

    runs: pd.DataFrame
    values: pd.DataFrame
    right: dict[str, np.ndarray]


def right(runs: Iterable[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Whether each test image is classified right, bool (images,), by the run's hash.

    Runs that kept no predictions, or were tested on other images than the first, are left out.

    Args:
        runs: folder and kind of weights ("raw", "ema") of each.
    """
    found, reference = dict[str, np.ndarray](), None
    for folder, weights in runs:
        try:
            with np.load(Path(folder) / "predictions.npz") as file:
                labels, predicted = file["label"], file[weights]
        except UNREADABLE:
            continue
        if reference is None:
            reference = labels
        if np.array_equal(labels, reference) and predicted.shape == labels.shape:
            found[Path(folder).name] = predicted == labels
    return found


def scores(runs: pd.DataFrame, meta: Meta) -> Scores:
    """The results of a grid, each variant at its best learning rate."""
    metric = meta.metric.name
    chosen = rates.at_best(runs, meta)
    done = chosen[(chosen["state"] == "done") & chosen[metric].notna()]
    values = done.pivot(index="variant", columns="pair", values=metric).reindex(runs["variant"].unique())
    counted = zip(done["folder"], done["weights"], strict=True) if metric in COUNTED else ()
    return Scores(chosen, values, right(counted))


def differences(of: Scores, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """A row for each pair (variant, other): the mean of variant − other over the seeds that both have.

    Columns: `pairs`, how many seeds; `difference` with `sd_difference`; Student's interval `low_seeds` to `high_seeds`
    with `p_seeds`; where predictions were kept, the one over seeds and test images together, `low_both` to `high_both`
    with `p_both`; `low` to `high`, all that the two span, and `p`, the larger one.
    """
    ours, theirs = (of.values.reindex([pair[side] for pair in pairs]).to_numpy(float) for side in (0, 1))
    found = paired(ours, theirs)
    table = pd.DataFrame({"pairs": (~np.isnan(ours - theirs)).sum(1), "difference": found.difference})
    table = table.assign(sd_difference=found.sd, low_seeds=found.low, high_seeds=found.high, p_seeds=found.p)
    both = np.full((len(pairs), 3), np.nan)
    if of.right:
        kept = of.runs[of.runs["hash"].isin(of.right)].set_index(["variant", "pair"])["hash"].to_dict()
        for row, (variant, other) in enumerate(pairs):
            shared = of.values.columns[~np.isnan(ours[row] - theirs[row])]
            keys = [(kept.get((variant, seed), ""), kept.get((other, seed), "")) for seed in shared]
            if not np.isnan(found.p[row]) and all(a and b for a, b in keys):
                both_right = crossed(100 * np.stack([of.right[a].astype(float) - of.right[b] for a, b in keys]))
                both[row] = both_right.low, both_right.high, both_right.p
    table[["low_both", "high_both", "p_both"]] = both
    table["low"] = table[["low_seeds", "low_both"]].min(axis=1)
    table["high"] = table[["high_seeds", "high_both"]].max(axis=1)
    table["p"] = table[["p_seeds", "p_both"]].max(axis=1)
    return table


def compare(runs: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """The variants of one grid against its base: one row per variant, in declared order.

    Where learning rates were tried, each variant has the one that is best on validation data (`rates`).

    Columns: `variant`; `base` (is it?); `metric`; `n` (seeds with a result), `failed` and
    `missing` (running, interrupted or not started) runs;
    `mean`, `sd` (sample spread over seeds), `lowest` and `highest` of the metric; what `differences` says of the
    variant and the base; `unpaired` (results on one side only, dropped); for a task that can be solved, what
    `solving.shares` says; `test`, "t" or "shares": which one `p` is of; `p_holm` and `p_steps_holm`, corrected for all
    declared comparisons; `verdict`, that of `intervals.verdicts`, or "base"; `parameters` and `macs` (folded),
    `epochs`; where learning rates were tried, the variant's `lr` and how many `rates` ended; `note`.
    Accuracies are in percent and their differences in points.

    Args:
        runs, meta: as `frame.load` gives them.
    """
    of = scores(runs, meta)
    variants = [str(name) for name in of.values.index]
    table = pd.DataFrame({"variant": variants, "metric": meta.metric.name}, index=variants)
    table["base"] = table["variant"] == meta.base
    figures = {"n": "count", "mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}
    table = table.assign(**{name: of.values.agg(how, axis=1) for name, how in figures.items()})
    by_variant = of.runs.groupby("variant")
    table["failed"] = (of.runs["state"] == "failed").groupby(of.runs["variant"]).sum().reindex(variants, fill_value=0)
    table["missing"] = by_variant.size().reindex(variants, fill_value=0) - table["n"] - table["failed"]
    table["lr"] = by_variant["lr"].first().reindex(variants)
    for name in ("parameters", "macs", "epochs"):
        table[name] = of.runs[of.runs["state"] == "done"].groupby("variant")[name].first().reindex(variants)
    compared = differences(of, [(name, meta.base) for name in variants]).set_axis(variants)
    compared.loc[table["base"]] = np.nan
    table = table.join(compared)
    table["pairs"] = table["pairs"].fillna(0)
    base_n = table.loc[table["base"], "n"].sum()
    table["unpaired"] = (table["n"] + base_n - 2 * table["pairs"]).where(~table["base"] & (base_n > 0), 0)
    table["test"], table["mixed"] = np.where(table["base"], "", "t"), False
    if meta.metric.solvable:
        table = _shares_decide(table.drop(columns="mixed").join(shares(of.runs, variants, meta.base)))
    if rates.tried(runs):
        ended = runs[runs["state"].isin(["done", "failed"])].groupby("variant")["lr"].nunique()
        table["rates"] = ended.reindex(variants, fill_value=0)
    table["note"] = ["; ".join(_notes(row, runs)) for row in each(table)]
    table = judged(table, meta.metric.sign)
    return table.reset_index(drop=True).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _notes(row: Any, runs: pd.DataFrame) -> Iterator[str]:
    """What a reader must know of a variant's row."""
    if row.pairs > 1 and np.isnan(row.p):
        yield "the same difference at every seed: its spread can't be estimated"
    if row.unpaired and row.n:
        yield f"unpaired results dropped: {row.unpaired:.0f}"
    if rates.tried(runs):
        yield from rates.notes(runs, row.variant, row.lr)


def _shares_decide(table: pd.DataFrame) -> pd.DataFrame:
    """Test the shares where some seeds solved the task and some did not, or where they differ and t has no spread."""
    mixed = table["mixed"] | bool(table.loc[table["base"], "mixed"].any())
    rows = ~table["base"] & (table["pairs"] > 1) & (mixed | (table["p"].isna() & (table["gain"] != 0)))
    table.loc[rows, ["low", "high"]] = np.nan
    table.loc[rows, "p"], table.loc[rows, "test"] = table.loc[rows, "p_share"], "shares"
    return table


def judged(table: pd.DataFrame, sign: int | pd.Series = 1) -> pd.DataFrame:
    """The table with Holm's correction over its rows besides the bases, and their verdicts.

    `sign` is −1 where less is better.
    """
    others = ~table["base"]
    table = table.assign(p_holm=np.nan, p_steps_holm=np.nan)
    for name in ("p", "p_steps"):
        if name in table:
            table.loc[others, f"{name}_holm"] = holm(table.loc[others, name].to_numpy(float))
    better = sign * table["difference"]
    if "gain" in table:
        better = better.where(table["test"] != "shares", table["gain"])
    found = verdicts(table.assign(better=better), "better")
    return table.assign(verdict=np.where(others, found, "base"))


def pooled_sd(comparison: pd.DataFrame) -> float:
    """The root mean square of the spreads of paired differences whose means are tested; NaN where there are none."""
    return float(np.sqrt((comparison.loc[comparison["test"] == "t", "sd_difference"] ** 2).mean()))
