"""What was read of finished runs, kept as Parquet beside them: `grids/frame.parquet`.

A remembered row holds only while the run's files have the sizes and modification times that it was read from, and
while the code that reads them is the same; so it is never stale, and the file can be deleted at any time. It pays
for thousands of runs with their configurations, and on file systems where every file that is opened takes its time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

FILE = "grids/frame.parquet"
_FILES = ("config.json", "result.json", "metrics.jsonl")  # all that the row of a finished run is made from
_HERE = Path(__file__).parent
_ENCODED = b"encoded"  # names of the columns that are kept as JSON, having values of several types


def stamp(folder: str) -> str:
    """Sizes and modification times of the files that a finished run's row is read from."""
    parts = []
    for name in _FILES:
        try:
            found = os.stat(os.path.join(folder, name))
            parts.append(f"{found.st_mtime_ns}:{found.st_size}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def read(root: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The remembered rows with their `hash` and the `stamp` that each was read from; empty where there are none.

    Args:
        columns: these alone; all if None.
    """
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(root / FILE) as file:
            notes = file.schema_arrow.metadata or {}
            if notes.get(b"reader") != _reader():
                return pd.DataFrame()
            encoded = json.loads(notes[_ENCODED])
            table = file.read(None if columns is None else [*columns, "stamp"])
        frame = table.to_pandas()
    except (OSError, ValueError, KeyError):  # none there, torn, or not ours: read anew
        return pd.DataFrame()
    for name in encoded:
        if name in frame:
            values = {text: json.loads(text) for text in frame[name].dropna().unique()}
            frame[name] = frame[name].map(values).astype(object)
    return frame


def write(root: Path, known: pd.DataFrame, fresh: pd.DataFrame, stamps: list[str]) -> None:
    """Keep `fresh` rows, read from files with these `stamps`, beside the `known` ones."""
    if not len(fresh):
        return
    import pyarrow
    import pyarrow.parquet as parquet

    rows = pd.concat([fresh, pd.Series(stamps, fresh.index, name="stamp")], axis=1)
    if len(known):
        rows = pd.concat([known[~known["hash"].isin(rows["hash"])], rows])
    encoded = [name for name in rows.columns if name.startswith("config.") and rows[name].dtype == object]
    for name in encoded:
        rows[name] = rows[name].map(_encode)
    table = pyarrow.Table.from_pandas(rows, preserve_index=False)
    notes = {**(table.schema.metadata or {}), b"reader": _reader(), _ENCODED: json.dumps(encoded).encode()}
    aside = root / f"{FILE}.{os.getpid()}"
    try:
        with suppress(OSError):  # a read-only folder goes without
            parquet.write_table(table.replace_schema_metadata(notes), aside)
            os.replace(aside, root / FILE)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _encode(value: Any) -> str | None:
    return None if isinstance(value, float) and value != value else json.dumps(value)  # NaN: no such key, null: a null


def _reader() -> bytes:
    """Digest of the code that makes the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("cache.py", "folders.py", "frame.py", "latency.py"):
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest().encode()
