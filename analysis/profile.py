"""What mixers can do: every variant of a grid on every task that the grid ran on, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .folders import Json, task_of
from .frame import Meta, each, grids, load, plural
from .solving import too_few
from .statistics import compare, judged
from .tables import Table, share, unequal

SIGNS = {"better": "▲", "worse": "▼", "hint": "?"}


def profile(root: str | Path, grid: str) -> tuple[pd.DataFrame, dict[str, Meta]]:
    """A row for each variant on each task that `grid` ran on, and what the runs of each task are about.

    Variants are in declared order, tasks in the order of what the base can do. Where learning rates were tried, each
    variant has its best one. Columns are those of `statistics.compare`, but corrected over all variants and tasks
    together, and `task`; `level` (where the mean stands: 0 chance, 1 solved); and where bases are one task at several
    values of a parameter, the task's `kind`, that parameter as `dial`, and its value as `at`.

    Raises ValueError: the grid ran on no task that can be solved.
    """
    parts, metas, configs = [], {}, {}
    for _, data in grids(root, grid):
        runs, meta = load(root, grid, data)
        metric = meta.metric
        if metric.chance is not None and metric.solved is not None:
            table = compare(runs, meta).assign(task=data)
            table["level"] = ((table["mean"] - metric.chance) / (metric.solved - metric.chance)).clip(0, 1)
            parts.append(table)
            metas[data] = meta
            configs[data] = task_of(runs["folder"])
    if not parts:
        raise ValueError(f"{grid} in {root} ran on no task that has a chance level")
    table = pd.concat(parts, ignore_index=True)
    able = table[table["base"]].set_index("task")["level"]
    table = table.sort_values("task", key=lambda task: -able.reindex(task).to_numpy(), kind="stable", ignore_index=True)
    table = table.merge(_dials(configs), on="task", how="left")
    return judged(table, sign=table["task"].map(lambda task: metas[task].metric.sign)), metas


def _dials(configs: dict[str, Json]) -> pd.DataFrame:
    """The one number in which several bases of one task differ: its name as `dial`, its value for each as `at`."""
    found = []
    kinds = {config.get("name") for config in configs.values()} - {None}
    for kind in kinds:
        own = pd.DataFrame({task: config for task, config in configs.items() if config.get("name") == kind}).T
        differ = [key for key in own if own[key].astype(str).nunique() > 1]
        if len(differ) == 1:
            found += [(task, kind, differ[0], float(at)) for task, at in own[differ[0]].items()]
    return pd.DataFrame(found, columns=["task", "kind", "dial", "at"])


def cells(table: pd.DataFrame, metas: dict[str, Meta]) -> pd.DataFrame:
    """What a reader sees of each variant (row) on each task (column), with a sign where it differs.

    It is the mean with three digits, or where some seeds solved the task and some did not, how many did.
    """
    said = [_score(row) + SIGNS.get(row.verdict, "") for row in each(table)]
    shown = table.assign(said=said).pivot(index="variant", columns="task", values="said")
    return shown.loc[table["variant"].unique(), table["task"].unique()]


def _score(row: Any) -> str:
    if np.isnan(row.mean):
        return ""
    return share(row) if row.mixed else f"{row.mean:#.3g}".removesuffix(".")


def render(table: pd.DataFrame, metas: dict[str, Meta]) -> Table:
    """The profile as a table, with chance and solved in its first rows."""
    shown = cells(table, metas)
    for place, word in enumerate(("chance", "solved")):
        levels = [f"{getattr(metas[str(task)].metric, word):.3g}" for task in shown]
        shown = pd.concat([shown[:place], pd.DataFrame([levels], [word], shown.columns), shown[place:]])
    return Table(shown.reset_index(names="variant"), heading(table, metas), notes(table, metas))


def heading(table: pd.DataFrame, metas: dict[str, Meta]) -> str:
    named = " and ".join(dict.fromkeys(meta.metric.heading for meta in metas.values()))
    best = ", each variant at its best learning rate" if table["rates"].notna().any() else ""
    return f"{named}, mean of {plural(int(table['n'].max()), 'seed')}{best}"


def legend(table: pd.DataFrame) -> str:
    """What the signs mean."""
    base = table.loc[table["base"], "variant"].iloc[0]
    return f"▲ ▼ better, worse than {base} after Holm's correction over the whole table; ? a hint"


def notes(table: pd.DataFrame, metas: dict[str, Meta]) -> list[str]:
    """What a reader must know to read the table, a line each."""
    lines = [legend(table) + "."]
    if table["mixed"].any():
        lines += ["2/3: two of three seeds solved the task. Where they disagree, the shares are tested, not the means."]
    by_task = [(str(task), group) for task, group in table.groupby("task", sort=False)]
    if (table["solved"] == 0).any():
        steps = sorted(set(table.loc[table["solved"] == 0, "steps"].dropna().astype(int)))
        lines += [f"Below solved: no seed solved the task within {' or '.join(map(str, steps))} steps."]
        lines += [f"{task}: {line}" for task, group in by_task for line in too_few(group)]
    levels = [(task, *level) for task, _ in by_task for level in metas[task].metric.levels.items()]
    lines += [f"{task}: a network that {name} gets {metas[task].metric.value(value)}." for task, name, value in levels]
    lines += [f"{task}: left out, {line}." for task, _ in by_task for line in metas[task].left_out]
    return [*lines, *max((unequal(group) for _, group in by_task), key=len)]
