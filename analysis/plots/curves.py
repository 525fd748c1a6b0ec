"""How training went."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import rates
from ..frame import Meta
from ..tables import plural
from ._common import BASE, INK, QUIET, colours, new, nothing, plain, title

_COLUMNS = {
    "train_loss": "training loss, mean of an epoch",
    "val_top1": "validation top-1 (%), raw weights",
    "val_top1_ema": "validation top-1 (%), EMA weights",
    "val_loss": "validation loss",
}
NAMED = 12  # with more variants, lines can't be told apart


def learning_curves(
    runs: pd.DataFrame, curves: pd.DataFrame, meta: Meta, column: str = "val_top1", axes: Axes | None = None
) -> Axes:
    """A metric after each epoch: the mean over seeds, a line a variant, in a band from the lowest to the highest seed.

    With more than 12 variants all but the base are thin grey lines. Where a set of learning rates was tried, the runs
    at the recipe's own are shown.

    Args:
        runs: of one grid.
        curves: `frame.curves` of these runs.
        column: of `curves`, e.g. `val_top1` or `train_loss`.
    """
    if axes is None:
        axes = new(8.5, 5)[1]
    label = _COLUMNS.get(column, column)
    axes.set(xlabel="epoch", ylabel=label)
    plain(axes)
    if column not in curves or not curves[column].notna().any():
        title(axes, f"{meta.grid} on {meta.data}: no {label} was written")
        return nothing(axes)
    runs = rates.at(runs, "fixed")
    table = curves.merge(runs[["hash", "variant", "seed"]], on="hash").dropna(subset=[column])
    variants = [name for name in dict.fromkeys(runs["variant"]) if name in set(table["variant"])]
    few = len(variants) <= NAMED
    looks = colours([name for name in variants if name != meta.base])
    last, spreads = {}, []
    for name in variants:
        over = table[table["variant"] == name].groupby("epoch")[column].agg(["mean", "min", "max"])
        base = name == meta.base
        look = {"color": BASE, "linewidth": 2.2, "zorder": 4} if base else {"linewidth": 1.5, **looks[name]}
        if not few and not base:
            look = {"color": QUIET, "linewidth": 0.7, "alpha": 0.8}
        label_of = f"{name} (base)" if base else name
        axes.plot(over.index, over["mean"], label=label_of if few or base else None, **look)
        if few or base:
            axes.fill_between(over.index, over["min"], over["max"], color=look["color"], alpha=0.13, linewidth=0)
        last[name] = over["mean"].iloc[-1]
        spreads.append(over["max"].iloc[-1] - over["min"].iloc[-1])
    if not few:
        axes.plot(
            [], [], color=QUIET, linewidth=0.7, label=plural(len(variants) - (meta.base in variants), "other variant")
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK)
    seeds = table.groupby("variant")["seed"].nunique()
    between = max(last.values()) - min(last.values())
    digits = 1 if "top" in column else 3
    title(
        axes,
        f"{plural(len(variants), 'variant')} on {meta.data}: means end {between:.{digits}f} apart, the seeds of one up"
        f" to {max(spreads):.{digits}f}; lines are means, bands from lowest to highest of up to"
        f" {plural(int(seeds.max()), 'seed')}",
    )
    return axes
