"""What mixers can do, as a picture: one row per variant, one column per task."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ..metrics import Metric
from ..profile import cells
from .theme import new, title


def profile_map(table: pd.DataFrame, metric: Metric) -> Axes:
    """Variants by tasks; the colour goes from chance to solved, a sign says where a variant differs from the base.

    Args:
        table: as `analysis.profile.profile` gives it.
    """
    said = cells(table, metric)
    level = table.pivot(index="variant", columns="task", values="level").loc[said.index, said.columns]
    _, axes = new(2.2 + 1.25 * said.shape[1], 1.6 + 0.42 * said.shape[0])
    sns.heatmap(
        level,
        annot=said,
        fmt="",
        cmap=sns.light_palette("#0072B2", as_cmap=True),
        vmin=0,
        vmax=1,
        linewidths=1.5,
        cbar_kws={"ticks": [0, 1], "shrink": 0.8},
        ax=axes,
    )
    axes.collections[0].colorbar.set_ticklabels(["chance", "solved"])  # type: ignore[union-attr]
    axes.tick_params(length=0)
    axes.tick_params(axis="y", rotation=0)
    base = table.loc[table["base"], "variant"].iloc[0]
    axes.set(ylabel="", xlabel=f"▲ ▼ above, below {base} after Holm's correction;  ? a hint")
    title(axes, f"{metric.heading}, mean of {int(table['n'].max())} seeds")
    return axes
