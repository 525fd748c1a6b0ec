"""JSON lines: files that several processes add rows to, and that a kill at any moment leaves readable."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def append(path: Path | str, *rows: Any) -> None:
    """Add rows, each a line, and wait until they are on the disk; one process writes at a time."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill tore the last row, which must not take this one along
                text = b"\n" + text
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(
    path: Path | str, make: Callable[[Any], Any] = dict, report: Callable[[str], object] = log.warning
) -> list[Any]:
    """The rows of a file, in order; none if there is no such file.

    Args:
        make: what a row becomes; it raises ValueError, TypeError or KeyError for a row that it does not know.
        report: called with the file, the line and the reason for each row that is torn or that `make` refuses. The
            others are read all the same.

    Raises OSError: the file can't be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            lines = file.readlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(make(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            reason = "not a whole row" if isinstance(error, json.JSONDecodeError) else f"{error}"
            report(f"{path}:{number}: row left out ({' '.join(reason.split())})")
    return rows
