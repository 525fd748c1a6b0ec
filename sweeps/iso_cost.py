"""Iso-cost: a variant's widths scaled until its network costs what the base's does, or takes as long.

All stages keep their ratio, and what an operation measures in channels (its `channel_counts`, such as a head) grows
with its stage, so that attention keeps its number of heads. Whole channels are coarse steps in small networks. The rest
is made up by the hidden width of the channel mixers (the expansion of their `linear` keys). The stem stays as it is.

A timing differs each time and a run's hash must not. So the widths of equal latency are found once and kept in
`matches.jsonl` in the runs' folder, and the first row of a pair of networks holds for good, on whatever machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from math import gcd, lcm
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from metamixer import jsonl
from metamixer.architecture import BackboneConfig
from metamixer.config import ConfigError, digest, digest_of, parse
from metamixer.cost import Cost, count, sizes
from metamixer.latency.runtimes import RUNTIMES
from metamixer.operation import REGISTRY
from metamixer.training.run_config import RunConfig

Counted = Literal["macs", "params"]
LATENCY = "latency:"  # and the name of a runtime
FILE = "matches.jsonl"
WIDEST_STEP = 1.5  # how far a channel mixer's hidden width may be changed to make up for the steps of the widths

# runs → what each costs, with the base's cost as unit
Ratios = Callable[..., list[float]]


class Precision(NamedTuple):
    """How near to the base's cost a match must be, and how to search for it.

    Attributes:
        tolerance: of the ratio to the base's cost.
        enough: nearer than this the hidden widths are left alone.
        widest: times the present width; a parabola means little far from its points.
        probe: a factor for the hidden width that shows its effect on the cost.
    """

    tolerance: float
    enough: float
    widest: int
    probe: float


COUNTED = Precision(tolerance=0.02, enough=0.0, widest=8, probe=1.1)
TIMED = Precision(tolerance=0.05, enough=0.025, widest=3, probe=1.3)  # noise is a few per cent

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
    """The measure itself, if it exists.

    Raises:
        ConfigError: no such measure.
    """
    if measure in get_args(Counted) or (measure.removeprefix(LATENCY) in RUNTIMES and measure.startswith(LATENCY)):
        return measure
    raise ConfigError(f"match {measure!r}: macs, params, or latency:RUNTIME, of the runtimes {', '.join(RUNTIMES)}")


def matched(
    config: RunConfig, base: RunConfig, measure: str, root: Path | None = None, timed: bool = False
) -> RunConfig:
    """`config` with its widths scaled so that it costs what `base` costs, within 2 %, or takes as long, within 5 %.

    Args:
        root: the folder of the runs, which holds the widths of equal latency.
        timed: whether to time what it does not hold, and keep that.

    Raises:
        ConfigError: no width comes near enough, and the line says how near the nearest came; or its latency would have
            to be timed.
    """
    if _network(config) == _network(base):
        return config
    if not isinstance(config.model, BackboneConfig):
        raise ConfigError(f"match {measure!r} is for backbones, not for a {config.model.network}")
    if measure.startswith(LATENCY):
        return scaled(config, *_timed_once(config, base, measure, root, timed))

    def cost_of(run: RunConfig) -> int:
        found = cost(run, whole=False)
        return found.macs if measure == "macs" else found.parameters

    def ratios(*runs: RunConfig) -> list[float]:
        return [cost_of(run) / cost_of(base) for run in runs]

    if abs(ratios(config)[0] - 1) <= COUNTED.tolerance / 10:
        return config
    width, factor, _ = _equal(config, ratios, COUNTED, measure)
    return scaled(config, width, factor)


def _timed_once(config: RunConfig, base: RunConfig, measure: str, root: Path | None, timed: bool) -> tuple[int, float]:
    """Width and factor of the hidden widths at equal latency, as recorded or found now."""
    key = {"measure": measure, "base": digest_of(_network(base)), "variant": digest_of(_network(config))}
    path = (root or Path("runs")) / FILE

    def recorded() -> dict[str, Any] | None:
        rows = jsonl.read(path)
        return next((row for row in rows if all(row.get(name) == value for name, value in key.items())), None)

    def ratios(*runs: RunConfig) -> list[float]:
        from metamixer.latency.bench import time_runs

        first, *others = time_runs(measure.removeprefix(LATENCY), [base, *runs])  # together: the pace drops out
        return [other / first for other in others]

    found = recorded()
    if found is None and not timed:
        raise ConfigError(
            f"its width at equal {measure} has not been measured: `launch.py run` with the same options measures what "
            f"is missing and keeps it in {path}"
        )
    if found is None:
        width, factor, ratio = _equal(config, ratios, TIMED, f"latency on {measure.removeprefix(LATENCY)}")
        row = {**key, "width": width, "expansion": factor, "ratio": round(ratio, 4), "time": time.time()}
        path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.append(path, row)
        found = recorded()  # another process may have been first
        assert found is not None
    return found["width"], found["expansion"]


def _network(config: RunConfig) -> dict[str, Any]:
    """What a network is built from, and the code of the user's operations in it."""
    values, data = config.identity(), config.data
    sizes = {"input_size": data.input_size, "num_classes": data.num_classes, "head": data.head}
    return {"modules": values["modules"], "model": values["model"], **sizes}


