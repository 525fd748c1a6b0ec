"""Names beside points, so that no name lies on another."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ._common import BASE, INK


def place_labels(
    axes: Axes, x: np.ndarray, shown: pd.DataFrame, level: bool = True, around: np.ndarray | None = None
) -> None:
    """Name each point at `x` and its row's `mean` beside it, so that no name lies on another name, a point or a bar.

    Greedy: each label takes the cheapest of a fan of places around its point, then all choose again a few
    times with the others in place. A label far from its point gets a thin line to it.

    Args:
        shown: `variant`, `mean`, `sd`, and `base`, whose names have its colour.
        level: whether there is a line across the axes at the base.
        around: corners of a line in steps, (n, 2) in data, that names shouldn't lie on.
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
    heights = at[shown["base"].to_numpy(), 1] if level else []  # of the dashed line
    lines = [[frame.x0, height - point, frame.x1, height + point] for height in heights]
    if around is not None and len(around) > 1:
        corners = axes.transData.transform(around)
        low, high = np.minimum(corners[:-1], corners[1:]), np.maximum(corners[:-1], corners[1:])
        lines += np.hstack([low - point, high + point]).tolist()
    obstacles = np.vstack([taken, bars, *lines])
    texts, sizes = [], []
    for name, base, x_i, y_i in zip(shown["variant"], shown["base"], x, y, strict=True):
        text = axes.annotate(name, (x_i, y_i), fontsize=9, color=BASE if base else INK, va="bottom", zorder=5)
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
