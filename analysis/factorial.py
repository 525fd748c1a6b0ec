"""Is a cell better than the sum of its slots? Main effects and interactions of a full factorial of token mixers.

A grid that trained every query-key × activation × coefficient-value with the same seeds splits the score of a cell
into the mean, a main effect for each slot's operation, and the rest: its interaction. It is an analysis of variance in
randomised blocks, a seed a block (Fisher, "The Design of Experiments", 1935): what cells and seeds leave over estimates
the noise once for all cells, so that three seeds suffice for a test. It takes the noise to be alike in all cells,
and speaks about seeds: the test images are taken as given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from . import rates
from .frame import Meta, plural
from .intervals import CONFIDENCE, holm, student, verdicts

SLOTS = ("query_key", "activation", "coefficient_value")
NAMES = {"query_key": "query-key", "activation": "activation", "coefficient_value": "coefficient-value"}
_MIXER = "config.model.stages.0.token_mixer."


@dataclass(frozen=True)
class Factorial:
    """A factorial taken apart.

    Attributes:
        cells: one row per cell: the slots, `variant`, `n` seeds, `mean`, `sd`; and where it can be taken apart
            `additive` (the sum of its slots), `interaction` (what is left) with `low`, `high`, `p`, `p_holm` and
            `verdict`.
        levels: the operations of each slot, in declared order.
        seeds: those that every cell has a result for.
        left_out: one line for each thing that is in no figure, and why.
        effects: one row per operation of a slot: `effect` on the mean with `low`, `high`, `p`, `p_holm`, `verdict`.
        sources: the analysis of variance: `source`, `df`, `share` of the cells' sum of squares, `f`, `p`, `p_holm`,
            `verdict`.
        noise: standard deviation of one run, without what cells and seeds explain.
    """

    cells: pd.DataFrame
    levels: dict[str, list[str]]
    seeds: tuple[int, ...]
    left_out: tuple[str, ...]
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    sources: pd.DataFrame = field(default_factory=pd.DataFrame)
    noise: float = float("nan")

    @property
    def whole(self) -> bool:
        """Whether every cell is there, at two seeds or more, so that it could be taken apart."""
        return len(self.sources) > 0


def slots_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The operation in each slot of the first stage's token mixer, one row per run; empty where it is no MetaMixer.

    An operation is named with those of its parameters that tell it from another one of its name in these runs; widths
    that match a cost are none of them.

    Args:
        runs: `frame.load(..., with_config=True)`.
    """
    found = {}
    for slot in SLOTS:
        prefix = f"{_MIXER}{slot}."
        labels = runs.get(f"{prefix}name", pd.Series("", index=runs.index)).fillna("").astype(str)
        keys = [name for name in runs.columns if name.startswith(prefix) and not name.endswith(".head_dim")]
        for _, rows in runs[keys].groupby(labels):
            for key in keys:
                if rows[key].nunique(dropna=False) > 1:
                    labels[rows.index] += [_parameter(key.removeprefix(prefix), value) for value in rows[key]]
        found[slot] = labels
    return pd.DataFrame(found, index=runs.index)


