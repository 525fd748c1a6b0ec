"""What mixers can do: every variant of a grid on every task that the grid ran on, as one table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from .frame import each, load, settings
from .intervals import holm, verdicts
from .metrics import Metric
from .statistics import compare

SIGNS = {"above": " ▲", "below": " ▼", "hint": " ?"}


def profile(root: str | Path, grid: str) -> tuple[pd.DataFrame, Metric]:
    """A row for each variant on each task that `grid` ran on, and the metric. Variants are in declared order,
    tasks in the order of what the base can do.

    Columns: `variant`, `base`, `task`, `n` (seeds with a result), `mean` and `sd` of the metric, `chance` and `solved`
    of the task, `level` (where the mean stands between them: 0 chance, 1 solved), and the comparison with the base as
    in `statistics.compare`, but with `p_holm` and `verdict` over all variants and tasks together.

    Raises:
        ValueError: the grid ran on no task with levels.
    """
    parts = []
    for _, data in settings(root, grid):
        runs, meta = load(root, grid, data)
        if meta.levels:
            table = compare(runs, meta).assign(task=data, **meta.levels)
            parts.append((table, meta.metric))
    if not parts:
        raise ValueError(f"{grid} in {root} ran on no task that has a chance level")
    table = pd.concat([part for part, _ in parts], ignore_index=True)
    table["level"] = ((table["mean"] - table["chance"]) / (table["solved"] - table["chance"])).clip(0, 1)
    able = table[table["base"]].set_index("task")["level"]  # tasks stand in the order of what the base can do
    table = table.sort_values("task", key=lambda task: -able.reindex(task).to_numpy(), kind="stable", ignore_index=True)
    others = ~table["base"]
    table.loc[others, "p_holm"] = holm(table.loc[others, "p"].to_numpy(float))
    table["verdict"] = np.where(others, verdicts(table), "base")
    return table, parts[0][1]


def cells(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """What a reader sees of each variant (row) on each task (column): the mean, and a sign where it differs."""
    said = [
        "" if np.isnan(row.mean) else metric.value(row.mean, unit=False) + SIGNS.get(row.verdict, "")
        for row in each(table)
    ]
    shown = table.assign(said=said).pivot(index="variant", columns="task", values="said")
    return shown.loc[table["variant"].unique(), table["task"].unique()]


def render(table: pd.DataFrame, metric: Metric) -> Table:
    """The profile for the terminal."""
    shown = cells(table, metric)
    chance = table.drop_duplicates("task").set_index("task")["chance"].to_dict()
    base = table.loc[table["base"], "variant"].iloc[0]
    seeds = int(table["n"].max())
    found = Table(
        box=box.SIMPLE,
        title=f"{metric.heading}, mean of {seeds} seeds",
        title_justify="left",
        caption=f"▲ ▼ above and below {base} after Holm's correction over the whole table; ? a hint",
        caption_justify="left",
    )
    found.add_column("variant")
    for task in shown:
        found.add_column(str(task), justify="right")
    found.add_row("chance", *(metric.value(chance[task], unit=False) for task in shown), style="dim")
    for variant, row in shown.iterrows():
        found.add_row(str(variant), *row, style="bold" if variant == base else "")
    return found
