"""Rows of latencies: what one says, and the file that they are kept in beside the runs.

A row always names its device, system, runtime and version, threads, precision, batch and resolution. The file,
`latency.jsonl` in the runs' folder, is only ever appended to; of several measurements of one thing the last counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
