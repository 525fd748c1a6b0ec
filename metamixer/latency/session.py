"""One session: a process that loads a runtime's networks, compares each with eager, and times them in shuffled rounds.

`measure` starts it with a job on its standard input and reads a line of JSON for each thing that it has done.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VISIT_MS = 60.0  # a network is timed about so long before it is the next one's turn
CALLS = (3, 20)


def run(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Do a job.

    Args:
        job: `backend`, `threads`, `rounds`, `seed`, `modules` (users' modules), and `models`: for each its `path`,
            `image` and `reference` (arrays on the disk).
        say: takes `loaded` (a model's index), `refused` (an index, with `why`), or `model` with `samples` in ms.
    """
    from .runtimes import BACKENDS

    backend = BACKENDS[job["backend"]]()
    for source in job["modules"]:
        from ..plugins import load_module

        load_module(source)
    loaded, calls = {}, {}
    for index, model in enumerate(job["models"]):
        image, reference = np.load(model["image"]), np.load(model["reference"])
        found = backend.load(Path(model["path"]), image, job["threads"])
        if why := difference(found.scores(), reference, backend.tolerance):
            say({"refused": index, "why": why})
            continue
        found.call()
        begin = time.perf_counter()
        found.call()
        each = max(1e3 * (time.perf_counter() - begin), 1e-3)
        loaded[index] = found
        calls[index] = min(max(math.ceil(VISIT_MS / each), CALLS[0]), CALLS[1])
        say({"loaded": index})
    order = list(loaded)
    draws = random.Random(job["seed"])
    for _ in range(job["rounds"]):
        draws.shuffle(order)
        for index in order:
            say({"model": index, "samples": loaded[index].time(calls[index])})


def difference(scores: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """What is wrong with a runtime's scores; "" if they are eager's."""
    if scores.shape != reference.shape:
        return f"its scores have the shape {scores.shape}, eager's {reference.shape}"
    largest = float(np.abs(reference).max())
    off = float(np.abs(scores.astype(np.float64) - reference).max())
    if not off <= tolerance * largest:  # NaN neither
        return f"its scores differ from eager's by {off:.1e}, where the largest is {largest:.1e}"
    return ""


def main() -> None:
    # runtimes print; the lines for `measure` go where standard output was, all else to standard error
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    run(json.load(sys.stdin), say)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # some runtimes' threads do not end by themselves
