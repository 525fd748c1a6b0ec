"""What networks look at, and what they answer: effective receptive fields and examples, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .theme import BASE, QUIET, head, legend, new, nothing


def receptive_fields(fields: Mapping[str, np.ndarray], extents: Mapping[str, int], what: str) -> np.ndarray:
    """Effective receptive fields side by side, each relative to its own largest value, on a logarithmic scale.

    Args:
        fields: (H, W) each, by the network's name: `inside.receptive_field`.
        extents: side of the square that holds 90 % of each: `inside.extent`.
        what: of which images and stage, for the title.
    """
    columns = max(1, min(len(fields), 4))
    rows = max(1, -(-len(fields) // columns))
    figure, grid = new(max(6.0, 2.2 * columns + 0.8), 2.2 * rows + 0.7, rows, columns, squeeze=False)
    if not fields:
        nothing(grid[0, 0], "no run has a configuration yet")
        return grid
    low, high = min(extents.values()), max(extents.values())
    sides = f"{low} px" if low == high else f"{low} to {high} px"
    head(figure, f"90% of the centre's gradient lies in a square of {sides} ({what})")
    for axes in grid.ravel()[len(fields) :]:
        axes.set_visible(False)
    for axes, (name, field) in zip(grid.ravel(), fields.items(), strict=False):
        image = axes.imshow(np.log10(np.maximum(field / field.max(), 1e-4)), cmap="cividis", vmin=-4, vmax=0)
        axes.set_title(f"{name}\n90% in {extents[name]}×{extents[name]} px", fontsize=9)
        axes.set(xticks=[0, field.shape[1] - 1], yticks=[0, field.shape[0] - 1])
        axes.tick_params(labelsize=7)
        axes.grid(visible=False)
        side = extents[name]
        left, top = (float(np.searchsorted(np.cumsum(field.sum(a)), 0.5 * field.sum())) - side / 2 for a in (0, 1))
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=BASE, linewidth=1.4))
    label = "log10 of the gradient,\nrelative to its largest"
    figure.colorbar(image, ax=grid.ravel().tolist(), label=label, shrink=0.85)
    return grid


def examples(pictures: Mapping[str, list[np.ndarray]], colours: Mapping[str, Any] | None = None) -> Figure:
    """What networks answer to single samples, beside the truth: one row per sample.

    Args:
        pictures, colours: as `inside.examples` gives them, with at least one picture. Under the figure a legend has
            the colours that occur.
    """
    rows, columns = len(next(iter(pictures.values()))), len(pictures)
    shown = np.concatenate([one.reshape(-1, 3) for name, own in pictures.items() if name != "input" for one in own])
    handles = [
        Patch(facecolor=colour, edgecolor=QUIET, label=name)
        for name, colour in (colours or {}).items()
        if np.isclose(shown, colour).all(1).any()
    ]
    figure, grid = new(1.5 * columns, 1.6 * rows + 0.25 * -(-len(handles) // columns), rows, columns, squeeze=False)
    for column, (name, shown) in zip(grid.T, pictures.items(), strict=True):
        column[0].set_title(name.replace("_", " "), fontsize=9)
        for axes, picture in zip(column, shown, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    if handles:
        legend(grid[0, 0], columns, handles)
    return figure
