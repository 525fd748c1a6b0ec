"""Latencies as a table, one row per network and one column per runtime, and which measure of cost ranks them.

Ranks are given only as far as the spread lets them be told.
"""

from __future__ import annotations

import math

import pandas as pd

from metamixer.metric import readable

from .frame import each
from .intervals import spearman
from .latency import SETTING, ways
from .tables import Table, plural

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
    interval is that of `intervals.spearman`.
    """
    found = []
    folded = rows[~rows["network"].str.endswith(" unfolded")]
    for runtime, group in folded.groupby(ways(folded), sort=False):
        group = group.drop_duplicates(["network", "resolution"], keep="last")
        for measure, column in MEASURES.items():
            known = group[group[column].notna()]
            r, low, high, _ = spearman(known[column].to_numpy(float), known["median_ms"].to_numpy(float))
            found.append((runtime, measure, len(known), r, low, high))
    return pd.DataFrame(found, columns=["runtime", "measure", "n", "spearman", "low", "high"])


def ranks(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """The ranks that each of the rows may have, from 1 for the fastest.

    Two rows are told apart if they differ by more than half of both spreads; where a spread is unknown, never.
    """
    half = (rows["spread_ms"].astype(float) / 2).fillna(math.inf)
    low, high = rows["median_ms"] - half, rows["median_ms"] + half
    return [(1 + int((high < of).sum()), len(rows) - int((low > to).sum())) for of, to in zip(low, high, strict=True)]


def pivot(rows: pd.DataFrame) -> pd.DataFrame:
    """Texts, one row per network at a resolution: costs, then median, spread and rank on each runtime.

    A runtime that was timed in several ways (devices, threads, ...) has a column for each; ranks are within a column.
    """
    rows = rows.assign(runtime=ways(rows))
    cells: dict[tuple[str, int], dict[str, str]] = {}
    runtimes = list(dict.fromkeys(rows["runtime"]))
    for runtime in runtimes:
        of_one = rows[rows["runtime"] == runtime].drop_duplicates(["network", "resolution"], keep="last")
        for row, (first, last) in zip(each(of_one), ranks(of_one), strict=True):
            costs = {"params": readable(row.parameters), "MACs": readable(row.macs)}
            about = {"network": row.name, "px": str(row.resolution), **costs}
            spread = "–" if math.isnan(row.spread_ms) else f"{100 * row.spread_ms / row.median_ms:.1f} %"
            loud = " noisy" if not pd.isna(row.quiet) and not row.quiet else ""
            rank = f"{first}" if first == last else f"{first}–{last}"
            text = f"{_ms(row.median_ms)} ({spread}{loud}) {rank}"
            cells.setdefault((row.network, row.resolution), about)[runtime] = text
    return pd.DataFrame(list(cells.values()), columns=["network", "px", "params", "MACs", *runtimes]).fillna("–")


def notes(rows: pd.DataFrame) -> list[str]:
    """What a reader must know to read the table, a line each."""
    lines = [
        "Median ms a batch (spread of the sessions' medians, 10th to 90th percentile, as a share of it), then the "
        "rank: networks whose bands overlap share ranks."
    ]
    for _, group in rows.groupby(list(SETTING), dropna=False, sort=False):
        one = next(each(group))
        parts = [one.version or "version unknown", one.precision or "precision unknown", one.compute_units]
        parts += [] if pd.isna(one.threads) else [plural(one.threads, "thread")]
        parts += [f"batch {one.batch}", one.device, one.os]
        if sessions := sorted(set(group["sessions"].dropna())):
            least = "" if len(sessions) == 1 else f"{sessions[0]} to "
            parts.append(least + plural(sessions[-1], "session"))
        lines.append(f"{one.runtime}: {', '.join(parts)}.")
    if (~rows["quiet"].fillna(True)).any():
        lines.append("Noisy: the spread stays above 5 %, even after more sessions.")
    return lines


def render(rows: pd.DataFrame) -> Table:
    """The rows as a table, with what a reader must know to read it."""
    return Table(pivot(rows), notes=notes(rows))


def _ms(value: float) -> str:
    return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"
