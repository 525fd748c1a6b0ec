"""Is a cell better than the sum of its slots? Main effects and interactions of a full factorial of token mixers.

A grid that trained every query-key × activation × coefficient-value with the same seeds splits the accuracy of a cell
into the mean, a main effect for each slot's operation, and the rest: its interaction. It is an analysis of variance in
randomised blocks, a seed a block (Fisher, "The Design of Experiments", 1935): what cells and seeds leave over estimates
the noise once for all cells, so that three seeds suffice for a test. It takes the noise to be alike in all cells,
and speaks about seeds: the test images are taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special

from . import rates
from .frame import Meta, each
from .intervals import CONFIDENCE, holm
from .tables import interval, plural, signed, value

SLOTS = ("query_key", "activation", "coefficient_value")
_NAMES = {"query_key": "query-key", "activation": "activation", "coefficient_value": "coefficient-value"}
_MIXER = "config.model.stages.0.token_mixer."
_OF_WIDTH = {"head_dim"}  # what matching a cost changes


@dataclass(frozen=True)
class Factorial:
    """A factorial taken apart.

    Attributes:
        cells: a row a cell: the slots, `variant`, `n` seeds, `mean`, `sd`; and where it can be taken apart
            `additive` (the sum of its slots), `interaction` (what is left) with `low`, `high`, `p`, `p_holm` and
            `verdict`.
        effects: a row a slot's operation: `slot`, `operation`, `effect` on the mean with `low`, `high`, `verdict`.
        sources: the analysis of variance: `source`, `df`, `share` of the cells' sum of squares, `f`, `p`, `p_holm`.
        levels: the operations of each slot, in declared order.
        seeds: those that every cell has a result for.
        noise: standard deviation of one run, without what cells and seeds explain.
        left_out: one line for each thing that is in no figure, and why.
    """

    cells: pd.DataFrame
    effects: pd.DataFrame
    sources: pd.DataFrame
    levels: dict[str, list[str]]
    seeds: tuple[int, ...]
    noise: float
    left_out: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every cell is there, at two seeds or more, so that it could be taken apart."""
        return len(self.effects) > 0


