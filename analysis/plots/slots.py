"""A factorial of slots as heat maps, its main effects, and what slots cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from metamixer.metric import readable

from ..factorial import NAMES, SLOTS, Factorial
from ..frame import Meta
from .theme import CLEAR, COSTS, QUIET, head, marks, metric_label, new, nothing, title


def cell_means(factorial: Factorial, meta: Meta) -> np.ndarray:
    """The metric's mean of each cell: a heat map of query-key × coefficient-value for each activation."""
    cells = factorial.cells.assign(text=[f"{mean:.1f}" for mean in factorial.cells["mean"]])
    return _heat(factorial, cells, "mean", f"{meta.title}: {metric_label(meta)}", cmap="cividis")


def interactions(factorial: Factorial, meta: Meta) -> np.ndarray:
    """What each cell has beyond the sum of its slots, in points; with * after Holm's correction, ° a hint."""
    text = f"{meta.title}: {meta.metric.label} beyond the sum of a cell's slots (* beyond the noise, ° a hint)"
    if not factorial.whole:
        axes = nothing(new(8, 3)[1], "; ".join(factorial.left_out) or "no full factorial")
        title(axes, text)
        return np.array([axes])
    signs = dict.fromkeys(CLEAR, "*") | {"hint": "°"}
    cells = factorial.cells
    texts = [meta.metric.signed(number) for number in cells["interaction"]] + cells["verdict"].map(signs).fillna("")
    reach = max(float(cells["interaction"].abs().max()), 1e-9)
    colours = sns.blend_palette(["#B35806", "#FDB863", "#F7F7F7", "#92C5DE", "#0072B2"], as_cmap=True)
    return _heat(factorial, cells.assign(text=texts), "interaction", text, cmap=colours, vmin=-reach, vmax=reach)


def _heat(factorial: Factorial, cells: pd.DataFrame, column: str, text: str, **look: Any) -> np.ndarray:
    """A heat map for each activation, of `column` in colour with the column `text` written in."""
    keys, activations, values = (factorial.levels[slot] for slot in SLOTS)
    wide = max(len(activations), 1)
    size = (max(8, 1.8 + wide * (0.4 + 0.72 * len(values))), 2.2 + 0.5 * len(keys))
    figure, grid = new(*size, columns=wide, sharey=True, squeeze=False)
    head(figure, text, int(13 * size[0]))
    if not len(cells):
        nothing(grid[0, 0])
        return grid[0]
    look = {"vmin": cells[column].min(), "vmax": cells[column].max(), **look}
    for axes, activation in zip(grid[0], activations, strict=True):
        table = cells[cells["activation"] == activation].set_index(["query_key", "coefficient_value"])
        numbers, texts = (table[name].unstack().reindex(index=keys, columns=values) for name in (column, "text"))
        sns.heatmap(numbers, annot=texts.fillna(""), fmt="", annot_kws={"fontsize": 8}, cbar=False, ax=axes, **look)
        axes.set(title=f"activation: {activation}", xlabel="", ylabel="")
        axes.set_xticks(axes.get_xticks(), values, rotation=35, ha="right", rotation_mode="anchor")
    grid[0, 0].set_ylabel("query-key")
    figure.supxlabel("coefficient-value", fontsize=10)
    figure.colorbar(grid[0, 0].collections[0], ax=grid[0].tolist(), pad=0.015)
    return grid[0]


def main_effects(factorial: Factorial, meta: Meta) -> np.ndarray:
    """What each operation buys on average over the other slots, with 95 % intervals; a picture for each slot."""
    figure, grid = new(9, 3.6, columns=len(SLOTS), sharex=True, squeeze=False)
    head(figure, f"{meta.title}: the effect of each operation on {meta.metric.label}, averaged over the other slots")
    for axes, slot in zip(grid[0], SLOTS, strict=True):
        axes.set_title(NAMES[slot])
        rows = factorial.effects[factorial.effects["slot"] == slot] if factorial.whole else factorial.effects
        if not len(rows):
            nothing(axes, "one operation only" if factorial.whole else "no full factorial")
            continue
        rows = rows.assign(place=range(len(rows)))
        marks(axes, rows, "effect", "place", [rows["effect"] - rows["low"], rows["high"] - rows["effect"]], "x")
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.set_yticks(rows["place"], rows["operation"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    unit = meta.metric.points.strip() or meta.metric.label
    figure.supxlabel(f"{unit}, 95 % interval; full: beyond the noise, pale: hint, hollow: inside it", fontsize=9)
    return grid[0]


def slot_costs(costs: pd.DataFrame, meta: Meta) -> Axes:
    """The multiply-adds of each part of each variant (`inside.slot_costs`), stacked, one bar per variant."""
    variants = list(dict.fromkeys(costs["variant"]))
    axes = new(8.5, 2.2 + 0.3 * max(len(variants), 4))[1]
    title(axes, f"{meta.title}: what slots cost")
    if not variants:
        return nothing(axes, "no run has finished yet")
    table = costs.pivot_table(index="variant", columns="part", values="macs", aggfunc="sum", fill_value=0, sort=False)
    table = table.loc[variants[::-1], table.sum() > 0]
    colours = sns.color_palette("tab20", table.shape[1])
    table.plot.barh(stacked=True, ax=axes, width=0.75, edgecolor="white", color=colours)
    for place, number in enumerate(table.sum(axis=1)):
        axes.annotate(readable(number), (number, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel=COSTS["macs"], ylabel="")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    return axes