def _equal(config: RunConfig, ratios: Ratios, precision: Precision, what: str) -> tuple[int, float, float]:
    """The first stage's width, a factor for the hidden widths, and how the cost then compares with the base's."""
    widths = fitting(config)
    points = dict(zip(widths, ratios(*(scaled(config, width, 1.0) for width in widths)), strict=True))
    width, factor = nearest_width(config, points, precision.widest), 1.0
    found, probe = ratios(scaled(config, width, 1.0), scaled(config, width, precision.probe))
    slope = (probe - found) / (precision.probe - 1)
    if abs(found - 1) > precision.enough and slope > 0:
        factor = round(min(max(1 + (1 - found) / slope, 1 / WIDEST_STEP), WIDEST_STEP), 4)
        (found,) = ratios(scaled(config, width, factor))
    if abs(found - 1) > precision.tolerance:
        advice = "or a quieter machine" if precision is TIMED else "smaller heads, or do not match"
        raise ConfigError(
            f"no width brings its {what} within {precision.tolerance:.0%} of the base's: the nearest is "
            f"{width} channels in stage 1, {found - 1:+.1%}; take a wider base, {advice}"
        )
    return width, factor, found


def nearest_width(config: RunConfig, points: Mapping[int, float], widest: int) -> int:
    """Channels of the first stage for which the cost is nearest to the base's, from that of three widths.

    Cost is a parabola of the width but for the rounding of hidden widths, so three points give all of it. Nothing
    beyond `widest` times the present width is looked at.
    """
    parabola = np.polynomial.Polynomial.fit(list(points), list(points.values()), 2)
    step = width_step(config)
    widths = range(step, widest * _first_width(config), step)
    return min(widths, key=lambda width: abs(parabola(width) - 1))


def fitting(config: RunConfig) -> list[int]:
    """The widths nearest to 60, 100 and 140 % of the first stage's with which the network can be built."""
    start = _first_width(config)
    found: list[int] = []
    step = width_step(config)
    for wanted in (start, 0.6 * start, 1.4 * start):
        nearest = sorted(range(step, 3 * start, step), key=lambda width: abs(width - wanted))
        width = next((w for w in nearest if w not in found and _builds(scaled(config, w, 1.0))), None)
        if width is None:
            raise ConfigError(f"too few widths near {start} channels in stage 1 can be built: take a wider base")
        found.append(width)
    return found


def _first_width(config: RunConfig) -> int:
    assert isinstance(config.model, BackboneConfig)
    return config.model.stages[0].width


def width_step(config: RunConfig) -> int:
    """Widths of the first stage are multiples of this, for as many heads as before, all of whole channels."""
    first = _first_width(config)
    sizes = [values[name] for values, name in _in_channels(config.to_dict()["model"])]
    return lcm(1, *(first // gcd(first, size) for size in sizes))


def _builds(config: RunConfig) -> bool:
    try:
        with torch.device("meta"):
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
        for operation, name in _in_channels(stage):
            operation[name] = operation[name] * width // first
        mixers = stage["channel_mixer"]
        for mixer in mixers if isinstance(mixers, list) else [mixers]:
            keys = mixer.get("query_key", {})
            if keys.get("name") == "linear":
                keys["expansion"] = round(keys["expansion"] * expansion, 6)
    return parse(RunConfig, values)


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
