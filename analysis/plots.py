"""A comparison as a picture. The only module of the package that loads matplotlib."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .frame import Meta, each
from .tables import about, count, extremes, left_between, metric_name, plural, signed, value

# Okabe and Ito's palette, told apart with any colour vision; form and filling repeat what the colour says.
_BASE, _VARIANT, _INK = "#D55E00", "#0072B2", "#333333"
_PALE = "#9CCBE8"


def accuracy_vs_macs(comparison: pd.DataFrame, meta: Meta, axes: Axes | None = None) -> Axes:
    """The metric's mean over seeds against the multiply-adds of one image, a labelled point a variant.

    Bars are one sample standard deviation over seeds to each side. A full point differs from the base after
    Holm's correction, a pale one only by its own paired 95 % interval, a hollow one is inside the noise. The
    axis of multiply-adds is logarithmic if they span more than a factor of three.
    """
    meta = about(comparison, meta)
    if axes is None:
        figure, axes = plt.subplots(figsize=(8, 5.4))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    every = comparison.dropna(subset=["mean", "macs"])
    shown = extremes(every)
    axes.set_title(textwrap.fill(_title(comparison, meta), 96), loc="left", fontsize=10)
    unit = " (%)" if value(0, meta).endswith("%") else ""
    axes.set_ylabel(f"{metric_name(meta)} on {meta.data}{unit}, mean over seeds")
    axes.spines[["top", "right"]].set_visible(False)
    if not len(shown):
        axes.set_xlabel("multiply-adds per image")
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finished run yet", transform=axes.transAxes, ha="center", color=_INK)
        return axes
    macs = shown["macs"].astype(float).to_numpy()
    between = every.drop(shown.index)
    scale, letter = (1e9, "G") if macs.max() >= 1e9 else (1e6, "M")
    axes.set_xlabel(f"multiply-adds per image ({letter}), folded network")
    axes.plot(between["macs"].astype(float) / scale, between["mean"], ".", color="#bbbbbb", markersize=3, zorder=1)
    for row, x in zip(each(shown), macs / scale, strict=True):
        axes.errorbar(x, row.mean, yerr=0 if math.isnan(row.sd) else row.sd, **_style(row.verdict))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for row in each(shown[shown["base"]]):
        axes.axhline(row.mean, color=_BASE, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
    axes.margins(0.14, 0.12)
    if macs.min() > 0 and macs.max() > 3 * macs.min():
        axes.set_xscale("log")
        decades = math.log10(macs.max() / macs.min())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    _legend(axes, shown, meta)
    _label(axes, macs / scale, shown)
    return axes


def accuracy_by_variant(comparison: pd.DataFrame, meta: Meta, axes: Axes | None = None) -> Axes:
    """The metric's mean over seeds, a row a variant from best to worst; points and bars as in `accuracy_vs_macs`."""
    meta = about(comparison, meta)
    shown = extremes(comparison).dropna(subset=["mean"]).sort_values("mean")
    if axes is None:
        figure, axes = plt.subplots(figsize=(8, 1.6 + 0.24 * max(len(shown), 6)))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    axes.set_title(textwrap.fill(_title(comparison, meta), 96), loc="left", fontsize=10)
    unit = " (%)" if value(0, meta).endswith("%") else ""
    macs = shown["macs"].dropna()
    cost = f", at {count(macs.median())} multiply-adds" if len(macs) and same_cost(comparison) else ""
    axes.set_xlabel(f"{metric_name(meta)} on {meta.data}{unit}, mean over seeds{cost}")
    axes.spines[["top", "right"]].set_visible(False)
    for place, row in enumerate(each(shown)):
        axes.errorbar(row.mean, place, xerr=0 if math.isnan(row.sd) else row.sd, **_style(row.verdict))
        if row.base:
            axes.axvline(row.mean, color=_BASE, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
    axes.set_yticks(range(len(shown)), shown["variant"])
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    _legend(axes, shown, meta, below=-0.6 / (1.6 + 0.24 * max(len(shown), 6)), bar="_")
    return axes


def same_cost(comparison: pd.DataFrame) -> bool:
    """Whether all variants have the same multiply-adds, within 5 %."""
    macs = comparison["macs"].dropna()
    return len(macs) > 1 and bool(macs.max() <= 1.05 * macs.min())


def picture(comparison: pd.DataFrame, meta: Meta) -> Axes:
    """The metric against multiply-adds, or by variant where these are all the same."""
    return (accuracy_by_variant if same_cost(comparison) else accuracy_vs_macs)(comparison, meta)


def save(picture: Axes | Figure, path: str | Path) -> Path:
    """Write a picture's whole figure as a PNG of 150 dots per inch, and give its path."""
    figure = picture if isinstance(picture, Figure) else picture.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", facecolor="white")
    return path


def _style(verdict: str) -> dict[str, Any]:
    style: dict[str, Any] = {
        "markersize": 8,
        "markeredgewidth": 1.6,
        "elinewidth": 1.2,
        "capsize": 3,
        "zorder": 3,
    }
    if verdict == "base":
        return style | {"fmt": "D", "color": _BASE, "markersize": 11, "zorder": 2}
    fill = {"above": _VARIANT, "below": _VARIANT, "hint": _PALE}.get(verdict, "white")
    return style | {"fmt": "o", "color": _VARIANT, "markerfacecolor": fill}


def _legend(axes: Axes, shown: pd.DataFrame, meta: Meta, below: float = -0.13, bar: str = "|") -> None:
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
        style = _style(verdict)
        look: dict[str, Any] = {"color": style["color"], "marker": style["fmt"], "linestyle": ""}
        look["markerfacecolor"] = style.get("markerfacecolor", style["color"])
        if words:
            handles.append(Line2D([], [], label=words, **look))
    if shown["sd"].notna().any():
        look = {"color": _INK, "marker": bar, "markersize": 9, "linestyle": ""}
        handles.append(Line2D([], [], label="± 1 standard deviation over seeds", **look))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, below)}
    axes.legend(handles=handles, ncol=2, frameon=False, fontsize=9, **place)


