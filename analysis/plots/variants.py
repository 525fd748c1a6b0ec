"""Accuracy against what it costs: multiply-adds, parameters, latency; and in rows, where all cost the same."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..frame import Meta, each
from ..fronts import LATENCY, backend, backends, front, published_name
from ..tables import about, count, extremes, left_between, plural, signed, value
from ._common import BASE, INK, QUIET, legend_below, metric_label, new, nothing, plain, verdict_style
from ._common import title as set_title
from ._labels import place_labels


class _Cost(NamedTuple):
    label: str
    where: str  # behind a value, in a sentence
    counted: bool = True  # in thousands, millions, billions


_COSTS = {
    "macs": _Cost("multiply-adds per image ({unit}), folded network", " multiply-adds"),
    "parameters": _Cost("parameters ({unit}), folded network", " parameters"),
}


def _cost(column: str) -> _Cost:
    if column.startswith(LATENCY):
        return _Cost(f"median latency of one image (ms), {backend(column)}", " ms", False)
    return _COSTS.get(column, _Cost(column, "", False))


_FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (6, 1.5, 1, 1.5)), "zorder": 1}


def accuracy_vs(
    comparison: pd.DataFrame,
    meta: Meta,
    cost: str = "macs",
    axes: Axes | None = None,
    context: pd.DataFrame | None = None,
) -> Axes:
    """The metric's mean over seeds against a cost, a labelled point a variant, with the Pareto front of the means.

    Bars are one sample standard deviation over seeds to each side. A full point differs from the base after
    Holm's correction, a pale one only by its own paired 95 % interval, a hollow one is inside the noise. The
    cost's axis is logarithmic if it spans more than a factor of three.

    Args:
        cost: a column of `comparison`: `macs`, `parameters`, or a latency as `frame.load` names it.
        context: other networks on the same data, in grey: `variant`, the metric's column, and `cost`.
    """
    meta = about(comparison, meta)
    if axes is None:
        axes = new()[1]
    kind = _cost(cost)
    every = comparison.dropna(subset=["mean", cost])
    shown = extremes(every)
    set_title(axes, _title(comparison, meta, cost))
    axes.set_ylabel(metric_label(meta))
    if not len(shown):
        axes.set_xlabel(kind.label.replace(" ({unit})", ""))
        return nothing(axes)
    around = _context(context, meta, cost)
    both = pd.concat([shown, around]) if len(around) else shown
    costs = both[cost].astype(float).to_numpy()
    scale, letter = ((1e9, "G") if costs.max() >= 1e9 else (1e6, "M")) if kind.counted else (1.0, "")
    axes.set_xlabel(kind.label.format(unit=letter))
    between = every.drop(shown.index)
    axes.plot(between[cost].astype(float) / scale, between["mean"], ".", color=QUIET, markersize=3, zorder=1)
    for row, x in zip(each(shown), costs / scale, strict=False):
        axes.errorbar(x, row.mean, yerr=0 if math.isnan(row.sd) else row.sd, **verdict_style(row.verdict))
    plain(axes)
    if len(around):
        axes.plot(costs[len(shown) :] / scale, around["mean"], "s", color=QUIET, markersize=5, zorder=2)
    for row in each(shown[shown["base"]]):
        axes.axhline(row.mean, color=BASE, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
    on_front = front(costs, both["mean"].to_numpy(), _rises(meta))
    order = on_front[np.argsort(costs[on_front])]
    step: dict[str, Any] = {"drawstyle": "steps-post", **_FRONT}
    if len(order) > 1:
        axes.plot(costs[order] / scale, both["mean"].to_numpy()[order], **step)
    axes.margins(0.14, 0.12)
    _log_if_wide(axes, costs)
    _legend(axes, shown, meta, front=len(order) > 1, context=len(around) > 0)
    place_labels(axes, costs / scale, both, around=_corners(costs[order] / scale, both["mean"].to_numpy()[order]))
    return axes


def accuracy_vs_macs(
    comparison: pd.DataFrame, meta: Meta, axes: Axes | None = None, context: pd.DataFrame | None = None
) -> Axes:
    """`accuracy_vs` multiply-adds."""
    return accuracy_vs(comparison, meta, "macs", axes, context)


def accuracy_vs_parameters(
    comparison: pd.DataFrame, meta: Meta, axes: Axes | None = None, context: pd.DataFrame | None = None
) -> Axes:
    """`accuracy_vs` parameters."""
    return accuracy_vs(comparison, meta, "parameters", axes, context)


def accuracy_vs_latency(comparison: pd.DataFrame, meta: Meta, runs: pd.DataFrame) -> np.ndarray:
    """`accuracy_vs` latency, a picture for each backend and device: runtimes rank networks differently.

    Args:
        runs: the same grid's, with the columns of latencies that `frame.load` joins.

    Returns:
        An array of axes, one for each backend; one that says so, if nothing was measured.
    """
    measured = backends(runs)
    _, grid = new(8, 5.4 * len(measured) or 2, rows=max(len(measured), 1), squeeze=False)
    if not measured:
        set_title(grid[0, 0], f"Latency of the variants of {meta.grid} on {meta.data}: not measured")
        nothing(grid[0, 0], "no latency of these networks beside the runs; `launch.py bench` measures them")
        return grid[:, 0]
    for axes, column in zip(grid[:, 0], measured, strict=True):
        medians = runs.groupby("variant")[column].median()
        accuracy_vs(comparison.assign(**{column: comparison["variant"].map(medians)}), meta, column, axes)
    return grid[:, 0]


def published_front(published: pd.DataFrame, cost: str = "macs", axes: Axes | None = None) -> Axes:
    """Published networks on one data set: top-1 against a cost, FFNet's apart, with their front.

    Args:
        published: `variant`, `top1` (%), `resolution`, `distilled`, the cost's column: `published.published`.
    """
    kind = _cost(cost)
    there = published.reindex(columns=[*dict.fromkeys([*published.columns, cost])])
    shown = there.dropna(subset=["top1", cost]).reset_index(drop=True)
    if axes is None:
        axes = new()[1]
    plain(axes)
    if not len(shown):
        set_title(axes, "Published networks: none with this cost")
        return nothing(axes, f"no published figure of {cost}")
    costs, top1 = shown[cost].astype(float).to_numpy(), shown["top1"].to_numpy()
    scale, letter = ((1e9, "G") if costs.max() >= 1e9 else (1e6, "M")) if kind.counted else (1.0, "")
    ours = shown["variant"].str.startswith("ffnet").to_numpy()
    on_front = front(costs, top1)
    order = on_front[np.argsort(costs[on_front])]
    axes.plot(costs[order] / scale, top1[order], drawstyle="steps-post", **_FRONT)
    axes.plot(costs[~ours] / scale, top1[~ours], "s", color=QUIET, markersize=5)
    axes.plot(costs[ours] / scale, top1[ours], "o", color=BASE, markersize=8)
    axes.margins(0.14, 0.12)
    _log_if_wide(axes, costs)
    held = int(np.isin(on_front, np.flatnonzero(ours)).sum())
    among = plural(int(ours.sum()), "FFNet")
    if (~ours).any():
        among += (
            f" and {plural(int((~ours).sum()), 'other network')}: {held} of {len(on_front)} on the front are FFNets"
        )
    set_title(axes, f"Published figures of {among}; one run each, so their noise is unknown")
    axes.set_xlabel(kind.label.format(unit=letter).removesuffix(", folded network"))  # not all were counted folded
    axes.set_ylabel("published top-1 on ImageNet (%)")
    names = [published_name(row) for row in each(shown)]
    table = shown.assign(variant=names, mean=top1, sd=math.nan, base=ours)
    place_labels(axes, costs / scale, table, False, _corners(costs[order] / scale, top1[order]))
    return axes


def accuracy_by_variant(comparison: pd.DataFrame, meta: Meta, axes: Axes | None = None) -> Axes:
    """The metric's mean over seeds, a row a variant from best to worst; points and bars as in `accuracy_vs`."""
    meta = about(comparison, meta)
    shown = extremes(comparison).dropna(subset=["mean"]).sort_values("mean")
    if axes is None:
        axes = new(8, 1.6 + 0.24 * max(len(shown), 6))[1]
    set_title(axes, _title(comparison, meta))
    macs = shown["macs"].dropna()
    cost = f", at {count(macs.median())} multiply-adds" if len(macs) and same_cost(comparison) else ""
    axes.set_xlabel(metric_label(meta) + cost)
    plain(axes, "x")
    if not len(shown):
        return nothing(axes)
    for place, row in enumerate(each(shown)):
        axes.errorbar(row.mean, place, xerr=0 if math.isnan(row.sd) else row.sd, **verdict_style(row.verdict))
        if row.base:
            axes.axvline(row.mean, color=BASE, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
    axes.set_yticks(range(len(shown)), shown["variant"])
    _legend(axes, shown, meta, bar="_")
    return axes


def same_cost(comparison: pd.DataFrame) -> bool:
    """Whether all variants have the same multiply-adds, within 5 %."""
    macs = comparison["macs"].dropna()
    return len(macs) > 1 and bool(macs.max() <= 1.05 * macs.min())


def picture(comparison: pd.DataFrame, meta: Meta) -> Axes:
    """The metric against multiply-adds, or by variant where these are all the same."""
    return (accuracy_by_variant if same_cost(comparison) else accuracy_vs_macs)(comparison, meta)


def _corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Those of a line in steps that rises at the next point, as `drawstyle="steps-post"` draws it."""
    return np.column_stack([np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]])


def _context(context: pd.DataFrame | None, meta: Meta, cost: str) -> pd.DataFrame:
    if context is None or not {meta.metric, cost} <= set(context.columns):
        return pd.DataFrame()
    return context.dropna(subset=[meta.metric, cost]).assign(
        mean=lambda found: found[meta.metric], sd=math.nan, base=False, verdict=""
    )


def _rises(meta: Meta) -> bool:
    """Whether more of the metric is better."""
    return "loss" not in meta.metric


def _log_if_wide(axes: Axes, costs: np.ndarray) -> None:
    if costs.min() > 0 and costs.max() > 3 * costs.min():
        axes.set_xscale("log")
        decades = math.log10(costs.max() / costs.min())
        subs = (1, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2.5 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(
    axes: Axes,
    shown: pd.DataFrame,
    meta: Meta,
    bar: str = "|",
    front: bool = False,
    context: bool = False,
) -> None:
    verdicts = set(shown["verdict"])
    unjudged = bool(verdicts & {"no spread", "too few pairs"})
    hollow = ["inside the noise: no winner"] * ("inside noise" in verdicts)
    hollow += ["not to be judged (too few pairs, or no spread)"] * unjudged
    entries = {
        "base": f"base: {meta.base}" if "base" in verdicts else "",
        "above": "differs from the base (paired t, Holm, 5 %)" if verdicts & {"above", "below"} else "",
        "hint": "hint: differs, but not after Holm's correction" if "hint" in verdicts else "",
        "inside noise": "\nor ".join(hollow),
    }
    handles = []
    for verdict, words in entries.items():
        style = verdict_style(verdict)
        look: dict[str, Any] = {"color": style["color"], "marker": style["fmt"], "linestyle": ""}
        look["markerfacecolor"] = style.get("markerfacecolor", style["color"])
        if words:
            handles.append(Line2D([], [], label=words, **look))
    if shown["sd"].notna().any():
        look = {"color": INK, "marker": bar, "markersize": 9, "linestyle": ""}
        handles.append(Line2D([], [], label="± 1 standard deviation over seeds", **look))
    if front:
        handles.append(Line2D([], [], label="Pareto front of the means", **_FRONT))
    if context:
        handles.append(Line2D([], [], label="published", color=QUIET, marker="s", markersize=5, linestyle=""))
    legend_below(axes, handles)


def _title(comparison: pd.DataFrame, meta: Meta, cost: str = "macs") -> str:
    """What the picture shows, in figures; names a variant only where that stands after Holm's correction."""
    base = comparison[comparison["base"] & (comparison["n"] > 0)]
    if not len(base):
        return f"{meta.grid} on {meta.data}: nothing to compare, the base has no finished run"
    (base_row,) = each(base)
    kind = _cost(cost)

    def at(row: Any) -> str:
        found = getattr(row, cost, None)
        if found is None or pd.isna(found):
            return ""
        return f" at {count(found) if kind.counted else f'{found:.3g}'}{kind.where}"

    others = comparison[~comparison["base"]]
    verdicts = others["verdict"].value_counts()
    said = []
    for verdict in ("above", "below"):
        chosen = others[others["verdict"] == verdict]
        if len(chosen) == 1:
            (row,) = each(chosen)
            said.append(f"{row.variant} {signed(row.difference, meta, unit=True)}{at(row).removesuffix(kind.where)}")
        elif len(chosen):
            low, high = chosen["difference"].min(), chosen["difference"].max()
            among = f" of {len(others)} variants" if not said else ""
            said.append(f"{len(chosen)}{among} {verdict} it ({signed(low, meta)} to {signed(high, meta, unit=True)})")
    if not said:
        said.append(f"none of {plural(len(others), 'variant')} differs after correction")
    hints, noise = verdicts.get("hint", 0), verdicts.get("inside noise", 0)
    unjudged = int((others["inside_noise"] & (others["n"] > 0)).sum()) - noise
    said += [plural(hints, "hint")] if hints else []
    said += [f"{noise} inside the noise"] if noise else []
    said += [f"{unjudged} not to be judged"] if unjudged else []
    absent = comparison.loc[comparison["mean"].isna() | comparison[cost].isna(), "variant"]
    some = [*absent[:8], *([f"{len(absent) - 8} more"] if len(absent) > 8 else [])]
    said += [f"no result: {', '.join(some)}"] if some else []
    missing = int(comparison["missing"].sum())
    said += [f"preliminary, {plural(missing, 'run')} without a result"] if missing else []
    said += list(filter(None, [left_between(comparison)]))
    return f"Against {meta.base} ({value(base_row.mean, meta)}{at(base_row)}): " + "; ".join(said)
