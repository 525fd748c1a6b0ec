"""One session: a process that loads a runtime's networks, compares each with eager, and times them in shuffled rounds.

`measure` starts it with a job on its standard input, and reads a line of JSON for each thing that it has done.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import plugins
from .runtimes import RUNTIMES

VISIT_MS = 60.0  # a network is timed about so long before it is the next one's turn
CALLS = (3, 20)
TOLERANCE = 1e-3  # how far scores may be from eager's, as a share of the largest


def run(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Do a job.

    Args:
        job: `runtime`, `threads`, `rounds`, `seed`, `folder` with copies of users' `modules` (name and digest of each),
            and `models`: for each its `path`, `image` and `reference` (arrays on the disk).

    Yields:
        `model` (an index) with `samples` in ms, or with `refused`, the reason.
    """
    runtime = RUNTIMES[job["runtime"]]()
    for name, digest in job["modules"]:
        plugins.load_copy(Path(job["folder"]), name, digest)
    loaded, calls = {}, {}
    for index, model in enumerate(job["models"]):
        image, reference = np.load(model["image"]), np.load(model["reference"])
        found = runtime.load(Path(model["path"]), image, job["threads"])
        if why := difference(found.scores(found.call()), reference):
            yield {"model": index, "refused": why}
            continue
        found.call()
        begin = time.perf_counter()
        found.call()
        each = max(1e3 * (time.perf_counter() - begin), 1e-3)
        loaded[index] = found
        calls[index] = min(max(math.ceil(VISIT_MS / each), CALLS[0]), CALLS[1])
    order = list(loaded)
    draws = random.Random(job["seed"])
    for _ in range(job["rounds"]):
        draws.shuffle(order)
        for index in order:
            yield {"model": index, "samples": loaded[index].time(calls[index])}


def difference(scores: np.ndarray, reference: np.ndarray) -> str:
    """What is wrong with a runtime's scores; "" if they are eager's."""
    if scores.shape != reference.shape:
        return f"its scores have the shape {scores.shape}, eager's {reference.shape}"
    largest = float(np.abs(reference).max())
    off = float(np.abs(scores.astype(np.float64) - reference).max())
    if not off <= TOLERANCE * largest:  # NaN neither
        return f"its scores differ from eager's by {off:.1e}, where the largest is {largest:.1e}"
    return ""


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")  # runtimes print: what they say goes to standard error
    os.dup2(2, 1)
    for line in run(json.load(sys.stdin)):
        print(json.dumps(line), file=channel, flush=True)
