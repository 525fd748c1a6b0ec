"""Iso-cost: a variant's widths scaled until it costs what the base costs.

All stages keep their ratio, and attention keeps its number of heads, each as much wider as its stage. Whole
channels are coarse steps in small networks, so the rest is made up by the hidden width of the channel mixers
(the expansion of their `linear` keys). The stem stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd, lcm
from typing import Any, Literal, get_args

import numpy as np

from metamixer.config import ConfigError, digest, parse
from metamixer.cost import Cost, count
from metamixer.latency.runtimes import RUNTIMES
from metamixer.training.run_config import RunConfig

Counted = Literal["macs", "params"]
LATENCY = "latency:"  # and the name of a runtime; see `latency`

TOLERANCE = 0.02
WIDEST_STEP = 1.5  # how far a channel mixer's hidden width may be changed to make up for the steps of the widths
PROBE = 1.1

_costs: dict[str, Cost] = {}


def cost(config: RunConfig) -> Cost:
    """Parameters and multiply-adds of a run's network at its resolution, counted once."""
    data = config.data
    key = f"{digest(config.model)} {data.input_size} {data.num_classes} {data.head}"
    if key not in _costs:
        _costs[key] = count(config.build(), data.input_size, inplace=True)
    return _costs[key]


def check_measure(measure: str) -> str:
    """A measure as a grid or the command line gives it.

    Raises:
        ConfigError: no such measure.
    """
    if measure in get_args(Counted) or (measure.removeprefix(LATENCY) in RUNTIMES and measure.startswith(LATENCY)):
        return measure
    raise ConfigError(f"match {measure!r}: macs, params, or latency:RUNTIME, of the runtimes {', '.join(RUNTIMES)}")


def matched(config: RunConfig, base: RunConfig, measure: str) -> RunConfig:
    """`config` with its widths scaled so that it costs what `base` costs, within 2 %.

    Raises:
        ConfigError: no width does; the line says how near the nearest came.
    """
    target = _measured(base, measure)
    if abs(_measured(config, measure) / target - 1) <= TOLERANCE / 10:
        return config
    points = {w: _measured(scaled(config, w, 1.0), measure) for w in fitting(config)}
    width = nearest_width(config, points, target)
    found = scaled(config, width, 1.0)
    gap = target - _measured(found, measure)
    slope = (_measured(scaled(config, width, PROBE), measure) - _measured(found, measure)) / (PROBE - 1)
    if slope > 0:
        factor = min(max(1 + gap / slope, 1 / WIDEST_STEP), WIDEST_STEP)
        found = scaled(config, width, round(factor, 4))
    off = _measured(found, measure) / target - 1
    if abs(off) > TOLERANCE:
        raise ConfigError(
            f"no width brings its {measure} within {TOLERANCE:.0%} of the base's: the nearest is "
            f"{width} channels in stage 1, {off:+.1%}; take a wider base or smaller heads, or do not match"
        )
    return found


def _measured(config: RunConfig, measure: str) -> int:
    found = cost(config)
    return found.macs if measure == "macs" else found.parameters


def nearest_width(config: RunConfig, points: Mapping[int, float], target: float, widest: int = 8) -> int:
    """Channels of the first stage for which the cost is nearest to the target, from that of three widths.

    Cost is a parabola of the width but for the rounding of hidden widths, so three points give all of it. Nothing
    beyond `widest` times the present width is looked at.
    """
    parabola = np.polynomial.Polynomial.fit(list(points), list(points.values()), 2)
    step = width_step(config)
    widths = range(step, widest * config.model.stages[0].width, step)
    return min(widths, key=lambda width: abs(parabola(width) - target))


def fitting(config: RunConfig) -> list[int]:
    """The widths nearest to 60, 100 and 140 % of the first stage's with which the network can be built."""
    start = config.model.stages[0].width
    found: list[int] = []
    step = width_step(config)
    for wanted in (start, 0.6 * start, 1.4 * start):
        nearest = sorted(range(step, 3 * start, step), key=lambda width: abs(width - wanted))
        width = next((w for w in nearest if w not in found and _builds(scaled(config, w, 1.0))), None)
        if width is None:
            raise ConfigError(f"too few widths near {start} channels in stage 1 can be built: take a wider base")
        found.append(width)
    return found


def width_step(config: RunConfig) -> int:
    """Widths of the first stage are multiples of this, for as many heads as before, all of whole channels."""
    first = config.model.stages[0].width
    dims = [operation["head_dim"] for operation in _with_heads(config.to_dict()["model"])]
    return lcm(1, *(first // gcd(first, dim) for dim in dims))


def _builds(config: RunConfig) -> bool:
    try:
        config.build()
    except ValueError:
        return False
    return True


def scaled(config: RunConfig, width: int, expansion: float) -> RunConfig:
    """The run with `width` channels in its first stage, and channel mixers `expansion` times as wide inside."""
    values = config.to_dict()
    stages = values["model"]["stages"]
    first = stages[0]["width"]
    for stage in stages:
        stage["width"] = stage["width"] // first * width
        for operation in _with_heads(stage):
            operation["head_dim"] = operation["head_dim"] * width // first
        mixers = stage["channel_mixer"]
        for mixer in mixers if isinstance(mixers, list) else [mixers]:
            keys = mixer.get("query_key", {})
            if keys.get("name") == "linear":
                keys["expansion"] = round(keys["expansion"] * expansion, 6)
    return parse(RunConfig, values)


def _with_heads(node: Any) -> Iterator[dict[str, Any]]:
    """The operations below `node` that have heads; those of one channel each are as many as there are channels."""
    if isinstance(node, dict) and node.get("head_dim", 1) > 1:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _with_heads(child)
