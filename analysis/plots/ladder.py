"""What each step changed, as a waterfall; and the response to the size of the kernel."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..frame import Meta, each
from ..statistics import CONFIDENCE
from ..tables import about, plural, signed, value
from ._common import BASE, INK, PALE, QUIET, VARIANT, legend_below, metric_label, new, nothing, plain, title
from .variants import _legend, _title, verdict_style

_FALL = "#E69F00"
_PALE_FALL = "#F6D99A"


def waterfall(steps: pd.DataFrame, meta: Meta, axes: Axes | None = None) -> Axes:
    """The ladder's differences one behind the other, each from where the one before ended; others beside it.

    A bar is a step's mean difference, paired by seed, with its 95 % interval; blue rises and orange falls, pale for a
    hint, hollow inside the noise, or without an interval. What is no rung stands apart, from the level of
    what it builds on.

    Args:
        steps: `ladder.steps`.
    """
    if axes is None:
        axes = new(max(8, 1.6 + 0.75 * len(steps)), 5)[1]
    plain(axes)
    rungs, others = steps[steps["rung"]], steps[~steps["rung"]]
    others = others[others["difference"].notna()]
    if not rungs["difference"].notna().any():
        title(axes, f"{meta.grid} on {meta.data}: no step has finished runs on both of its sides")
        return nothing(axes)
    start = float(rungs["mean_on"].iloc[0])
    level, ends, names = start, {str(rungs["on"].iloc[0]): start}, [str(rungs["on"].iloc[0])]
    ends |= {row.variant: row.mean for row in each(steps)}
    axes.plot([-0.4, 0.4], [start, start], color=BASE, linewidth=3, solid_capstyle="butt")
    for place, row in enumerate(each(rungs), 1):
        names.append(row.variant)
        if math.isnan(row.difference):
            axes.text(place, level, "no\npair", ha="center", va="center", fontsize=8, color=QUIET)
            continue
        _bar(axes, place, level, row, meta)
        axes.plot([place - 1 + 0.4, place - 0.4], [level, level], color=QUIET, linewidth=0.8)
        level += row.difference
    for place, row in enumerate(each(others), len(names) + 1):
        from_level = ends.get(row.on, start)
        axes.plot([place - 0.45, place + 0.45], [from_level] * 2, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
        _bar(axes, place, from_level, row, meta)
    places = [*range(len(names)), *range(len(names) + 1, len(names) + 1 + len(others))]
    labels = [*names, *(f"{row.variant}\n(on {row.on})" for row in each(others))]
    axes.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_ylabel(metric_label(meta))
    axes.margins(y=0.12)
    clear = steps[steps["verdict"].isin(["above", "below"])]
    said = "; ".join(f"{row.on} → {row.variant} {signed(row.difference, meta, unit=True)}" for row in each(clear))
    hints = int((steps["verdict"] == "hint").sum())
    said = f"beyond the noise {said}" if said else "none stands beyond the noise"
    more = f"; {plural(hints, 'hint')}" if hints else ""
    unjudged = int(steps["low"].isna().sum())
    more += f"; {unjudged} not to be judged" if unjudged else ""
    title(axes, f"Of {plural(len(steps), 'step')} from {names[0]} ({value(start, meta)}): {said}{more}")
    looks = [("rises", VARIANT, VARIANT), ("falls", _FALL, _FALL), ("hint: not after Holm", PALE, VARIANT)]
    handles = [Patch(facecolor=face, edgecolor=edge, label=words) for words, face, edge in looks]
    hollow = f"inside the noise ({100 * CONFIDENCE:.0f} % interval holds 0)" + "\nor not to be judged" * bool(unjudged)
    handles.append(Patch(facecolor="white", edgecolor=INK, label=hollow))
    legend_below(axes, handles, 4)
    return axes


def _bar(axes: Axes, place: float, level: float, row: object, meta: Meta) -> None:
    difference, low, high, verdict = (getattr(row, name) for name in ("difference", "low", "high", "verdict"))
    strong, pale = (VARIANT, PALE) if difference >= 0 else (_FALL, _PALE_FALL)
    face = {"above": strong, "below": strong, "hint": pale}.get(verdict, "white")
    axes.bar(place, difference, 0.8, bottom=level, color=face, edgecolor=strong, linewidth=1.3, zorder=2)
    top = level + max(difference, 0)
    if not math.isnan(low):
        reach = [[difference - low], [high - difference]]
        axes.errorbar(place, level + difference, yerr=reach, color=INK, elinewidth=1, capsize=3, zorder=3)
        top = max(top, level + high)
    axes.annotate(
        signed(difference, meta), (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=INK
    )


def kernel_response(comparison: pd.DataFrame, runs: pd.DataFrame, meta: Meta, axes: Axes | None = None) -> Axes:
    """The metric's mean over seeds against the token mixer's kernel size; points and bars as in `accuracy_vs`.

    Variants with one size beside another one's (a branch, say) are named and not joined by the line.

    Args:
        runs: the same grid's, `frame.load(..., with_config=True)`; the size is the first stage's.
    """
    meta = about(comparison, meta)
    if axes is None:
        axes = new()[1]
    title(axes, _title(comparison, meta))
    axes.set_xlabel("kernel size of the token mixer (px of its map)")
    axes.set_ylabel(metric_label(meta))
    plain(axes)
    column = "config.model.stages.0.token_mixer.query_key.kernel_size"
    sizes = (
        runs.dropna(subset=[column]).groupby("variant")[column].first() if column in runs else pd.Series(dtype=float)
    )
    shown = comparison.assign(size=comparison["variant"].map(sizes).astype(float)).dropna(subset=["mean", "size"])
    if not len(shown):
        return nothing(axes, "no finished run of a token mixer with a kernel size")
    shown = shown.sort_values("size", kind="stable")
    line = shown.drop_duplicates("size")
    axes.plot(line["size"], line["mean"], color=QUIET, linewidth=1, zorder=1)
    extra = ~shown.index.isin(line.index)
    shift = 0.012 * max(shown["size"].max() - shown["size"].min(), 1)
    for row, beside in zip(each(shown), extra, strict=True):
        at = row.size + 3 * shift * beside
        axes.errorbar(at, row.mean, yerr=0 if math.isnan(row.sd) else row.sd, **verdict_style(row.verdict))
        if beside:
            axes.annotate(row.variant, (at, row.mean), (8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xticks(sorted(set(shown["size"])), [f"{int(size)}×{int(size)}" for size in sorted(set(shown["size"]))])
    axes.margins(0.12)
    _legend(axes, shown, meta)
    return axes
