"""What each step changed, as a waterfall."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..frame import Meta, each
from .theme import BASE, FALL, INK, PALE, PALE_FALL, QUIET, VARIANT, legend, metric_label, new, nothing, title


def waterfall(steps: pd.DataFrame, meta: Meta) -> Axes:
    """The ladder's differences one behind the other, each from where the one before ended; others beside it.

    A bar is a step's mean difference, paired by seed, with its 95 % interval; blue rises and orange falls, pale for a
    hint, hollow inside the noise, or without an interval. What is no rung stands apart, from the level of
    what it builds on.

    Args:
        steps: `ladder.steps`.
    """
    axes = new(max(8, 1.6 + 0.75 * len(steps)), 5)[1]
    rungs, others = steps[steps["rung"]], steps[~steps["rung"] & steps["difference"].notna()]
    title(axes, f"{meta.title}: what each step changes")
    if not rungs["difference"].notna().any():
        return nothing(axes, "no step has finished runs on both of its sides")
    first, level = str(rungs["on"].iloc[0]), float(rungs["mean_on"].iloc[0])
    ends = {first: level} | dict(zip(steps["variant"], steps["mean"], strict=True))
    axes.plot([-0.4, 0.4], [level, level], color=BASE, linewidth=3, solid_capstyle="butt")
    for place, row in enumerate(each(rungs), 1):
        if math.isnan(row.difference):
            axes.text(place, level, "no\npair", ha="center", va="center", fontsize=8, color=QUIET)
            continue
        _bar(axes, place, level, row, meta)
        level += row.difference
    beside = len(rungs) + 2  # a gap between the ladder and what stands beside it
    for place, row in enumerate(each(others), beside):
        _bar(axes, place, ends[row.on], row, meta)
    labels = [first, *rungs["variant"], *(f"{row.variant}\n(from {row.on})" for row in each(others))]
    places = [*range(len(rungs) + 1), *range(beside, beside + len(others))]
    axes.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_ylabel(metric_label(meta))
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    looks = [("rises", VARIANT, VARIANT), ("falls", FALL, FALL), ("hint: not after Holm", PALE, VARIANT),
             ("inside the noise, or not to be judged", "white", INK)]  # fmt: skip
    legend(axes, 4, [Patch(facecolor=face, edgecolor=edge, label=words) for words, face, edge in looks])
    return axes


def _bar(axes: Axes, place: float, level: float, row: Any, meta: Meta) -> None:
    strong, pale = (VARIANT, PALE) if row.difference >= 0 else (FALL, PALE_FALL)
    face = {"better": strong, "worse": strong, "hint": pale}.get(row.verdict, "white")
    axes.bar(place, row.difference, 0.8, bottom=level, color=face, edgecolor=strong, linewidth=1.3, zorder=2)
    axes.plot([place - 0.6, place + 0.45], [level, level], color=QUIET, linewidth=0.8, zorder=1)
    top = level + max(row.difference, 0)
    if not math.isnan(row.low):
        reach = [[row.difference - row.low], [row.high - row.difference]]
        axes.errorbar(place, level + row.difference, yerr=reach, color=INK, elinewidth=1, capsize=3, zorder=3)
        top = max(top, level + row.high)
    text = meta.metric.signed(row.difference)
    axes.annotate(text, (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8)