def _parameter(key: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return f" {number}×{number}" if key == "kernel_size" else f" {key.replace('_', ' ')} {number}"


def take_apart(runs: pd.DataFrame, meta: Meta) -> Factorial:
    """The cells of a grid, and where they make a full factorial, its main effects and interactions.

    Args:
        runs: `frame.load(..., with_config=True)`.
    """
    slots, metric = list(SLOTS), meta.metric
    runs = rates.at_best(runs, meta)
    table = runs[["variant", "seed", "state"]].assign(y=runs[metric.name]).join(slots_of(runs))
    for slot in slots:  # a run that was not started has no configuration, but others of its variant have
        table[slot] = table["variant"].map(table[table[slot] != ""].groupby("variant")[slot].first()).fillna("")
    known = (table[slots] != "").all(axis=1)
    unknown = ", ".join(dict.fromkeys(table.loc[~known, "variant"]))
    left_out = [f"no MetaMixer, or no configuration yet: {unknown}"] if unknown else []
    levels = {slot: list(dict.fromkeys(table.loc[known, slot])) for slot in slots}
    done = table[known & (table["state"] == "done") & table["y"].notna()]
    cells = done.groupby(slots, sort=False).agg(
        variant=("variant", "first"), n=("y", "size"), mean=("y", "mean"), sd=("y", "std")
    )
    size = int(np.prod([len(of) for of in levels.values()]))
    done = done.drop_duplicates([*slots, "seed"])
    at_seed = done.groupby("seed").size()
    seeds = tuple(int(seed) for seed in at_seed.index[at_seed == size])
    if len(cells) < size:
        left_out.append(f"{size - len(cells)} of {size} cells have no result: interactions need them all")
    elif len(seeds) < max(len(at_seed), 2):
        partly = [str(seed) for seed in at_seed.index[at_seed != size]]
        of = f" (of seed {', '.join(partly)} some cells are missing)" if partly else ""
        left_out.append(f"{plural(len(seeds), 'seed')} with every cell{of}; interactions need two or more")
    found = Factorial(cells.reset_index(), levels, seeds, tuple(left_out))
    if len(seeds) < 2 or size < 2:
        return found
    return _analysed(done[done["seed"].isin(seeds)], found, metric.sign)


def _analysed(done: pd.DataFrame, found: Factorial, sign: int) -> Factorial:
    """`done`: one row per cell and seed, complete, with the metric as `y`."""
    from statsmodels.formula.api import ols  # half a second that only this needs
    from statsmodels.stats.anova import anova_lm

    slots = [slot for slot in SLOTS if len(found.levels[slot]) > 1]
    n, size = len(found.seeds), len(found.cells)
    table = anova_lm(ols(f"y ~ C(seed) + {' * '.join(slots)}", done.astype({"seed": "int64"})).fit())
    df, ms = table.loc["Residual", ["df", "mean_sq"]]
    names = {"df": "df", "sum_sq": "share", "F": "f", "PR(>F)": "p"}
    sources = table.drop(["C(seed)", "Residual"])[list(names)].rename(columns=names).astype({"df": int})
    sources["share"] /= sources["share"].sum()
    sources["p_holm"] = holm(sources["p"].to_numpy())
    sources["verdict"] = np.where(sources["p_holm"] < 1 - CONFIDENCE, "beyond noise", "inside noise")
    sources.insert(0, "source", [" × ".join(NAMES[slot] for slot in name.split(":")) for name in sources.index])

    mean = done["y"].mean()
    cell_means = done.groupby(list(SLOTS), sort=False)["y"].mean()
    parts = {slot: (cell_means.groupby(slot).mean() - mean).reindex(found.levels[slot]) for slot in slots}
    effects = pd.concat(
        pd.DataFrame({"operation": part.index, "effect": part.to_numpy(), "slot": slot})
        .assign(error=np.sqrt(ms / n * (len(part) - 1) / size))
        for slot, part in parts.items()
    )  # fmt: skip
    additive = mean + sum(found.cells[slot].map(part) for slot, part in parts.items())
    interaction = cell_means.reindex(pd.MultiIndex.from_frame(found.cells[list(SLOTS)])).to_numpy() - additive
    free = 1 + sum(len(part) - 1 for part in parts.values())
    cells = found.cells.assign(additive=additive, interaction=interaction, error=np.sqrt(ms / n * (1 - free / size)))
    return replace(
        found,
        cells=_judged(cells, "interaction", df, sign),
        effects=_judged(effects.reset_index(drop=True), "effect", df, sign),
        sources=sources.reset_index(drop=True),
        noise=float(np.sqrt(ms)),
    )


def _judged(table: pd.DataFrame, column: str, df: float, sign: int) -> pd.DataFrame:
    """With a t interval from the standard `error`, p, Holm's p over the rows, and a verdict."""
    low, high, p = student(table[column], table["error"].where(table["error"] > 0), df)
    table = table.assign(low=low, high=high, p=p).drop(columns="error")
    table["p_holm"] = holm(table["p"].to_numpy())
    return table.assign(verdict=verdicts(table, column, sign=sign))
