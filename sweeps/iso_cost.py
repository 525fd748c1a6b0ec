"""Iso-cost: a variant's widths scaled until its network costs what the base's does, or takes as long.

All stages keep their ratio, and what an operation measures in channels (its `channel_counts`, such as a head) grows
with its stage. The hidden width of the channel mixers (the expansion of their `linear` keys) makes up for the steps of
whole channels. The stem stays as it is, and so does a decoder without mixers. docs/latency.md says how equal latency is
found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from math import gcd, lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamixer import jsonl
from metamixer.config import ConfigError, digest, digest_of, parse
from metamixer.cost import Cost, count, sizes
from metamixer.latency.runtimes import RUNTIMES
from metamixer.operation import REGISTRY
from metamixer.training.run_config import RunConfig

COUNTED = {"macs": "macs", "params": "parameters"}  # by the attribute of a network's cost
LATENCY = "latency:"  # and the name of a runtime
FILE = "matches.jsonl"
TOLERANCE, TIMED_TOLERANCE = 0.02, 0.05  # of the ratio to the base's cost
WIDEST_STEP = 1.5  # how far a channel mixer's hidden width may be changed to make up for the steps of the widths

_costs: dict[str, Cost] = {}


def cost(config: RunConfig, whole: bool = True) -> Cost:
    """Cost of a run's network at its resolution, counted once; only parameters and multiply-adds if not `whole`."""
    data = config.data
    key = f"{digest(config.model)} {data.input_size} {data.num_classes} {data.head} {whole}"
    if key not in _costs:
        found = count(config.build(), data.input_size, inplace=True) if whole else sizes(config.build, data.input_size)
        _costs[key] = found
    return _costs[key]


def check_measure(measure: str) -> str:
    """The measure itself, if it exists. Raises ConfigError: no such measure."""
    if measure in COUNTED or (measure.startswith(LATENCY) and measure.removeprefix(LATENCY) in RUNTIMES):
        return measure
    raise ConfigError(f"no cost {measure!r}: macs, params, or latency:RUNTIME, of the runtimes {', '.join(RUNTIMES)}")


def matched(
    config: RunConfig, base: RunConfig, measure: str, root: Path = Path("runs"), timed: bool = False
) -> RunConfig:
    """`config` with its widths scaled so that it costs what `base` costs, within 2 %, or takes as long, within 5 %.

    Args:
        root: the folder of the runs, which holds the widths of equal latency.
        timed: whether to time what it does not hold, and keep that.

    Raises ConfigError: no width comes near enough, and the line says how near the nearest came; or its latency would
    have to be timed.
    """

    def ratios(*runs: RunConfig) -> list[float]:
        """What runs cost, with the base's cost as unit."""
        if measure in COUNTED:
            costs: list[float] = [getattr(cost(run, whole=False), COUNTED[measure]) for run in (*runs, base)]
        else:
            from metamixer.latency.measure import time_runs

            costs = time_runs(measure.removeprefix(LATENCY), [*runs, base])  # together: the pace drops out
        return [each / costs[-1] for each in costs[:-1]]

    if _network(config) == _network(base):
        return config
    if not stages_of(config.to_dict()["model"]):
        raise ConfigError(f"match {measure!r}: only widths of blocks with mixers can be scaled, this network has none")
    if measure in COUNTED:
        near = abs(ratios(config)[0] - 1) <= TOLERANCE / 10
        return config if near else _scaled(config, *_equal(config, ratios, measure)[:2])
    key = {"measure": measure, "base": digest_of(_network(base)), "variant": digest_of(_network(config))}
    path = root / FILE
    if not _recorded(path, key):
        if not timed:
            raise ConfigError(
                f"its width at equal {measure} has not been measured: `launch.py run` with the same options measures "
                f"what is missing and keeps it in {path}"
            )
        width, factor, ratio = _equal(config, ratios, measure)
        row = {**key, "width": width, "expansion": factor, "ratio": round(ratio, 4), "time": time.time()}
        root.mkdir(parents=True, exist_ok=True)
        jsonl.append(path, row)
    first = _recorded(path, key)[0]  # another process may have been faster
    return _scaled(config, first["width"], first["expansion"])


def _recorded(path: Path, key: dict[str, str]) -> list[dict[str, Any]]:
    return [row for row in jsonl.read(path) if key.items() <= row.items()]


def _network(config: RunConfig) -> dict[str, Any]:
    """What a network is built from, and the code of the user's operations in it."""
    values, data = config.identity(), config.data
    sizes = {"input_size": data.input_size, "num_classes": data.num_classes, "head": data.head}
    return {"modules": values["modules"], "model": values["model"], **sizes}


