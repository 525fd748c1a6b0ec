"""What finished runs predicted for each test image: which are right, run by run, on the same images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np

UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, BadStream)  # what reading a torn file of them raises


def right(runs: Iterable[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Whether each test image is classified right, bool (images,), by the run's hash.

    Runs that kept no predictions, or were tested on other images than the first, are left out.

    Args:
        runs: folder and kind of weights ("raw", "ema") of each.
    """
    found, reference = dict[str, np.ndarray](), None
    for folder, weights in runs:
        try:
            with np.load(Path(folder) / "predictions.npz") as file:
                labels, predicted = file["label"], file[weights]
        except UNREADABLE:
            continue
        if reference is None:
            reference = labels
        if np.array_equal(labels, reference) and predicted.shape == labels.shape:
            found[Path(folder).name] = predicted == labels
    return found
