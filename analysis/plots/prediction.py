"""Whether probes predict what mixers are worth elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..prediction import ALL
from .theme import INK, PALE, QUIET, VARIANT, head, names, new, nothing, title

_FILLS = {"better": VARIANT, "worse": VARIANT, "hint": PALE}


def correlations(table: pd.DataFrame) -> np.ndarray:
    """Rank correlations of mixers' scores on probes with their worth: a row for each probe, a part for each outcome.

    Args:
        table: as `analysis.prediction.correlations` gives it.
    """
    tasks, outcomes = list(table["task"].unique()), list(table["outcome"].unique())
    parts = max(len(outcomes), 1)
    figure, axes = new(2.4 + 2.8 * parts, 1.6 + 0.3 * len(tasks), columns=parts, sharey=True, squeeze=False)
    if not outcomes:
        nothing(axes[0, 0])
    for part, outcome in zip(axes[0], outcomes, strict=False):
        own = table[(table["outcome"] == outcome) & table["low"].notna()]
        for verdict, rows in own.groupby("verdict"):
            at = rows["task"].map(tasks.index)
            reach = [rows["spearman"] - rows["low"], rows["high"] - rows["spearman"]]
            part.errorbar(rows["spearman"], at, xerr=reach, fmt="o", color=VARIANT, capsize=3, markeredgewidth=1.6,
                          markerfacecolor=_FILLS.get(str(verdict), "white"))  # fmt: skip
        part.axvline(0, color=INK, linewidth=0.8)
        part.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), ylim=(len(tasks) - 0.5, -0.5))
        part.set_yticks(range(len(tasks)), tasks)
        part.set_xlabel(f"{outcome.replace('@', ' on ')}\n{own['n'].max() if len(own) else 'too few'} mixers")
    said = "Rank correlation with each probe, 95 %; full: not zero after Holm, pale: a hint, hollow: noise"
    head(figure, said, 28 + 32 * parts)
    return axes[0]


def worth_by_level(points: pd.DataFrame, outcome: str, task: str = ALL) -> Axes:
    """What each mixer is worth against how far it gets on a probe, on average over all of them by default.

    A bar is one standard error over seeds to each side.

    Args:
        points: as `analysis.prediction.points` gives them.
        outcome: one of theirs.
    """
    own = points[(points["outcome"] == outcome) & (points["task"] == task)]
    axes = new(10, 6.4)[1]
    title(axes, f"{outcome.replace('@', ' on ')}: {len(own)} mixers")
    if not len(own):
        return nothing(axes, "no mixer has finished both")
    axes.set(xlabel=f"level on {task}: 0 is chance, 1 is solved", ylabel=f"{own['measure'].iloc[0]}, mean over seeds")
    axes.margins(0.1, 0.08)
    axes.errorbar(own["level"], own["worth"], own["error"], fmt="o", color=VARIANT, ecolor=QUIET, markersize=5)
    names(axes, own["level"], own["worth"], own["variant"], [False] * len(own), own["error"])
    return axes
