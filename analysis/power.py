"""Before a launch: how small a difference its number of seeds will be able to see."""

from __future__ import annotations

from pathlib import Path

from metamixer.metric import Metric

from .frame import grids, load, plural
from .intervals import CONFIDENCE, smallest_visible_effect
from .statistics import compare, pooled_sd


def visible_effect(root: str | Path, grid: str, data: str, seeds: int, comparisons: int) -> list[str]:
    """A line on the smallest true difference that `seeds` seeds find in 8 cases of 10.

    It rests on how much paired differences spread over seeds in finished runs: of this grid on this data, else with
    other overrides or of another grid on the same data, and says which. Without any, it says that it is unknown.

    Args:
        comparisons: how many variants will be compared with the base.
    """
    if seeds < 2:
        return ["One seed shows no spread: no difference can be told from noise. Take 2 at least, better 3 to 5."]
    known = known_spread(root, grid, data)
    if known is None:
        return [
            f"What {seeds} seeds can see is unknown: no finished runs on {data.partition('+')[0]} show how much paired"
            " differences spread. The first variants will."
        ]
    spread, metric, source = known
    one = smallest_visible_effect(spread, seeds)
    holm = smallest_visible_effect(spread, seeds, alpha=(1 - CONFIDENCE) / max(comparisons, 1))
    corrected = f", {holm:.2g} the largest of {comparisons} after Holm's correction" if comparisons > 1 else ""
    return [
        f"By the noise over seeds alone, {plural(seeds, 'seed')} find a true difference of {one:.2g}{metric.points} in"
        f" 8 cases of 10{corrected} (paired spread {spread:.2g}{metric.points} in {source})."
    ]


def known_spread(root: str | Path, grid: str, data: str) -> tuple[float, Metric, str] | None:
    """Spread of paired differences, the metric that it is of, and the grid that it was seen in."""
    images = data.partition("+")[0]
    candidates = [found for found in grids(root) if found[1].partition("+")[0] == images]
    for name, on in sorted(candidates, key=lambda found: (found != (grid, data), found[0] != grid)):
        try:
            runs, meta = load(root, name, on)
        except ValueError:  # a manifest that can't be read, or of another schema
            continue
        if (spread := pooled_sd(compare(runs, meta))) > 0:
            return spread, meta.metric, f"{name} on {on}"
    return None
