"""Which networks no other one beats in accuracy and cost, and what that says about latency."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from .frame import Meta, each
from .tables import about, interval, plural, signed

LATENCY = "latency_ms["  # in front of a column of latencies: runtime, threads or units, precision, device


def front(costs: np.ndarray, values: np.ndarray, rises: bool = True) -> np.ndarray:
    """Indices of the points that no other one beats: none is as cheap and better, or as good and cheaper."""
    costs, values = np.asarray(costs, float), np.asarray(values, float) * (1 if rises else -1)
    cheaper, better = costs[:, None] >= costs, values[:, None] <= values
    strictly = (costs[:, None] > costs) | (values[:, None] < values)
    return np.flatnonzero(~(cheaper & better & strictly).any(1))


def backend(column: str) -> str:
    """A column of latencies in words."""
    return column.removeprefix(LATENCY).removesuffix("]")


def backends(table: pd.DataFrame) -> list[str]:
    """The columns of latencies that hold any."""
    return [name for name in table.columns if name.startswith(LATENCY) and table[name].notna().any()]


def published_name(row: Any) -> str:
    """A published network's name, without its patch and image size, unless they tell one FFNet from another."""
    name = re.sub(r"_patch.*|_p16|_rw(?=_|$)|_\d{3}$", "", row.variant.partition(".")[0])
    size = f" {row.resolution} px" if name.startswith("ffnet") and row.resolution != 256 else ""
    return name + size + (", distilled" if row.distilled else "")


def conclusion(comparison: pd.DataFrame, meta: Meta, runs: pd.DataFrame, published: pd.DataFrame) -> str:
    """What latencies say, computed: the published front, and which variants are faster without a visible loss.

    Args:
        runs: the grid's, with the latencies that `frame.load` joins.
        published: `published.published`.
    """
    meta, lines = about(comparison, meta), []
    for column in backends(published):
        rows = published.dropna(subset=[column, "top1"]).reset_index(drop=True)
        on_front = rows.loc[front(rows[column].to_numpy(), rows["top1"].to_numpy())].sort_values(column)
        named = "; ".join(
            f"{published_name(row)} {row.top1:.1f} % at {ms:.3g} ms"
            for row, ms in zip(each(on_front), on_front[column], strict=True)
        )
        lines.append(f"Published, {backend(column)}, {plural(len(rows), 'figure')} without seeds; the front: {named}.")
    measured = backends(runs)
    if not measured:
        return "\n".join(
            [*lines, f"No latency of {meta.grid} on {meta.data} lies beside the runs: nothing to conclude."]
        )
    for column in measured:
        medians = runs.groupby("variant")[column].median()
        base = medians.get(meta.base, np.nan)
        if np.isnan(base):
            lines.append(f"{backend(column)}: the base {meta.base} was not measured, so nothing is compared.")
            continue
        rows = comparison[~comparison["base"] & ~(comparison["high"] < 0)]
        faster = [
            f"{row.variant} {medians[row.variant] / base:.2f}× its time, {_accuracy(row, meta)}"
            for row in each(rows)
            if medians.get(row.variant, np.inf) < base
        ]
        said = "; ".join(faster) or "none"
        lines.append(
            f"{backend(column)}: {meta.base} takes {base:.3g} ms. Faster, and not below it in accuracy beyond the noise"
            f" (which is no proof of equal accuracy): {said}."
        )
    if len(measured) > 1:
        lines.append(f"{len(measured)} ways of running were measured; they need not rank networks alike.")
    return "\n".join(lines)


def _accuracy(row: Any, meta: Meta) -> str:
    if np.isnan(row.difference):
        return "no accuracy yet"
    around = "" if np.isnan(row.low) else f" {interval(row.low, row.high, meta)}"
    return f"{signed(row.difference, meta, unit=True)}{around}, {row.verdict}"
