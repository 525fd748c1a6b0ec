"""Iso-latency: widths at which a variant takes as long as the base, found once by timing and kept beside the runs.

Timing isn't reproducible, and a run's hash must be: what was found is appended to `matches.jsonl` in the runs' folder,
and the first record of a pair of networks holds for good, on whatever machine it was made.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamixer.config import ConfigError, digest_of
from metamixer.training.run_config import RunConfig

from .match import LATENCY, WIDEST_STEP, fitting, nearest_width, scaled

FILE = "matches.jsonl"
TOLERANCE = 0.05
WIDEST = 3  # times the present width: a parabola through noisy points means little far from them
PROBE = 1.3  # a hidden width so much larger must show above the noise

# a runtime's name and runs whose networks are timed together → milliseconds; given by who may measure
Timer = Callable[[str, Sequence[RunConfig]], Sequence[float]]


@dataclass(frozen=True)
class Clock:
    """Measures a run's network beside the base, whose milliseconds are the scale: the machine's pace drops out."""

    timer: Timer
    runtime: str
    base: RunConfig
    milliseconds: float

    def __call__(self, config: RunConfig) -> float:
        base, own = self.timer(self.runtime, [self.base, config])
        return self.milliseconds * own / base


@dataclass(frozen=True)
class Latencies:
    """The recorded widths below `root`; with `measure`, those that are missing are measured and recorded."""

    root: Path
    measure: bool = False

    def matched(self, config: RunConfig, base: RunConfig, measure: str) -> RunConfig:
        """`config` with its widths scaled so that it takes as long as `base`, within 5 %.

        Raises:
            ConfigError: nothing is recorded and nothing may be measured here, or no width comes near enough.
        """
        if _network(config) == _network(base):
            return config
        key = {"measure": measure, "base": digest_of(_network(base)), "variant": digest_of(_network(config))}
        record = self._recorded(key)
        if record is None:
            if not self.measure:
                raise ConfigError(
                    f"its width at equal {measure} has not been measured: `launch.py run` with the same options "
                    f"measures what is missing and keeps it in {self.root / FILE}"
                )
            self._append({**key, **_search(config, base, measure.removeprefix(LATENCY))})
            record = self._recorded(key)  # another process may have been first
            assert record is not None
        return scaled(config, record["width"], record["expansion"])

    def _recorded(self, key: dict[str, str]) -> dict[str, Any] | None:
        path = self.root / FILE
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
                if all(row[name] == value for name, value in key.items()):
                    return dict(row)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill
        return None

    def _append(self, row: dict[str, Any]) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / FILE).open("a") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                # a line torn by a kill stays alone
                start = "\n" if os.fstat(file.fileno()).st_size else ""
                file.write(f"{start}{json.dumps({**row, 'time': time.time()})}\n")
        except OSError as error:
            raise ConfigError(f"{self.root / FILE}: cannot write here ({error.strerror or error})") from None


def _network(config: RunConfig) -> dict[str, Any]:
    """What a network is built from, and what its operations of the user's own are."""
    values, data = config.identity(), config.data
    return {
        "modules": values["modules"],
        "model": values["model"],
        "input_size": data.input_size,
        "num_classes": data.num_classes,
        "head": data.head,
    }


def _search(config: RunConfig, base: RunConfig, runtime: str) -> dict[str, Any]:
    """A width, a factor for the channel mixers' hidden widths, and how the latency then compares with the base's.

    Every network is timed beside the base, for the machine changes its pace.
    """
    from metamixer.latency.bench import time_runs

    def ratios(*runs: RunConfig) -> list[float]:
        first, *others = time_runs(runtime, [base, *runs])
        return [other / first for other in others]

    widths = fitting(config)
    points = dict(zip(widths, ratios(*(scaled(config, width, 1.0) for width in widths)), strict=True))
    width, factor = nearest_width(config, points, 1.0, WIDEST), 1.0
    found, probe = ratios(scaled(config, width, 1.0), scaled(config, width, PROBE))
    slope = (probe - found) / (PROBE - 1)
    if abs(found - 1) > TOLERANCE / 2 and slope > 0:
        factor = round(min(max(1 + (1 - found) / slope, 1 / WIDEST_STEP), WIDEST_STEP), 4)
        (found,) = ratios(scaled(config, width, factor))
    if abs(found - 1) > TOLERANCE:
        raise ConfigError(
            f"no width brings its latency on {runtime} within {TOLERANCE:.0%} of the base's: the nearest is "
            f"{width} channels in stage 1, {found - 1:+.1%}; take a wider base, or a quieter machine"
        )
    return {"width": width, "expansion": factor, "ratio": round(found, 4)}