def _title(comparison: pd.DataFrame, meta: Meta) -> str:
    """What the picture shows, in figures; names a variant only where that stands after Holm's correction."""
    base = comparison[comparison["base"] & (comparison["n"] > 0)]
    if not len(base):
        return f"{meta.grid} on {meta.data}: nothing to compare, the base has no finished run"
    (head,) = each(base)
    others = comparison[~comparison["base"]]
    verdicts = others["verdict"].value_counts()
    said = []
    for verdict in ("above", "below"):
        chosen = others[others["verdict"] == verdict]
        if len(chosen) == 1:
            (row,) = each(chosen)
            said.append(f"{row.variant} {signed(row.difference, meta, unit=True)} at {count(row.macs)}")
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
    absent = comparison.loc[comparison["mean"].isna() | comparison["macs"].isna(), "variant"]
    some = [*absent[:8], *([f"{len(absent) - 8} more"] if len(absent) > 8 else [])]
    said += [f"no result: {', '.join(some)}"] if some else []
    missing = int(comparison["missing"].sum())
    said += [f"preliminary, {plural(missing, 'run')} without a result"] if missing else []
    foot = f"{meta.base} ({value(head.mean, meta)} at {count(head.macs)} multiply-adds)"
    said += list(filter(None, [left_between(comparison)]))
    return f"Against {foot}: " + "; ".join(said)


def _label(axes: Axes, x: np.ndarray, shown: pd.DataFrame) -> None:
    """Name each point beside it, so that no name lies on another name, a point or a bar.

    Greedy: each label takes the cheapest of a fan of places around its point, then all choose again a few
    times with the others in place. A label far from its point gets a thin line to it.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()  # settles the layout, so that pixels can be compared
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    point = figure.dpi / 72
    y, sd = shown["mean"].to_numpy(), shown["sd"].fillna(0).to_numpy()
    at = axes.transData.transform(np.column_stack([x, y]))
    top = axes.transData.transform(np.column_stack([x, y + sd]))[:, 1]
    bottom = axes.transData.transform(np.column_stack([x, y - sd]))[:, 1]
    r = 6 * point
    taken = np.array([[px - r, py - r, px + r, py + r] for px, py in at])
    bars = np.column_stack([at[:, 0] - 4 * point, bottom - point, at[:, 0] + 4 * point, top + point])
    frame = axes.get_window_extent(renderer)
    levels = at[shown["base"].to_numpy(), 1]  # of the dashed line
    lines = [[frame.x0, level - point, frame.x1, level + point] for level in levels]
    obstacles = np.vstack([taken, bars, *lines])
    texts, sizes = [], []
    for name, base, x_i, y_i in zip(shown["variant"], shown["base"], x, y, strict=True):
        text = axes.annotate(name, (x_i, y_i), fontsize=9, color=_BASE if base else _INK, va="bottom", zorder=5)
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer)
        texts.append(text)
        sizes.append((extent.width, extent.height))

    fan = [(radius * point, angle) for radius in (9, 15, 24, 36, 50, 66, 84) for angle in range(0, 360, 15)]
    places: list[tuple[float, float]] = [(0.0, 0.0)] * len(texts)
    boxes = np.zeros((len(texts), 4))
    settled = np.zeros(len(texts), bool)
    for _ in range(4):
        for i, (width, height) in enumerate(sizes):
            others = settled.copy()
            others[i] = False
            near = np.vstack([np.delete(taken, i, 0), boxes[others]])
            costs = []
            for radius, angle in fan:
                dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
                box = _box(at[i] + (dx, dy), angle, width, height)
                cost = 4 * _overlap(box, obstacles) + 8 * _overlap(box, boxes[others])
                cost += 20 * (width * height - _overlap(box, np.array([frame.extents])))
                if radius > 15 * point and len(near):  # its line shouldn't run through names or points
                    dots = at[i] + np.outer(np.linspace(0.15, 1, 12), (dx, dy))
                    inside = (dots[:, None] > near[:, :2]) & (dots[:, None] < near[:, 2:])
                    cost += 60 * inside.all(-1).sum()
                costs.append((cost + 1.2 * radius / point + (0 if angle in (0, 180) else 2), dx, dy, angle))
            _, dx, dy, angle = min(costs)
            places[i], boxes[i], settled[i] = (dx, dy), _box(at[i] + (dx, dy), angle, width, height), True
    for text, (dx, dy), box, middle in zip(texts, places, boxes, at, strict=True):
        text.set_anncoords("offset points")
        text.xyann = tuple((box[:2] - middle) / point)
        if math.hypot(dx, dy) > 15.5 * point:
            line = axes.annotate(
                "",
                text.xy,
                (dx / point, dy / point),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-",
                    "color": "#888888",
                    "linewidth": 0.7,
                    "shrinkA": 1,
                    "shrinkB": 5,
                },
            )
            line.set_in_layout(False)


def _box(anchor: np.ndarray, angle: float, width: float, height: float) -> np.ndarray:
    """Where a text lies whose edge, seen from its point under `angle` (degrees), touches `anchor`."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    left = anchor[0] + width * (c - 1) / 2
    bottom = anchor[1] + height * (s - 1) / 2
    return np.array([left, bottom, left + width, bottom + height])


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """The summed area that a box (left, bottom, right, top) shares with other boxes."""
    if not len(others):
        return 0.0
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None)).sum())
