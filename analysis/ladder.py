"""What each step of a ladder changed: a variant against the one that it builds on, paired by seed.

`statistics.compare` asks what differs from the base; this asks which step did it. The steps are a family of
comparisons of their own, and Holm's correction is over them.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .frame import Meta, each, one_grid
from .intervals import CONFIDENCE, holm
from .statistics import compare
from .tables import absent, interval, plural, signed, value


def steps(runs: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """A row a variant besides the base, in declared order.

    Columns: `variant`; `on`, what it builds on; `rung`, whether it belongs to the ladder, the longest row of variants
    from the base in which each builds on the one before; `mean` and `mean_on` over all their seeds; `pairs`,
    `difference`, `low`, `high`, `p`, `p_holm` and `verdict` of the step, as in `statistics.compare`.

    Raises:
        ValueError: several grids or data sets in one frame.
    """
    one_grid(runs)
    bases = runs.loc[runs["base"], "variant"]
    base = str(bases.iloc[0]) if len(bases) else ""
    parents = {row.variant: row.on if isinstance(row.on, str) else base for row in each(runs) if row.variant != base}
    rungs = _longest(base, parents)
    rows = []
    for variant, on in parents.items():
        both = runs[runs["variant"].isin([on, variant])]
        compared = compare(both.assign(base=both["variant"] == on), metric).set_index("variant")
        row = {"variant": variant, "on": on, "rung": variant in rungs, "mean_on": math.nan}
        if on in compared.index:
            row["mean_on"] = compared.loc[on, "mean"]
        rows.append(row | compared.loc[variant, ["mean", "pairs", "difference", "low", "high", "p"]].to_dict())
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table["rung"] = table["rung"].astype(bool)  # of no rows pandas can't tell
    table["p_holm"] = holm(table["p"].to_numpy(float))
    noise = ~((table["low"] > 0) | (table["high"] < 0))
    table["verdict"] = np.select(
        [table["pairs"] < 2, table["low"].isna(), noise, ~(table["p_holm"] < 1 - CONFIDENCE), table["difference"] > 0],
        ["too few pairs", "no spread", "inside noise", "hint", "above"],
        "below",
    )
    return table


_COLUMNS = ["variant", "on", "rung", "mean", "mean_on", "pairs", "difference", "low", "high", "p"]


def _longest(base: str, parents: dict[str, str]) -> set[str]:
    best: list[str] = []
    for end in parents:
        road = [end]
        while road[-1] in parents and len(road) <= len(parents):
            road.append(parents[road[-1]])
        if road[-1] == base and len(road) > len(best):
            best = road
    return set(best) - {base}


def conclusion(table: pd.DataFrame, comparison: pd.DataFrame, meta: Meta) -> str:
    """What the steps say, computed from them: a few sentences, one a line; no direction inside the noise.

    Args:
        comparison: the same runs against their base, as `statistics.compare` gives it: which of them are missing.
    """
    lines = absent(comparison)
    if not table["pairs"].any():
        why = "no step has finished runs on both of its sides"
        return "\n".join([f"No conclusion for {meta.grid} on {meta.data}: {why}.", *lines])
    said = []
    for verdict, words in (("above", "Gained beyond the noise"), ("below", "Lost beyond the noise")):
        chosen = table[table["verdict"] == verdict]
        said += [f"{words}: {_listed(chosen, meta)}."] if len(chosen) else []
    judged = int((~table["verdict"].isin(["no spread", "too few pairs"])).sum())
    if not said and judged:
        judgeable = plural(judged, "step") + (" that can be judged" if judged < len(table) else "")
        said.append(f"None of {judgeable} changed anything beyond the noise after Holm's correction.")
    for verdict, words in (
        ("hint", f"Hints, but not after correction for {len(table)} steps"),
        ("inside noise", "Inside the noise"),
        ("no spread", "The same at every seed, so without an interval"),
        ("too few pairs", "Not to be judged, fewer than two pairs"),
    ):
        chosen = table[table["verdict"] == verdict]
        said += [f"{words}: {_listed(chosen, meta)}."] if len(chosen) else []
    rungs = table[table["rung"]]
    if len(rungs) > 1 and rungs["difference"].notna().all():
        first, last = rungs.iloc[0], rungs.iloc[-1]
        said.append(
            f"From {first['on']} ({value(first['mean_on'], meta)}) to {last['variant']} ({value(last['mean'], meta)}): "
            f"{signed(last['mean'] - first['mean_on'], meta, unit=True)} in {plural(len(rungs), 'step')}."
        )
    return "\n".join([*lines, *said] if comparison["missing"].any() else [*said, *lines])


def _listed(chosen: pd.DataFrame, meta: Meta) -> str:
    parts = []
    for row in each(chosen):
        if np.isnan(row.difference):
            parts.append(f"{row.on} → {row.variant} (no pair)")
            continue
        around = "" if np.isnan(row.low) else f" {interval(row.low, row.high, meta)}"
        parts.append(f"{row.on} → {row.variant} {signed(row.difference, meta, unit=True)}{around}")
    return "; ".join(parts)
