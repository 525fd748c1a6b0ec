"""How training went."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import rates
from ..frame import Meta
from .theme import BASE, COLOURS, QUIET, new, nothing, title

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
    """A metric after each epoch: the mean over seeds, one line per variant, in a band over all of its seeds.

    With more than 12 variants all but the base are thin grey lines. Where a set of learning rates was tried, the runs
    at the recipe's own are shown.

    Args:
        curves: `frame.curves` of these runs.
        column: of `curves`, e.g. `val_top1` or `train_loss`.
    """
    axes = new(8.5, 5)[1] if axes is None else axes
    label = _COLUMNS.get(column, column)
    title(axes, f"{meta.title}: means over seeds")
    if column not in curves or not curves[column].notna().any():
        axes.set(xlabel="epoch", ylabel=label)
        return nothing(axes, f"no {label} was written")
    table = curves.merge(rates.at(runs, "fixed")[["hash", "variant"]], on="hash").dropna(subset=[column])
    variants = [name for name in dict.fromkeys(runs["variant"]) if name in set(table["variant"])]
    few = len(variants) <= NAMED
    colours = iter(COLOURS * 2 if few else [QUIET] * len(variants))
    dashes = iter([""] * (len(COLOURS) if few else len(variants)) + [(4, 2)] * NAMED)
    looks = {name: (BASE, "") if name == meta.base else (next(colours), next(dashes)) for name in variants}
    sns.lineplot(
        table, x="epoch", y=column, hue="variant", style="variant", hue_order=variants, style_order=variants,
        palette={name: colour for name, (colour, _) in looks.items()},
        dashes={name: dash for name, (_, dash) in looks.items()},
        errorbar=(lambda values: (values.min(), values.max())) if few else None,
        err_kws={"linewidth": 0, "alpha": 0.13}, linewidth=1.6 if few else 0.7, legend=few, ax=axes,
    )  # fmt: skip
    if few:
        title(axes, f"{meta.title}: means over seeds, in bands from the lowest to the highest")
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if few:
        sns.move_legend(axes, "center left", bbox_to_anchor=(1.01, 0.5), title="")
    return axes
