"""What all pictures share: seaborn's theme, colours, marks of a verdict, labels, saving."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from adjustText import adjust_text
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..frame import Meta

# Okabe and Ito's palette, told apart with any colour vision; form and filling repeat what the colour says.
BASE, VARIANT, INK = "#D55E00", "#0072B2", "#333333"
FALL, PALE_FALL = "#E69F00", "#F6D99A"
PALE, QUIET = "#9CCBE8", "#8a8a8a"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
DASHED: Any = (0, (4, 3))
CLEAR = ("above", "below")

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
    axes.set_title(textwrap.fill(text, 96))


def head(figure: Figure, text: str, width: int = 92) -> None:
    """The title of a figure of several axes."""
    figure.suptitle(textwrap.fill(text, width), x=0.01, ha="left", fontsize=10)


def nothing(axes: Axes, why: str = "no finished run yet") -> Axes:
    """Axes that say why they are empty."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, textwrap.fill(why, 60), transform=axes.transAxes, ha="center", va="center")
    return axes


def metric_label(meta: Meta, of: str = "mean over seeds") -> str:
    return f"{meta.metric.name} on {meta.data}{' (%)' if meta.metric.unit else ''},\n{of}"


# in the order of a legend: how a verdict's mark is filled, and what it says
_MARKS = {
    "base": (BASE, "base"),
    "above": (VARIANT, "differs from the base (Holm, 5 %)"),
    "below": (VARIANT, "differs from the base (Holm, 5 %)"),
    "hint": (PALE, "hint: not after Holm's correction"),
    "inside noise": ("white", "inside the noise, or not to be judged"),
    "no spread": ("white", "inside the noise, or not to be judged"),
    "too few pairs": ("white", "inside the noise, or not to be judged"),
}


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
            base = verdict == "base"
            look: dict[str, Any] = {"fmt": "D" if base else "o", "color": BASE if base else VARIANT}
            look |= {"markerfacecolor": fill, "markersize": 10 if base else 8, "markeredgewidth": 1.6}
            axes.errorbar(
                table.loc[chosen, x], table.loc[chosen, y], **{f"{along}err": error[:, chosen]},  # type: ignore[arg-type]
                label="_" * (words in known) + words, zorder=3, elinewidth=1.2, capsize=3, **look,
            )  # fmt: skip
            known.add(words)


def names(axes: Axes, x: Any, y: Any, texts: Any, base: Any, bar: Any = 0.0) -> None:
    """Name points beside them, so that no name lies on a point, the ends of its bar or another name.

    Args:
        base: of each point, whether its name has the base's colour.
        bar: the length of each point's bar, up and down.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()  # settles the layout, so that names are measured as they will stand
    x, y = np.asarray(x, float), np.asarray(y, float)
    bar = np.broadcast_to(np.nan_to_num(np.asarray(bar, float)), y.shape)
    points = axes.scatter(x, y, s=130, alpha=0)  # as large as a mark with some air around it
    placed = [
        axes.text(at, height, name, fontsize=9, color=BASE if is_base else INK, zorder=5)
        for at, height, name, is_base in zip(x, y, texts, base, strict=True)
    ]
    arrows = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.7}
    ends = np.r_[x, x], np.r_[y - bar, y + bar]
    adjust_text(placed, *ends, objects=points, ax=axes, arrowprops=arrows, force_text=(0.3, 0.5), iter_lim=300)


def legend(axes: Axes, columns: int = 2, handles: Sequence[Artist] = ()) -> None:
    """A legend of `handles`, or of what the figure's first axes show, under all of them."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if not figure.legends:
        handles = handles or axes.get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncol=columns)


def save(picture: Axes | Figure, path: str | Path) -> Path:
    """Write a picture's whole figure as a PNG of 150 dots per inch, and give its path."""
    figure = picture if isinstance(picture, Figure) else picture.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", facecolor="white")
    return path
