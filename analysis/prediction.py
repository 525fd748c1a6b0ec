"""Do probes predict what a mixer is worth on images? Rank correlations over the mixers that grids have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metamixer.training.folder import RunFolder

from .frame import each, grids, load, plural
from .intervals import holm, spearman, verdicts
from .profile import SIGNS, profile
from .published import published_mixers
from .statistics import compare
from .tables import markdown

ALL = "mean of all"  # the mean level over all probes, as a probe of its own


def mixers(runs: pd.DataFrame) -> dict[str, str]:
    """The first token mixer of each variant's network, as a text by which grids find what they have in common.

    Widths and head sizes are left out: they follow from the network around a mixer.
    """
    found = {}
    for row in each(runs.drop_duplicates("variant")):
        mixer = _token_mixer((RunFolder(row.folder).read("config.json") or {}).get("config", {}).get("model"))
        if mixer is not None:
            found[row.variant] = json.dumps(_without_heads(mixer), sort_keys=True)
    return found


def _token_mixer(node: Any) -> Any:
    if isinstance(node, dict) and "token_mixer" in node:
        return node["token_mixer"]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return next((mixer for mixer in map(_token_mixer, inner) if mixer is not None), None)


def _without_heads(node: Any) -> Any:
    return {k: _without_heads(v) for k, v in node.items() if k != "head_dim"} if isinstance(node, dict) else node


def points(root: str | Path, probes: Iterable[str], outcomes: Iterable[str]) -> pd.DataFrame:
    """One row per outcome, mixer and probe: `levels` on the grids `probes`, and `worths` in `outcomes`."""
    return worths(root, outcomes).merge(levels(root, probes), on="mixer")


def levels(root: str | Path, names: Iterable[str]) -> pd.DataFrame:
    """How far each mixer gets on each probe: `variant`, `mixer`, `task`, `score` and `level` (0 chance, 1 solved).

    A mixer that several grids ran counts once, in the first of them. The task `ALL` is the mean level of those mixers
    that ran on all probes. Grids that never ran are left out.
    """
    parts = [pd.DataFrame(columns=["variant", "mixer", "task", "mean", "level"])]
    for grid in (grid for grid in names if grids(root, grid)):
        table, metas = profile(root, grid)
        known = {name: mixer for task in metas for name, mixer in mixers(load(root, grid, task)[0]).items()}
        parts.append(table.assign(mixer=table["variant"].map(known)))
    table = pd.concat(parts).dropna(subset=["mixer", "mean"]).drop_duplicates(["mixer", "task"])
    table["variant"] = table.groupby("mixer")["variant"].transform("first")
    table = table.rename(columns={"mean": "score"})[["variant", "mixer", "task", "score", "level"]]
    wide = table.pivot(index=["variant", "mixer"], columns="task", values="level").dropna()
    of_all = wide.mean(axis=1).rename("level").reset_index().assign(task=ALL)
    return pd.concat([table, of_all.assign(score=of_all["level"])], ignore_index=True)


def worths(root: str | Path, outcomes: Iterable[str]) -> pd.DataFrame:
    """What mixers are worth: `outcome` ("GRID@DATA"), `mixer`, `worth` (more is better), its `error` over seeds.

    `measure` says what the worth is: the metric with its unit, with a minus where less is better.
    """
    parts = [pd.DataFrame(columns=["outcome", "mixer", "worth", "error", "measure"])]
    there = grids(root)
    for outcome in outcomes:
        grid, data = outcome.split("@")
        if (grid, data) not in there:
            continue
        runs, meta = load(root, grid, data)
        table = compare(runs, meta).assign(outcome=outcome)
        table["mixer"] = table["variant"].map(mixers(runs)).astype(object)
        unit = f" ({meta.metric.unit})" if meta.metric.unit else ""
        table["measure"] = "−" * (meta.metric.sign < 0) + meta.metric.label + unit
        table["worth"], table["error"] = meta.metric.sign * table["mean"], table["sd"] / table["n"] ** 0.5
        parts.append(table.dropna(subset=["mixer", "worth"]).drop_duplicates("mixer"))
    return pd.concat(parts, join="inner", ignore_index=True)


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """A row for each outcome and probe: `spearman` over `n` mixers, `low` to `high`, `p`, `p_holm` and `verdict`.

    Holm's correction is over the probes of an outcome. `reliable` is the share of the variance of the mixers' means
    that is not noise over seeds: with little of it, no probe can predict. NaN where one seed ran.
    """
    rows = []
    for (outcome, task), own in points.groupby(["outcome", "task"], sort=False):
        r, low, high, p = spearman(own["score"].to_numpy(), own["worth"].to_numpy())
        reliable = np.maximum(0, 1 - (own["error"] ** 2).mean() / own["worth"].var())
        rows.append((outcome, task, len(own), r, low, high, p, reliable))
    table = pd.DataFrame(rows, columns=["outcome", "task", "n", "spearman", "low", "high", "p", "reliable"])
    table["p_holm"] = table.groupby("outcome")["p"].transform(lambda p: holm(p.to_numpy()))
    return table.assign(verdict=verdicts(table, "spearman"))


def to_markdown(table: pd.DataFrame) -> str:
    """The correlations, one row per probe and one column per outcome, and what a reader must know of them."""
    said = [
        f"{row.spearman:+.2f} [{row.low:+.2f}, {row.high:+.2f}] {SIGNS.get(row.verdict, '')}".replace("-", "−").rstrip()
        if pd.notna(row.low)
        else f"too few ({row.n})" if row.n < 5 else "–"
        for row in each(table)
    ]  # fmt: skip
    wide = table.assign(said=said).pivot(index="task", columns="outcome", values="said")
    wide = wide.loc[table["task"].unique(), table["outcome"].unique()].fillna("–").reset_index(names="probe")
    lines = [
        "Spearman's rank correlation over mixers [95 %]. ▲ ▼: not zero after Holm's correction over the probes; ? a "
        "hint. –: all mixers score alike on the probe."
    ]
    for row in each(table.sort_values("n").drop_duplicates("outcome", keep="last").sort_index()):
        share = f"{100 * row.reliable:.0f} % of the variance of their means is not noise over seeds"
        lines.append(f"{row.outcome}: {plural(row.n, 'mixer')}; {'one seed' if pd.isna(row.reliable) else share}.")
    return "\n".join([markdown(wide), "", *(f"{line}  " for line in lines)])


def beside_published(points: pd.DataFrame) -> str:
    """Published accuracies of mixers, beside their worth and their levels on probes here; in Markdown."""
    table = published_mixers().drop(columns="source")
    for column, value, form in (("outcome", "worth", "{:.2f}"), ("task", "level", "{:.0%}")):
        found = points.drop_duplicates(["variant", column]).pivot(index="variant", columns=column, values=value)
        table = table.join(found[points[column].unique()].map(form.format, na_action="ignore"), on="mixer")
    return markdown(table.fillna("–"))
