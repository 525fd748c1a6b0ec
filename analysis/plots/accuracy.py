"""Accuracy against what it costs: multiply-adds, parameters, latency; and in rows, where all cost the same."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from metamixer.metric import readable

from ..frame import LATENCY, Meta, each, plural
from ..tables import SAME_COST
from .theme import BASE, COSTS, DASHED, INK, QUIET, legend, marks, metric_label, names, new, nothing, title

NAMED = 60  # of more points only those of the front and the base have names, which would cover one another
_SPREAD = "mean over seeds ± 1 standard deviation"


def front(costs: np.ndarray, values: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Indices of the points that no other one beats: none is as cheap and better, or as good and cheaper."""
    costs, values = np.asarray(costs, float), np.asarray(values, float) * (1 if higher_is_better else -1)
    cheaper, better = costs[:, None] >= costs, values[:, None] <= values
    strictly = (costs[:, None] > costs) | (values[:, None] < values)
    return np.flatnonzero(~(cheaper & better & strictly).any(1))


def backends(table: pd.DataFrame) -> list[str]:
    """The columns of latencies that hold any."""
    return [name for name in table.columns if name.startswith(LATENCY) and table[name].notna().any()]


def published_name(row: Any) -> str:
    """A published network's name, without its patch and image size, unless they tell one FFNet from another."""
    name = re.sub(r"_patch.*|_p16|_rw(?=_|$)|_\d{3}$", "", row.variant.partition(".")[0])
    size = f" {row.resolution} px" if name.startswith("ffnet") and row.resolution != 256 else ""
    return name + size + (", distilled" if row.distilled else "")


def accuracy_vs(comparison: pd.DataFrame, meta: Meta, cost: str = "macs") -> Axes:
    """The metric's mean over seeds against a cost, a named point for each variant, with the Pareto front of the means.

    Bars are one sample standard deviation over seeds to each side. A full point differs from the base after
    Holm's correction, a pale one only by its own test, a hollow one is inside the noise. The cost's axis is
    logarithmic if it spans more than a factor of three.

    Args:
        cost: a column of `comparison`: `macs`, `parameters`, or a latency as `frame.load` names it.
    """
    axes = new(*((10, 7.5) if len(comparison) > 20 else ()))[1]  # many names need room
    shown = comparison.dropna(subset=["mean", cost]).astype({cost: float})
    _head(axes, comparison, meta, shown)
    axes.set_ylabel(metric_label(meta, _SPREAD))
    _cost_axis(axes, cost, shown[cost])
    if not len(shown):
        return nothing(axes)
    marks(axes, shown, cost, "mean", shown["sd"])
    for row in each(shown[shown["base"]]):
        axes.axhline(row.mean, color=BASE, linewidth=0.8, linestyle=DASHED, alpha=0.7, zorder=1)
    best = _front(axes, shown[cost].to_numpy(), shown["mean"].to_numpy(), meta.metric.higher_is_better)
    legend(axes)
    if len(shown) > NAMED:
        shown = shown[shown["base"] | shown.index.isin(shown.index[best])]
    names(axes, shown[cost], shown["mean"], shown["variant"], shown["base"], shown["sd"])
    return axes


def accuracy_vs_state(comparison: pd.DataFrame, meta: Meta, runs: pd.DataFrame) -> Axes:
    """`accuracy_vs` the numbers of the other tokens that a network holds to answer for one more.

    Networks that hold none mix no tokens; they are left out.

    Args:
        runs: the same grid's. Their networks are built and counted.
    """
    from ..inside import state_sizes  # loads torch

    sizes = state_sizes(runs)
    return accuracy_vs(comparison.join(sizes[sizes > 0], on="variant"), meta, "state_size")


def accuracy_vs_latency(comparison: pd.DataFrame, meta: Meta, runs: pd.DataFrame) -> np.ndarray:
    """`accuracy_vs` latency, a picture for each backend and device: runtimes rank networks differently.

    Args:
        runs: the same grid's, with the columns of latencies that `frame.load` joins.

    Returns:
        Figures of one axes each; one that says so, if nothing was measured.
    """
    measured = backends(runs)
    if not measured:
        axes = nothing(new(8, 2)[1], "no latency of these networks beside the runs; `launch.py bench` measures them")
        title(axes, f"Latency of the variants of {meta.title}: not measured")
        return np.array([axes])
    medians = runs.groupby("variant")[measured].median()
    table = comparison.drop(columns=measured, errors="ignore").join(medians, on="variant")
    return np.array([accuracy_vs(table, meta, column) for column in measured])


