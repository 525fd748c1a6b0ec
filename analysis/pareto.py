"""Which networks no other one beats in accuracy and cost; latencies beside accuracies."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

LATENCY = "latency_ms["  # in front of a column of latencies: runtime, threads or units, precision, device


def front(costs: np.ndarray, values: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Indices of the points that no other one beats: none is as cheap and better, or as good and cheaper."""
    costs, values = np.asarray(costs, float), np.asarray(values, float) * (1 if higher_is_better else -1)
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


def latencies(comparison: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Texts, one row per variant: its verdict in accuracy, and on each backend its median in ms and times the base's.

    Args:
        runs: the grid's, with the latencies that `frame.load` joins.
    """
    table = comparison[["variant", "verdict"]].copy()
    base = comparison["base"].to_numpy()
    for column in backends(runs):
        medians = comparison["variant"].map(runs.groupby("variant")[column].median())
        ratios = medians / (medians[base].iloc[0] if base.any() else np.nan)
        table[backend(column)] = [
            "–" if np.isnan(ms) else f"{ms:.3g} ms" + ("" if np.isnan(ratio) else f", {ratio:.2f}×")
            for ms, ratio in zip(medians, ratios, strict=True)
        ]
    return table
