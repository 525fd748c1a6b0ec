"""Before a launch: how small a difference its number of seeds will be able to see."""

from __future__ import annotations

import math
from pathlib import Path

from .frame import load, settings
from .intervals import CONFIDENCE, smallest_visible_effect
from .statistics import compare, pooled_sd


def visible_effect(root: str | Path, grid: str, data: str, seeds: int, comparisons: int) -> list[str]:
    """Lines on the smallest true difference in top-1 that `seeds` seeds find in 8 cases of 10.

    It rests on how much paired differences spread over seeds in finished runs: of this grid in this setting, else of
    another setting of it or another grid on the same data, and says which. Without any, it says that it is unknown.

    Args:
        comparisons: how many variants will be compared with the base.
    """
    if seeds < 2:
        return ["One seed shows no spread: no difference can be told from noise. Take 2 at least, better 3 to 5."]
    spread, source = known_spread(root, grid, data)
    if math.isnan(spread):
        return [
            f"What {seeds} seeds can see is unknown: no finished runs on {data.partition('+')[0]} show how much paired"
            " differences spread. The first variants will."
        ]
    one = smallest_visible_effect(spread, seeds)
    holm = smallest_visible_effect(spread, seeds, alpha=(1 - CONFIDENCE) / max(comparisons, 1))
    corrected = f", {holm:.2g} the largest of {comparisons} after Holm's correction" if comparisons > 1 else ""
    return [
        f"By the noise over seeds alone, {seeds} seeds find a true difference of {one:.2g} points in 8 cases"
        f" of 10{corrected} (paired spread {spread:.2g} points in {source})."
    ]


def known_spread(root: str | Path, grid: str, data: str) -> tuple[float, str]:
    """Spread of paired differences in top-1, in points, and the grid it was seen in; NaN where none was."""
    images = data.partition("+")[0]
    candidates = [found for found in settings(root) if found[1].partition("+")[0] == images]
    candidates.sort(key=lambda found: (found != (grid, data), found[0] != grid))
    for name, setting in candidates:
        try:
            spread = pooled_sd(compare(*load(root, name, setting)))
        except ValueError:  # a manifest that can't be read, or of another schema
            continue
        if spread > 0:
            return spread, f"{name} on {setting}"
    return float("nan"), ""
