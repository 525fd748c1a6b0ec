"""What networks answer to single samples, beside the truth: for tasks whose answers are pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from ..inside import Inside
from . import theme


def examples(networks: Sequence[Inside], count: int = 4) -> Figure | None:
    """The first test samples: input, truth and what each network answers; None where answers are no pictures.

    `networks` are those of one grid, by `analysis.inside.networks`.
    """
    trained = [each for each in networks if each.trained and each.network.run is not None]
    if not trained:
        return None
    task = trained[0].network.run.data.built  # type: ignore[union-attr]
    there = task.count("test")
    rows = []
    for index in range(count if there is None else min(count, there)):
        inputs, answers = task.samples(0, "test", torch.tensor([index]))
        with torch.inference_mode():
            found = [task.pictures(inputs, answers, each.model(inputs)) for each in trained]
        drawn = [pictures for pictures in found if pictures is not None]
        if not drawn:
            return None
        rows.append([*drawn[0][:2], *(pictures[2] for pictures in drawn)])
    headings = ["input", "truth", *(each.name for each in trained)]
    size = (1.5 * len(headings), 1.6 * len(rows))
    figure, axes = theme.new(*size, len(rows), len(headings), squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for place, picture in zip(row, pictures, strict=True):
            place.imshow(picture.clamp(0, 1).permute(1, 2, 0), interpolation="nearest")
            place.set_axis_off()
    for place, heading in zip(axes[0], headings, strict=True):
        place.set_title(heading.replace("_", " "), fontsize=9)
    return figure
