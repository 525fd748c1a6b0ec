"""Latencies as a frame: those measured beside the runs, and the published ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from metamixer.latency.imports import read_csv
from metamixer.latency.rows import COLUMNS, FILE, SCHEMA

# rows that differ in any of these are not compared
SETTING = ("runtime", "version", "precision", "threads", "compute_units", "batch", "device", "os")
IDENTITY = ("network", "resolution", *SETTING)
_KINDS: dict[str, Any] = {"str": str, "Int64": int, "float64": int | float, "boolean": bool}
_PUBLISHED = Path(__file__).parent / "published_latency.csv"

Json = dict[str, Any]


def load(root: str | Path, with_published: bool = True) -> pd.DataFrame:
    """What is known of latencies beside the runs in `root`, and what was published; columns are `COLUMNS`.

    Lines that can't be read are counted in `frame.attrs["left_out"]`.
    """
    rows, left_out = [], []
    path = Path(root) / FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if row["schema"] != SCHEMA:
                raise ValueError
            _check(row)
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            left_out.append(f"{FILE}: line {number} is torn, or of another version")
    measured = to_frame(rows).drop_duplicates(list(IDENTITY), keep="last")
    found = pd.concat([published(), measured], ignore_index=True) if with_published else measured
    found = found.reset_index(drop=True)
    found.attrs["left_out"] = left_out
    return found


def _check(row: Json) -> None:
    """Refuse what `COLUMNS` can't hold: one such row would cost all the others."""
    for name, kind in COLUMNS.items():
        value = row.get(name)
        if value is not None and not isinstance(value, _KINDS[kind]):
            raise TypeError
        if kind == "Int64" and value is not None and not 0 <= value < 2**63:
            raise ValueError
    if not 0 < row["median_ms"] < math.inf:
        raise ValueError


def published() -> pd.DataFrame:
    """Latencies from papers, as rows: FFNet on an iPhone 12; costs as `metamixer.cost` counts them."""
    return to_frame(read_csv(_PUBLISHED))


def to_frame(rows: Iterable[Json]) -> pd.DataFrame:
    """Rows as a frame with `COLUMNS`; what a row does not say is missing there."""
    texts = {name for name, kind in COLUMNS.items() if kind == "str"}
    full = [{name: row.get(name) or "" if name in texts else row.get(name) for name in COLUMNS} for row in rows]
    return pd.DataFrame.from_records(full, columns=list(COLUMNS)).astype(COLUMNS)


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
