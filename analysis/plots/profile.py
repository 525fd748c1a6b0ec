"""What mixers can do, as pictures: variants by tasks, and curves along the dial of a task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ..frame import Meta, each
from ..profile import cells, heading, legend
from .theme import BASE, COLOURS, DASHED, QUIET, head, new


def profile_map(table: pd.DataFrame, metas: dict[str, Meta]) -> Axes:
    """Variants by tasks; the colour goes from chance to solved, a sign says where a variant differs from the base.

    Args:
        table, metas: as `analysis.profile.profile` gives them.
    """
    said = cells(table, metas)
    tasks = [str(task) for task in said]
    level = table.pivot(index="variant", columns="task", values="level").loc[said.index, said.columns]
    wide, high = 1.25 if said.shape[1] < 8 else 0.72, 0.42 if said.shape[0] < 20 else 0.23
    width = 2.6 + wide * said.shape[1]
    figure, axes = new(width, 2.1 + high * said.shape[0])
    colours = sns.light_palette("#0072B2", as_cmap=True)
    bar = {"ticks": [0, 1], "shrink": 0.8, "aspect": 40, "pad": 0.01}
    sns.heatmap(level, annot=said, fmt="", cmap=colours, vmin=0, vmax=1, linewidths=1.5, cbar_kws=bar, ax=axes)
    axes.collections[0].colorbar.set_ticklabels(["chance", "solved"])  # type: ignore[union-attr]
    axes.tick_params(axis="y", rotation=0)
    levels = [f"{metas[task].metric.chance:.3g}–{metas[task].metric.solved:.3g}" for task in tasks]
    heads = [task.replace("_", "\n") + f"\n{level}" for task, level in zip(tasks, levels, strict=True)]
    axes.set_xticks(axes.get_xticks(), heads)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.set(ylabel="", xlabel="each task, and its accuracy from chance to solved")
    some = "; 2/3 two of three seeds solved it" if table["mixed"].any() else ""
    head(figure, f"{heading(table, metas)}. {legend(table)}{some}", int(12.5 * width))
    return axes


def dial_curves(table: pd.DataFrame, metas: dict[str, Meta]) -> np.ndarray:
    """The metric against the dial of a task, one line per variant, a picture for each task with a dial.

    A bar goes from the lowest to the highest seed. Dashed lines are chance and solved.

    Args:
        table, metas: as `analysis.profile.profile` gives them, of a grid with a task that has a dial.
    """
    kinds = list(table["kind"].dropna().unique())
    figure, grid = new(5.2 * len(kinds) + 1.6, 4.2, columns=len(kinds), squeeze=False)
    variants = list(table["variant"].unique())
    looks: dict[str, Any] = dict(zip(variants, [*COLOURS, *[QUIET] * len(variants)], strict=False))
    looks |= dict.fromkeys(table.loc[table["base"], "variant"], BASE)
    for axes, kind in zip(grid[0], kinds, strict=True):
        own = table[table["kind"] == kind].sort_values("at")
        metric = metas[own["task"].iloc[0]].metric
        for variant in variants:
            rows = own[own["variant"] == variant]
            reach = [rows["mean"] - rows["lowest"], rows["highest"] - rows["mean"]]
            axes.errorbar(rows["at"], rows["mean"], reach, label=variant, color=looks[variant], marker="o", capsize=3)
        for level in ("chance", "solved"):
            values = [getattr(metas[row.task].metric, level) for row in each(own.drop_duplicates("task"))]
            axes.plot(own["at"].unique(), values, color=QUIET, linestyle=DASHED, linewidth=0.8, zorder=1)
            axes.annotate(level, (own["at"].max(), values[-1]), (3, 2), textcoords="offset points", fontsize=8)
        axes.set(xlabel=f"{own['dial'].iloc[0]} of {kind}", ylabel=metric.heading, xticks=own["at"].unique())
    grid[0, -1].legend(loc="center left", bbox_to_anchor=(1.12, 0.5))
    head(figure, f"{heading(table, metas)}; bars from the lowest to the highest seed")
    return grid[0]