def slots_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The operation in each slot of the first stage's token mixer, a row a run; empty where it is no MetaMixer.

    An operation is named with those of its parameters that tell it from another one of its name in these runs.

    Args:
        runs: `frame.load(..., with_config=True)`.
    """
    found = {}
    for slot in SLOTS:
        prefix = f"{_MIXER}{slot}."
        names = runs.get(f"{prefix}name", pd.Series("", index=runs.index)).fillna("").astype(str)
        keys = [name for name in runs.columns if name.startswith(prefix) and name[len(prefix) :] not in _OF_WIDTH]
        labels = dict(names)
        for name in set(names) - {""}:
            rows = runs.loc[names == name, [key for key in keys if key != f"{prefix}name"]]
            varying = [key for key in rows.columns if rows[key].nunique(dropna=False) > 1]
            for index, row in rows[varying].iterrows():
                labels[index] = " ".join(
                    [name, *(_parameter(key.rpartition(".")[2], row[key]) for key in varying)]
                ).strip()
        found[slot] = pd.Series(labels, index=runs.index, dtype=str)
    return pd.DataFrame(found, index=runs.index)


def _parameter(key: str, setting: object) -> str:
    if pd.isna(setting):  # type: ignore[call-overload]
        return ""
    number = f"{setting:g}" if isinstance(setting, float) else str(setting)
    return f"{number}×{number}" if key == "kernel_size" else f"{key.replace('_', ' ')} {number}"


def take_apart(runs: pd.DataFrame, metric: str = "top1") -> Factorial:
    """The cells of a grid, and where they make a full factorial, its main effects and interactions.

    Args:
        runs: one grid on one data set, `frame.load(..., with_config=True)`.
    """
    runs = rates.at(runs, "fixed")
    table = pd.concat([runs[["variant", "seed", "state", metric]], slots_of(runs)], axis=1)
    for slot in SLOTS:  # a run that was not started has no configuration, but others of its variant have
        named = table[table[slot] != ""].groupby("variant")[slot].first()
        table[slot] = table["variant"].map(named).fillna("")
    known = (table[list(SLOTS)] != "").all(axis=1)
    left_out = [f"no MetaMixer, or no configuration yet: {', '.join(dict.fromkeys(table.loc[~known, 'variant']))}"]
    left_out = left_out if (~known).any() else []
    table = table[known]
    levels = {slot: list(dict.fromkeys(table[slot])) for slot in SLOTS}
    done = table[(table["state"] == "done") & table[metric].notna()]
    grouped = done.groupby(list(SLOTS), sort=False)
    cells = grouped.agg(
        variant=("variant", "first"), n=(metric, "size"), mean=(metric, "mean"), sd=(metric, "std")
    ).reset_index()
    shape = tuple(len(levels[slot]) for slot in SLOTS)
    at_seed = {
        seed: group.drop_duplicates(list(SLOTS)).set_index(list(SLOTS))[metric] for seed, group in done.groupby("seed")
    }
    every = pd.MultiIndex.from_product([levels[slot] for slot in SLOTS], names=list(SLOTS))
    whole = {int(str(seed)): values for seed, values in at_seed.items() if len(values) == len(every)}
    if len(every) and len(cells) < len(every):
        left_out.append(f"{len(every) - len(cells)} of {len(every)} cells have no result: interactions need them all")
    elif len(whole) < max(len(at_seed), 2):
        partly = [str(seed) for seed in at_seed if seed not in whole]
        seeds = f" (of seed {', '.join(partly)} some cells are missing)" if partly else ""
        left_out.append(f"{plural(len(whole), 'seed')} with every cell{seeds}; interactions need two or more")
    nothing = pd.DataFrame(columns=["slot", "operation", "effect", "low", "high", "p", "p_holm", "verdict"])
    if len(whole) < 2 or not len(every):
        sources = pd.DataFrame(columns=["source", "df", "share", "f", "p", "p_holm"])
        return Factorial(cells, nothing, sources, levels, tuple(whole), float("nan"), tuple(left_out))
    y = np.stack([values.reindex(every).to_numpy().reshape(shape) for values in whole.values()])
    return _analysed(y, cells, levels, tuple(whole), tuple(left_out))


def _analysed(
    y: np.ndarray, cells: pd.DataFrame, levels: dict[str, list[str]], seeds: tuple[int, ...], left_out: tuple[str, ...]
) -> Factorial:
    """`y` (seeds, *levels), complete."""
    n, mean = len(y), y.mean(0)
    axes = tuple(range(1, y.ndim))
    error = y - mean - y.mean(axes, keepdims=True) + y.mean()
    df = (n - 1) * (mean.size - 1)
    ms = (error**2).sum() / df
    parts = {subset: _effect(mean, subset) for subset in _subsets(mean.ndim)}
    total = sum((part**2).sum() * mean.size / part.size for part in parts.values())
    rows = []
    for subset, part in parts.items():
        freedom = int(np.prod([mean.shape[axis] - 1 for axis in subset]))
        squares = (part**2).sum() * mean.size / part.size
        f = n * squares / freedom / ms if freedom and ms > 0 else np.nan
        p = special.fdtrc(freedom, df, f) if freedom else np.nan
        rows.append((" × ".join(_NAMES[SLOTS[axis]] for axis in subset), freedom, squares / total, f, p))
    sources = pd.DataFrame(rows, columns=["source", "df", "share", "f", "p"])
    sources["p_holm"] = holm(sources["p"].to_numpy())

    effects = pd.concat(
        [
            pd.DataFrame({"slot": slot, "operation": levels[slot], "effect": parts[(axis,)].ravel()}).assign(
                error=np.sqrt(ms / n * (mean.shape[axis] - 1) / mean.size)
            )
            for axis, slot in enumerate(SLOTS)
            if mean.shape[axis] > 1
        ],
        ignore_index=True,
    )
    effects = _judged(effects, "effect", df)
    additive = mean.mean() + reduce(np.add, (parts[(axis,)] for axis in range(mean.ndim)))
    free = 1 + sum(size - 1 for size in mean.shape)
    index = pd.MultiIndex.from_product([levels[slot] for slot in SLOTS], names=list(SLOTS))
    taken = pd.DataFrame({"additive": additive.ravel(), "interaction": (mean - additive).ravel()}, index=index)
    taken["error"] = np.sqrt(ms / n * (1 - free / mean.size)) if mean.size > free else np.nan
    joined = cells.join(_judged(taken, "interaction", df), on=list(SLOTS))
    return Factorial(joined, effects, sources, levels, seeds, float(np.sqrt(ms)), left_out)


def _subsets(n: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, n + 1):
        yield from combinations(range(n), size)


def _effect(mean: np.ndarray, subset: tuple[int, ...]) -> np.ndarray:
    """The effect of these axes together, without those of fewer of them; other axes have size 1."""
    effect = np.zeros(())
    for size in range(len(subset) + 1):
        for kept in combinations(subset, size):
            others = tuple(axis for axis in range(mean.ndim) if axis not in kept)
            effect = effect + (-1) ** (len(subset) - size) * mean.mean(others, keepdims=True)
    return effect


def _judged(table: pd.DataFrame, column: str, df: int) -> pd.DataFrame:
    """With a t interval, p, Holm's p over the rows, and a verdict in the words of a comparison's."""
    error = table["error"].where(table["error"] > 0)
    half = error * float(special.stdtrit(df, 0.5 + CONFIDENCE / 2))
    p = 2 * special.stdtr(df, -(table[column] / error).abs())
    table = table.assign(low=table[column] - half, high=table[column] + half, p=p).drop(columns="error")
    table["p_holm"] = holm(table["p"].to_numpy())
    noise = ~((table["low"] > 0) | (table["high"] < 0))
    clear = table["p_holm"] < 1 - CONFIDENCE
    table["verdict"] = np.select([noise, ~clear, table[column] > 0], ["inside noise", "hint", "above"], "below")
    return table


def conclusion(factorial: Factorial, meta: Meta) -> str:
    """What the factorial says, computed from it: a few sentences, one a line; no winner inside the noise."""
    lines = [f"Left out: {line}." for line in factorial.left_out]
    if not factorial.whole:
        return "\n".join([f"No conclusion for {meta.grid} on {meta.data}: no full factorial to take apart.", *lines])
    sources, cells, effects = factorial.sources, factorial.cells, factorial.effects
    said = [
        f"{len(cells)} cells on {meta.data}, {plural(len(factorial.seeds), 'seed')} each; one run scatters by"
        f" {value(factorial.noise, meta, unit=False)} points around what its cell and its seed explain."
    ]
    for row in each(sources):
        known = row.p_holm < 1 - CONFIDENCE
        verdict = f"beyond the noise (F {row.f:.1f}, p {row.p_holm:.2g} after Holm)" if known else "inside the noise"
        said.append(f"{row.source}: {100 * row.share:.0f} % of what cells differ by, {verdict}.")
    for slot in SLOTS:
        chosen = effects[(effects["slot"] == slot) & effects["verdict"].isin(["above", "below"])]
        if len(chosen):
            named = "; ".join(
                f"{row.operation} {signed(row.effect, meta, unit=True)} {interval(row.low, row.high, meta)}"
                for row in each(chosen.sort_values("effect", ascending=False))
            )
            said.append(f"On average over the other slots, {_NAMES[slot]}: {named}.")
    clear = cells[cells["verdict"].isin(["above", "below"])]
    named = "; ".join(
        f"{row.variant} {signed(row.interaction, meta, unit=True)} {interval(row.low, row.high, meta)}"
        for row in each(clear.sort_values("interaction", ascending=False))
    )
    if len(clear):
        said.append(f"Other than the sum of their slots, after correction for {len(cells)} cells: {named}.")
    else:
        said.append(f"No cell differs from the sum of its slots after correction for {len(cells)} cells.")
    hints = int((cells["verdict"] == "hint").sum())
    said += [f"{plural(hints, 'more cell')} outside their own interval only: hints."] if hints else []
    return "\n".join([*said, *lines])
