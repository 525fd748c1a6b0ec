"""How training went."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..frame import Meta
from ..rates import at_best
from .theme import BASE, COLOURS, QUIET, new, nothing, title

NAMED = 12  # with more variants, lines can't be told apart


def learning_curves(runs: pd.DataFrame, curves: pd.DataFrame, meta: Meta, column: str | None = None) -> Axes:
    """A metric after each epoch: the mean over seeds, one line per variant, in a band over all of its seeds.

    With more than 12 variants all but the base are thin grey lines. Where a set of learning rates was tried, the runs
    at each variant's best are shown.

    Args:
        curves: `frame.curves` of these runs.
        column: of `curves`, e.g. `train_loss`; by default the deciding metric on the validation split, raw weights.
    """
    axes = new(8.5, 5)[1]
    column = column or f"val_{meta.metric.name}"
    label = _label(column, meta)
    title(axes, f"{meta.title}: means over seeds")
    axes.set(xlabel="epoch", ylabel=label)
    if column not in curves or not curves[column].notna().any():
        return nothing(axes, f"no {label} was written")
    chosen = at_best(runs, meta)[["hash", "variant"]]
    table = curves.merge(chosen, on="hash").dropna(subset=[column])
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
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if few:
        title(axes, f"{meta.title}: means over seeds, in bands from the lowest to the highest")
        sns.move_legend(axes, "center left", bbox_to_anchor=(1.01, 0.5), title="")
    return axes


def _label(column: str, meta: Meta) -> str:
    known = {"train_loss": "training loss, mean of an epoch", "val_loss": "validation loss"}
    for suffix, weights in (("", "raw"), ("_ema", "EMA")):
        unit = f" ({meta.metric.unit})" if meta.metric.unit else ""
        known[f"val_{meta.metric.name}{suffix}"] = f"validation {meta.metric.label}{unit}, {weights} weights"
    return known.get(column, column)
