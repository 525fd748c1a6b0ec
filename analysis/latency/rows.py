"""Rows of latencies: what one says, the file that they are kept in beside the runs, and the published ones.

A row always names its device, system, runtime and version, threads, precision, batch and resolution. The file,
`latency.jsonl` in the runs' folder, is only ever appended to; of several measurements of one thing the last counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

FILE = "latency.jsonl"
SCHEMA = 1  # of the rows and of the configurations that keys are made from
COLUMNS = {
    "network": "str",  # `network_key`
    "name": "str",  # what it was called: a timm model, a variant
    "resolution": "Int64",  # pixels
    "batch": "Int64",
    "device": "str",
    "os": "str",
    "runtime": "str",  # a backend's name, or Core ML
    "version": "str",
    "precision": "str",
    "threads": "Int64",  # <NA> where the runtime decides
    "compute_units": "str",
    "median_ms": "float64",  # of the sessions' medians
    "iqr_ms": "float64",  # interquartile range of all samples
    "sessions": "Int64",  # fresh processes
    "spread_ms": "float64",  # between the sessions' medians, 10th to 90th percentile; NaN for fewer than three
    "quiet": "boolean",  # whether the spread is small; <NA> where it isn't known
    "parameters": "Int64",  # these four of the folded network, for one image (`metamixer.cost`)
    "macs": "Int64",
    "activations": "Int64",
    "moved": "Int64",
    "source": "str",  # measured, an imported file's name, or a paper
}
# rows that differ in any of these are not compared
SETTING = ("runtime", "version", "precision", "threads", "compute_units", "batch", "device", "os")
IDENTITY = ("network", "resolution", *SETTING)
_KINDS: dict[str, Any] = {"str": str, "Int64": int, "float64": int | float, "boolean": bool}
_PUBLISHED = Path(__file__).parent / "published.csv"

Json = dict[str, Any]


def network_key(
    model: Json, channels: int, image_size: int, num_classes: int, modules: Iterable[Json] | None = None
) -> str:
    """What tells networks apart: 16 hexadecimal digits of the values that a network is built from, no weights.

    `model` and `modules` (of the user's own operations, by what they hold) are those of a run's config.json; equal to
    `metamixer.config.digest_of` the values. A timm model's key is its name instead.
    """
    parts = {"model": model, "channels": channels, "image_size": image_size, "num_classes": num_classes}
    if modules:
        parts["modules"] = [module["digest"] for module in modules]
    content = json.dumps({"schema": SCHEMA, "config": parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


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
    from .imports import read_csv

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


def append(root: str | Path, rows: Iterable[Json]) -> Path:
    """Keep rows beside the runs; several processes may do so at once. Returns the file.

    Raises:
        ValueError: the folder can't be written.
    """
    path = Path(root) / FILE
    text = "".join(json.dumps({"schema": SCHEMA, **row}) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # across the machines of an NFS too; the kernel frees it
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a line torn by a kill stays alone
                    text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{path}: cannot write here ({error.strerror or error})") from None
    return path
