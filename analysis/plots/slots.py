"""A factorial of slots as heat maps, its main effects, and what slots cost."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from ..factorial import _NAMES, SLOTS, Factorial
from ..frame import Meta, each
from ..statistics import CONFIDENCE
from ..tables import count, metric_name, plural, signed, value
from ._common import COLOURS, INK, QUIET, VARIANT, head, metric_label, new, nothing, plain, title, verdict_style

# orange below, blue above: told apart with any colour vision, and by the sign
_BELOW_ABOVE = LinearSegmentedColormap.from_list("below-above", ["#B35806", "#FDB863", "#F7F7F7", "#92C5DE", "#0072B2"])
_CLEAR = ("above", "below")


def cell_means(factorial: Factorial, meta: Meta) -> np.ndarray:
    """The metric's mean of each cell: a heat map of query-key × coefficient-value for each activation."""
    lowest, highest = (f(factorial.cells["mean"]) if len(factorial.cells) else 0 for f in (min, max))
    many = f"{plural(len(factorial.cells), 'cell')} on {meta.data}"
    clear = [row for row in each(factorial.sources) if row.p_holm < 1 - CONFIDENCE]
    share = ", ".join(f"{row.source} {100 * row.share:.0f} %" for row in clear)
    text = f"{metric_name(meta)} of {many}: {value(lowest, meta)} to {value(highest, meta)}"
    if factorial.whole:
        text += f"; beyond the noise: {share}" if share else "; no slot and no interaction stands beyond the noise"
    return _heat(factorial, meta, "mean", text, "cividis", (lowest, highest))


def interactions(factorial: Factorial, meta: Meta) -> np.ndarray:
    """What each cell has beyond the sum of its slots, in points; bold with * after Holm's correction, ° a hint."""
    if not factorial.whole:
        axes = nothing(new(8, 3)[1], "; ".join(factorial.left_out) or "no full factorial")
        title(axes, f"Interactions of {meta.grid} on {meta.data}: not to be had from what is finished")
        return np.array([[axes]])
    cells = factorial.cells
    clear = cells[cells["verdict"].isin(_CLEAR)]
    hints = int((cells["verdict"] == "hint").sum())
    largest = signed(cells["interaction"].abs().max(), meta, unit=True)[1:]
    text = (
        f"What cells have beyond the sum of their slots: {len(clear)} of {len(cells)} beyond the noise (*), "
        f"{plural(hints, 'hint')} (°), largest {largest} either way"
    )
    reach = max(float(cells["interaction"].abs().max()), 1e-9)
    return _heat(factorial, meta, "interaction", text, _BELOW_ABOVE, (-reach, reach))


