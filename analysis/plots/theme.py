"""What all pictures share: seaborn's theme, colours, marks of a verdict, labels, saving."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..frame import Meta

# Okabe and Ito's palette, told apart with any colour vision; form and filling repeat what the colour says.
BASE, VARIANT, INK = "#D55E00", "#0072B2", "#333333"
FALL, PALE_FALL = "#E69F00", "#F6D99A"
PALE, QUIET = "#9CCBE8", "#8a8a8a"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
DASHED: Any = (0, (4, 3))
CLEAR = ("better", "worse")
# what an axis says of a cost
COSTS = {
    "macs": "multiply-adds per sample",
    "parameters": "parameters",
    "state_size": "state: numbers held of the other tokens to answer for one more",
}

sns.set_theme(
    style="whitegrid",
    palette=COLOURS,
    rc={"font.size": 10, "figure.titlesize": 10, "axes.titlesize": 10, "axes.labelsize": 10,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "legend.frameon": False, "axes.titlelocation": "left", "grid.color": "#e6e6e6", "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK},
)  # fmt: skip


def new(width: float = 8, height: float = 5.4, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure whose parts keep clear of each other, and its axes."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), **options)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, axes


def title(axes: Axes, text: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.set_title(textwrap.fill(text, int(10.5 * figure.get_figwidth()), break_on_hyphens=False))


def head(figure: Figure, text: str, width: int = 92) -> None:
    """The title of a figure of several axes."""
    figure.suptitle(textwrap.fill(text, width, break_on_hyphens=False), x=0.01, ha="left", fontsize=10)


def nothing(axes: Axes, why: str = "no finished run yet") -> Axes:
    """Axes that say why they are empty."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, textwrap.fill(why, 60), transform=axes.transAxes, ha="center", va="center")
    return axes


def metric_label(meta: Meta, of: str = "mean over seeds") -> str:
    unit = f" ({meta.metric.unit})" if meta.metric.unit else ""
    return f"{meta.metric.label} on {meta.data}{unit},\n{of}"


# in the order of a legend: how a verdict's mark is filled, and what it says
_CLEAR = (VARIANT, "differs from the base (Holm, 5 %)")
_NOISE = ("white", "inside the noise, or not to be judged")
_HINT = (PALE, "hint: not after Holm's correction")
_MARKS = {"base": (BASE, "base"), "better": _CLEAR, "worse": _CLEAR, "hint": _HINT, "inside noise": _NOISE,
          "no spread": _NOISE, "too few pairs": _NOISE}  # fmt: skip


def marks(axes: Axes, table: pd.DataFrame, x: str, y: str, error: Any, along: str = "y") -> None:
    """One point per row of `table` at its columns `x` and `y`, in the form of its `verdict`, with a bar along an axis.

    Args:
        error: lengths to both sides, (rows,) or (2, rows); NaN draws no bar.
    """
    error = np.broadcast_to(np.nan_to_num(np.asarray(error, float)), (2, len(table)))
    known = set(axes.get_legend_handles_labels()[1])
    for verdict, (fill, words) in _MARKS.items():
        chosen = (table["verdict"] == verdict).to_numpy()
        if chosen.any():
            form, colour, size = ("D", BASE, 10) if verdict == "base" else ("o", VARIANT, 8)
            axes.errorbar(
                table.loc[chosen, x], table.loc[chosen, y], **{f"{along}err": error[:, chosen]},  # type: ignore[arg-type]
                label="_" * (words in known) + words, fmt=form, color=colour, markerfacecolor=fill, markersize=size,
                markeredgewidth=1.6, zorder=3, elinewidth=1.2, capsize=3,
            )  # fmt: skip
            known.add(words)


def names(axes: Axes, x: Any, y: Any, texts: Any, base: Any, bar: Any = 0.0) -> None:
    """Name points, each at the nearest free place: beside points, their bars, other names and the lines to them.

    The points with most neighbours choose first.

    Args:
        base: of each point, whether its name has the base's colour.
        bar: the length of each point's bar, up and down.
    """
    axes.figure.canvas.draw()  # settles the layout, so that names are measured as they will stand
    x, y, texts, base = np.asarray(x, float), np.asarray(y, float), list(texts), list(base)
    bar = np.nan_to_num(np.asarray(bar, float)) * np.ones(len(y))
    here, low, high = (axes.transData.transform(np.c_[x, at]) for at in (y, y - bar, y + bar))
    air = 5 * axes.figure.dpi / 72
    taken = np.r_[np.c_[here - 1.3 * air, here + 1.3 * air], np.c_[low - air / 2, high + air / 2]]
    left, bottom, right, top = axes.get_window_extent().extents
    turns = np.pi / 4 + np.linspace(0, 2 * np.pi, 24, endpoint=False)  # above to the right first: fronts go right
    around = np.clip(1.5 * np.c_[np.cos(turns), np.sin(turns)], -1, 1)  # on a square: names stand at their corners too
    near = np.hypot(*(here[:, None] - here).T) < 16 * air
    lines = []
    for i in np.argsort(-near.sum(0), kind="stable"):
        name = axes.text(x[i], y[i], texts[i], color=BASE if base[i] else INK, path_effects=_HALO, **_NAME)
        half = np.asarray(name.get_window_extent().size) / 2
        centres = here[i] + np.concatenate([around * (half + gap * air) for gap in (1.5, 2, 3, 4, 6, 8, 11, 14, 18)])
        boxes = np.c_[centres - half, centres + half]
        ends = np.clip(here[i], boxes[:, :2], boxes[:, 2:])  # of a line from the point to its name
        others = np.delete(taken, [i, i + len(here)], 0)  # all but its own point and bar
        on_lines = here[i] + np.linspace(0.3, 0.9, 6)[:, None, None] * (ends - here[i])
        crossed = sum(_overlaps(np.c_[spots, spots], others) for spots in on_lines)
        outside = (boxes < (left, bottom, left, bottom)).any(1) | (boxes > (right, top, right, top)).any(1)
        best = np.argmin(100 * outside + 10 * _overlaps(boxes, taken) + crossed)  # of equals, the nearest
        name.set_position(tuple(axes.transData.inverted().transform(centres[best])))
        taken = np.r_[taken, boxes[[best]], np.c_[on_lines[:, best], on_lines[:, best]]]
        if np.hypot(*(ends[best] - here[i])) > 1.9 * air:
            lines.append(axes.transData.inverted().transform([here[i], ends[best]]))
    axes.add_collection(LineCollection(lines, colors=QUIET, linewidths=0.7, zorder=2), autolim=False)


_HALO = [withStroke(linewidth=2, foreground="white")]  # so that a line behind a name leaves it readable
_NAME: Any = {"fontsize": 9, "ha": "center", "va": "center", "zorder": 5}


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the `others` (M, 4: left, bottom, right, top) each of the `boxes` (N, 4) overlaps: (N,)."""
    return ((boxes[:, None, :2] < others[:, 2:]) & (boxes[:, None, 2:] > others[:, :2])).all(-1).sum(1)


def legend(axes: Axes, columns: int = 2, handles: Sequence[Artist] = ()) -> None:
    """A legend of `handles`, or of what the axes show, under all of the figure."""
    handles = handles or axes.get_legend_handles_labels()[0]
    axes.figure.legend(handles=handles, loc="outside lower center", ncol=columns)  # type: ignore[call-arg]


def save(picture: Axes | Figure, *paths: str | Path) -> None:
    """Write a picture's whole figure, in the forms that the files' names say; PNG has 150 dots per inch."""
    figure = picture if isinstance(picture, Figure) else picture.get_figure(root=True)
    assert figure is not None
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