def published_front(published: pd.DataFrame, cost: str = "macs") -> Axes:
    """Published networks on one data set: top-1 against a cost, FFNet's apart, with their front.

    Args:
        published: `variant`, `top1` (%), `resolution`, `distilled`, the cost's column: `published.published`.
    """
    axes = new(10, 6.4)[1]
    shown = published.dropna(subset=["top1", cost]).reset_index(drop=True)
    x, top1 = shown[cost].to_numpy(float), shown["top1"].to_numpy()
    _cost_axis(axes, cost, shown[cost])
    ours = shown["variant"].str.startswith("ffnet").to_numpy()
    _front(axes, x, top1)
    axes.plot(x[~ours], top1[~ours], "s", color=QUIET, markersize=5, label="others")
    axes.plot(x[ours], top1[ours], "o", color=BASE, markersize=8, label="FFNet")
    title(axes, "Published figures on ImageNet; one run each, so their noise is unknown")
    axes.set_ylabel("published top-1 on ImageNet (%)")
    legend(axes, 3)
    names(axes, x, top1, [published_name(row) for row in each(shown)], ours)
    return axes


def accuracy_by_variant(comparison: pd.DataFrame, meta: Meta) -> Axes:
    """The metric's mean over seeds, one row per variant from best to worst; points and bars as in `accuracy_vs`.

    Of more than `NAMED` variants only the base and the best and the worst are drawn.
    """
    every = comparison.dropna(subset=["mean"]).sort_values("mean", ascending=meta.metric.higher_is_better)
    rank = np.arange(len(every))
    shown = every[every["base"] | (np.minimum(rank, rank[::-1]) < NAMED // 2)]
    shown = shown.assign(place=range(len(shown)))
    axes = new(8, 1.8 + 0.24 * max(len(shown), 6))[1]
    _head(axes, comparison, meta, every, "the best and the worst are shown")
    cost = f", at {readable(shown['macs'].median())} multiply-adds" if same_cost(comparison) else ""
    axes.set_xlabel(metric_label(meta, _SPREAD) + cost)
    if not len(shown):
        return nothing(axes)
    marks(axes, shown, "mean", "place", shown["sd"], "x")
    for row in each(shown[shown["base"]]):
        axes.axvline(row.mean, color=BASE, linewidth=0.8, linestyle=DASHED, alpha=0.7, zorder=1)
    axes.set_yticks(shown["place"], shown["variant"])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.grid(axis="y", visible=False)
    legend(axes)
    return axes


def same_cost(comparison: pd.DataFrame) -> bool:
    """Whether all variants have the same multiply-adds, within 5 %."""
    macs = comparison["macs"].dropna()
    return len(macs) > 1 and bool(macs.max() <= (1 + SAME_COST) * macs.min())


def picture(comparison: pd.DataFrame, meta: Meta) -> Axes:
    """The metric against multiply-adds, or by variant where these are all the same."""
    return (accuracy_by_variant if same_cost(comparison) else accuracy_vs)(comparison, meta)


def _head(
    axes: Axes, comparison: pd.DataFrame, meta: Meta, with_result: pd.DataFrame, of_many: str = "the front is named"
) -> None:
    """Grid, data and question; and how much of it the picture does not show."""
    absent = len(comparison) - len(with_result)
    missing = int(comparison["missing"].sum())
    notes = ["each at its best learning rate"] if comparison["rates"].notna().any() else []
    notes += [f"{plural(absent, 'variant')} without a figure"] if absent else []
    notes += [f"preliminary, {plural(missing, 'run')} without a result"] if missing else []
    notes += [of_many] if len(with_result) > NAMED else []
    said = f"{meta.title}: {meta.question or meta.metric.label}"
    title(axes, said + (f" ({'; '.join(notes)})" if notes else ""))


def _cost_axis(axes: Axes, cost: str, costs: pd.Series) -> None:
    """Label the axis of a cost, logarithmic if its values span more than a factor of three."""
    latency = cost.startswith(LATENCY)
    how = cost.removeprefix(LATENCY).removesuffix("]")
    axes.set_xlabel(f"median latency of one image (ms), {how}" if latency else COSTS.get(cost, cost))
    axes.margins(0.14, 0.12)
    if costs.min() > 0 and costs.max() > 3 * costs.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if costs.max() < 100 * costs.min() else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}") if latency else EngFormatter())


def _front(axes: Axes, costs: np.ndarray, values: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    best = front(costs, values, higher_is_better)
    order = best[np.argsort(costs[best])]
    if len(order) > 1:
        axes.step(costs[order], values[order], where="post", label="Pareto front of the means",
                  color=INK, linewidth=1.1, linestyle=(0, (6, 1.5, 1, 1.5)), zorder=1)  # fmt: skip
    return best