def _heat(
    factorial: Factorial, meta: Meta, column: str, text: str, colours: Any, limits: tuple[float, float]
) -> np.ndarray:
    keys, activations, values = (factorial.levels[slot] for slot in SLOTS)
    wide = max(len(activations), 1)
    size = (max(8, 1.8 + wide * (0.4 + 0.72 * len(values))), 2.2 + 0.5 * len(keys))
    figure, grid = new(*size, columns=wide, sharey=True, squeeze=False)
    head(figure, text, int(13 * size[0]))
    if not len(factorial.cells):
        for axes in grid[0]:
            nothing(axes)
        return grid
    cells = factorial.cells.set_index(list(SLOTS))
    image = None
    for axes, activation in zip(grid[0], activations, strict=True):
        table = cells.xs(activation, level="activation")[column].unstack().reindex(index=keys, columns=values)
        image = axes.imshow(table.to_numpy(float), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        axes.set_title(activation, fontsize=10)
        axes.set_xticks(range(len(values)), values, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(len(keys)), keys, fontsize=9)
        axes.tick_params(length=0)
        for (i, key), (j, of) in ((a, b) for a in enumerate(keys) for b in enumerate(values)):
            if (key, activation, of) in cells.index:
                _write(axes, i, j, cells.loc[(key, activation, of), :], column, meta, limits)
    grid[0, 0].set_ylabel("query-key")
    figure.supxlabel("coefficient-value", fontsize=10)
    assert image is not None
    label = metric_label(meta) if column == "mean" else f"{metric_name(meta)}: points beyond\nthe sum of the slots"
    figure.colorbar(image, ax=grid[0].tolist(), label=textwrap.fill(label, 28), pad=0.015)
    return grid


def _write(axes: Axes, i: int, j: int, cell: Any, column: str, meta: Meta, limits: tuple[float, float]) -> None:
    number = float(cell[column])
    verdict = str(cell.get("verdict", "")) if column == "interaction" else ""
    mark = "*" if verdict in _CLEAR else "°" if verdict == "hint" else ""
    text = signed(number, meta) if column == "interaction" else f"{number:.1f}"
    share = (number - limits[0]) / max(limits[1] - limits[0], 1e-9)
    light = share < 0.57 if column == "mean" else abs(share - 0.5) > 0.4  # where white and ink contrast alike
    weight = "bold" if mark == "*" else "normal"
    axes.text(j, i, text + mark, ha="center", va="center", fontsize=8, color="white" if light else INK, weight=weight)


def main_effects(factorial: Factorial, meta: Meta) -> np.ndarray:
    """What each operation buys on average over the other slots, with 95 % intervals; a picture for each slot."""
    figure, grid = new(9, 3.6, columns=len(SLOTS), sharex=True, squeeze=False)
    effects = factorial.effects
    clear = effects[effects["verdict"].isin(_CLEAR)]
    said = "; ".join(
        f"{row.operation} ({_NAMES[row.slot]}) {signed(row.effect, meta)}"
        for row in each(clear.sort_values("effect", ascending=False))
    )
    if not factorial.whole:
        said = "Main effects: " + ("; ".join(factorial.left_out) or "no full factorial")
    head(
        figure,
        said if not factorial.whole else f"Averaged over the other slots, beyond the noise (points): {said or 'none'}",
    )
    for axes, slot in zip(grid[0], SLOTS, strict=True):
        axes.set_title(_NAMES[slot], fontsize=10)
        plain(axes, "x")
        rows = effects[effects["slot"] == slot]
        if not len(rows):
            nothing(axes, "one operation only" if factorial.whole else "no effects")
            continue
        for place, row in enumerate(each(rows)):
            style = verdict_style(row.verdict)
            reach = [[row.effect - row.low], [row.high - row.effect]]
            axes.errorbar(row.effect, place, xerr=None if math.isnan(row.low) else reach, **style)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.set_yticks(range(len(rows)), rows["operation"], fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    unit = "points" if value(0, meta).endswith("%") else metric_name(meta)
    figure.supxlabel(
        f"effect on the mean ({unit}), 95 % interval; full: beyond the noise, pale: hint, hollow: inside it", fontsize=9
    )
    return grid


def slot_costs(costs: pd.DataFrame, meta: Meta, column: str = "macs", axes: Axes | None = None) -> Axes:
    """What each part of each variant costs, stacked, a bar a variant.

    Args:
        costs: `inside.slot_costs`.
        column: `macs` or `parameters`.
    """
    variants = list(dict.fromkeys(costs["variant"]))
    if axes is None:
        axes = new(8.5, 2.2 + 0.3 * max(len(variants), 4))[1]
    what = {"macs": "multiply-adds", "parameters": "parameters"}[column]
    plain(axes, "x")
    if not variants:
        title(axes, f"What slots cost in {meta.grid} on {meta.data}: unknown")
        return nothing(axes, "no run has a configuration yet")
    table = costs.pivot_table(index="variant", columns="part", values=column, aggfunc="sum", fill_value=0, sort=False)
    table = table.reindex(variants)
    table = table[[part for part in _PARTS if part in table] + [part for part in table if part not in _PARTS]]
    table = table.loc[:, table.sum() > 0]
    whole = table.sum(axis=1)
    scale, letter = (1e9, "G") if whole.max() >= 1e9 else (1e6, "M")
    left = np.zeros(len(table))
    for (part, numbers), colour in zip(table.items(), _part_colours(list(table.columns)), strict=True):
        axes.barh(range(len(table)), numbers / scale, left=left, label=part, height=0.75, edgecolor="white", **colour)
        left += numbers.to_numpy() / scale
    for place, number in enumerate(whole):
        axes.annotate(
            count(number), (number / scale, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(table)), table.index, fontsize=9)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlabel(
        f"{what} per image ({letter}), folded network" if column == "macs" else f"{what} ({letter}), folded"
    )
    token = table[[part for part in table if str(part).startswith("token")]].sum(axis=1) / whole
    low, high = token.min(), token.max()
    share = f"{100 * low:.0f}" if round(100 * low) == round(100 * high) else f"{100 * low:.0f} to {100 * high:.0f}"
    title(axes, f"The token mixers' slots take {share} % of the {what} in {meta.grid} on {meta.data}")
    axes.legend(ncol=1, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return axes


_PARTS = [
    "token: query",
    "token: query-key",
    "token: activation",
    "token: coefficient-value",
    "token: slots at once",
    "channel: query",
    "channel: query-key",
    "channel: activation",
    "channel: coefficient-value",
    "channel: slots at once",
    "stem",
    "downsampling",
    "residuals, scales, norms",
    "head",
]


def _part_colours(parts: list[str]) -> list[dict[str, Any]]:
    """The token mixer's in full colour, the channel mixer's the same hatched, the rest in greys."""
    greys = iter(("#bdbdbd", "#8a8a8a", "#d9d9d9", "#5f5f5f", "#efefef", "#404040"))
    of_slot = dict(
        zip(("query", "query-key", "activation", "coefficient-value", "slots at once"), COLOURS, strict=False)
    )
    looks = []
    for part in parts:
        mixer, _, slot = str(part).partition(": ")
        if slot in of_slot:
            looks.append({"color": of_slot[slot], **({"hatch": "////", "alpha": 0.45} if mixer == "channel" else {})})
        else:
            looks.append({"color": next(greys, VARIANT)})
    return looks
