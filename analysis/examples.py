"""What finished runs predicted for each test image: which are right, run by run, on the same images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np

UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, BadStream)  # what reading a torn file of them raises


def right(root: str | Path, runs: Iterable[tuple[str, str]]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Whether each test image is classified right, bool (images,), by the run's hash.

    Args:
        root: the folder of the runs.
        runs: hash and kind of weights ("raw", "ema") of each.

    Returns:
        By hash, leaving out runs that kept no predictions or were tested on other images than the first; and the
        labels, None where there is no run.
    """
    found, reference = dict[str, np.ndarray](), None
    for key, weights in runs:
        try:
            with np.load(Path(root) / key / "predictions.npz") as file:
                labels, predicted = file["label"], file[weights]
        except UNREADABLE:
            continue
        if reference is None:
            reference = labels
        if np.array_equal(labels, reference) and predicted.shape == labels.shape:
            found[key] = predicted == labels
    return found, reference