def _equal(config: RunConfig, ratios: Callable[..., list[float]], measure: str) -> tuple[int, float, float]:
    """The first stage's width, a factor for the hidden widths, and how the cost then compares with the base's.

    Cost is a parabola of the width but for the rounding of hidden widths, so three widths give all of it. A parabola
    means little far from its points, and less where they are timings, which also need a larger step to show anything.
    """
    timed = measure not in COUNTED
    tolerance, widest, step = (TIMED_TOLERANCE, 3, 1.3) if timed else (TOLERANCE, 8, 1.1)
    start, unit = _first_width(config), _unit(config)
    points: list[int] = []
    for wanted in (start, 0.6 * start, 1.4 * start):
        nearest = sorted(range(unit, 3 * start, unit), key=lambda width: abs(width - wanted))
        fitting = (width for width in nearest if width not in points and _builds(config, width, measure))
        points += islice(fitting, 1)  # a build takes a while, so no more than are needed
    if len(points) < 3:
        raise ConfigError(f"too few widths near {start} channels in stage 1 can be built: take a wider base")
    parabola = np.polynomial.Polynomial.fit(points, ratios(*(_scaled(config, each, 1.0) for each in points)), 2)
    nearest = sorted(range(unit, widest * start, unit), key=lambda width: abs(parabola(width) - 1))
    width = next(width for width in nearest if _builds(config, width, measure))
    factor, (ratio, wider) = 1.0, ratios(_scaled(config, width, 1.0), _scaled(config, width, step))
    slope = (wider - ratio) / (step - 1)
    if slope > 0 and not (timed and abs(ratio - 1) <= tolerance / 2):
        factor = round(min(max(1 + (1 - ratio) / slope, 1 / WIDEST_STEP), WIDEST_STEP), 4)
        (ratio,) = ratios(_scaled(config, width, factor))
    if abs(ratio - 1) > tolerance:
        advice = "or a quieter machine" if timed else "smaller heads, or do not match"
        raise ConfigError(
            f"no width brings its {measure} within {tolerance:.0%} of the base's: the nearest is {width} channels in "
            f"stage 1, {ratio - 1:+.1%}; take a wider base, {advice}"
        )
    return width, factor, ratio


def stages_of(node: Any) -> list[dict[str, Any]]:
    """All stages of blocks in a network's configuration, in its order."""
    if isinstance(node, dict) and "token_mixer" in node:
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [stage for child in children for stage in stages_of(child)]


def _first_width(config: RunConfig) -> int:
    return stages_of(config.to_dict()["model"])[0]["width"]


def _unit(config: RunConfig) -> int:
    """Widths of the first stage are multiples of this, for as many heads as before, all of whole channels."""
    first = _first_width(config)
    counts = [values[name] for values, name in _sizes(config.to_dict()["model"])]
    return lcm(1, *(first // gcd(first, size) for size in counts))


def _builds(config: RunConfig, width: int, measure: str) -> bool:
    try:
        scaled = _scaled(config, width, 1.0)
        if measure in COUNTED:
            cost(scaled, whole=False)  # kept, and needed next
        else:
            with torch.device("meta"):
                scaled.build()
    except ValueError:
        return False
    return True


def _scaled(config: RunConfig, width: int, expansion: float) -> RunConfig:
    """The run with `width` channels in its first stage, and channel mixers `expansion` times as wide inside."""
    values = config.to_dict()
    first = _first_width(config)
    for node, name in _sizes(values["model"]):
        node[name] = node[name] * width // first
    for stage in stages_of(values["model"]):
        stage["width"] = stage["width"] * width // first
        mixers = stage["channel_mixer"]
        for mixer in mixers if isinstance(mixers, list) else [mixers]:
            keys = mixer.get("query_key", {})
            if keys.get("name") == "linear":
                keys["expansion"] = round(keys["expansion"] * expansion, 6)
    return parse(RunConfig, values)


def _sizes(model: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """What is a number of channels in a network's configuration besides its widths, and grows with them."""
    of_variables = [(model, "dim")] if "dim" in model else []
    return [*of_variables, *(found for stage in stages_of(model) for found in _in_channels(stage))]


def _in_channels(node: Any, slot: str = "baseline") -> Iterator[tuple[dict[str, Any], str]]:
    """Operations below `node` and those of their parameters that are sizes in channels; 1 means one channel each."""
    if isinstance(node, dict):
        operation = REGISTRY.get(slot, {}).get(node.get("name", ""))  # type: ignore[call-overload]
        for name in operation.channel_counts if operation else ():
            if (node[name] or 0) > 1:
                yield node, name
        for key, child in node.items():
            yield from _in_channels(child, key if key in REGISTRY else "baseline")
    for child in node if isinstance(node, list) else ():
        yield from _in_channels(child)
