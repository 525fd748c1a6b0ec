"""What all pictures share: colours, sizes, marks of a verdict, saving."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..frame import Meta
from ..tables import metric_name, value

# Okabe and Ito's palette, told apart with any colour vision; form and filling repeat what the colour says.
BASE, VARIANT, INK = "#D55E00", "#0072B2", "#333333"
PALE, GRID, QUIET = "#9CCBE8", "#e6e6e6", "#8a8a8a"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def new(width: float = 8, height: float = 5.4, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure whose parts keep clear of each other, and its axes."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), **options)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, axes


def title(axes: Axes, text: str, width: int = 96) -> None:
    axes.set_title(textwrap.fill(text, width), loc="left", fontsize=10)


def head(figure: Figure, text: str, width: int = 110) -> None:
    """The title of a figure of several axes."""
    figure.suptitle(textwrap.fill(text, width), x=0.01, ha="left", fontsize=10)


def plain(axes: Axes, grid: Any = "y") -> Axes:
    """Without the frame's upper and right line; with a pale grid along `grid`."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return axes


def nothing(axes: Axes, why: str = "no finished run yet") -> Axes:
    """Axes that say why they are empty."""
    axes.set(xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(0.5, 0.5, textwrap.fill(why, 60), transform=axes.transAxes, ha="center", va="center", color=INK)
    return axes


def metric_label(meta: Meta, of: str = ", mean over seeds") -> str:
    unit = " (%)" if value(0, meta).endswith("%") else ""
    what = f"{metric_name(meta)} on {meta.data}{unit}"
    return what + (of.replace(", ", ",\n", 1) if len(what + of) > 50 else of)


def legend_below(axes: Axes, handles: list[Any], columns: int = 2) -> None:
    """A legend under the axes' labels: of the figure, if it has no other axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    look: dict[str, Any] = {"handles": handles, "ncol": columns, "frameon": False, "fontsize": 9}
    if len(figure.axes) == 1:
        figure.legend(loc="outside lower center", **look)
    else:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), **look)


def colours(names: list[str]) -> dict[str, dict[str, Any]]:
    """A line's colour and dashes for each name: not the base's, nor yellow, which paper swallows."""
    others = [colour for colour in COLOURS if colour not in (BASE, "#F0E442")]
    return {
        name: {"color": others[i % len(others)], "linestyle": DASHES[i // len(others) % len(DASHES)]}
        for i, name in enumerate(names)
    }


def verdict_style(verdict: str) -> dict[str, Any]:
    style: dict[str, Any] = {
        "markersize": 8,
        "markeredgewidth": 1.6,
        "elinewidth": 1.2,
        "capsize": 3,
        "zorder": 3,
    }
    if verdict == "base":
        return style | {"fmt": "D", "color": BASE, "markersize": 11, "zorder": 2}
    fill = {"above": VARIANT, "below": VARIANT, "hint": PALE}.get(verdict, "white")
    return style | {"fmt": "o", "color": VARIANT, "markerfacecolor": fill}


def save(picture: Axes | Figure, path: str | Path) -> Path:
    """Write a picture's whole figure as a PNG of 150 dots per inch, and give its path."""
    figure = picture if isinstance(picture, Figure) else picture.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", facecolor="white")
    return path
