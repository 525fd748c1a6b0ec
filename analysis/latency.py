"""Latencies as a frame: those measured beside the runs, and the published ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from metamixer.latency.imports import read_csv
from metamixer.latency.rows import Row, read

log = logging.getLogger(__name__)

COLUMNS = {
    "network": "str", "name": "str", "resolution": "Int64", "batch": "Int64", "device": "str", "os": "str",
    "runtime": "str", "version": "str", "precision": "str", "threads": "Int64", "compute_units": "str",
    "median_ms": "float64", "iqr_ms": "float64", "sessions": "Int64", "spread_ms": "float64", "quiet": "boolean",
    "parameters": "Int64", "macs": "Int64", "activations": "Int64", "moved": "Int64", "source": "str",
}  # of `Row`, all but the samples  # fmt: skip
# rows that differ in any of these are not compared
SETTING = ("runtime", "version", "precision", "threads", "compute_units", "batch", "device", "os")
_PUBLISHED = Path(__file__).parent / "published_latency.csv"


def load(root: str | Path, report: Callable[[str], object] = log.warning) -> pd.DataFrame:
    """Latencies measured beside the runs in `root`; columns are `COLUMNS`.

    `report` is called with a line for each row that can't be read.
    """
    rows = to_frame(read(root, report))
    return rows.drop_duplicates(["network", "resolution", *SETTING], keep="last").reset_index(drop=True)


def published() -> pd.DataFrame:
    """Latencies from papers, as rows: FFNet on an iPhone 12; costs as `metamixer.cost` counts them."""
    return to_frame(read_csv(_PUBLISHED))


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a frame with `COLUMNS`."""
    values = [[getattr(row, name) for name in COLUMNS] for row in rows]
    return pd.DataFrame.from_records(values, columns=list(COLUMNS)).astype(COLUMNS)


def ways(rows: pd.DataFrame) -> pd.Series:
    """How each row was timed: its runtime, and behind it what else of `SETTING` the rows of that runtime differ in."""
    labels = rows["runtime"].astype(str)
    for name in SETTING[1:]:
        differ = rows.groupby("runtime")[name].transform("nunique", dropna=False) > 1
        labels = labels.where(~differ, labels + ", " + rows[name].map(lambda value, name=name: _said(name, value)))
    return labels


def _said(name: str, value: Any) -> str:
    what = name.replace("_", " ")
    if pd.isna(value) or value == "":
        return f"{what} unknown"
    if name == "threads":
        return f"{value} thread" + ("" if value == 1 else "s")
    return f"{what} {value}" if name == "batch" else str(value)
