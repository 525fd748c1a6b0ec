"""Mean and standard deviation of a run's inputs, for `data.mean` and `data.std` or a task's own parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import override
from .data import Data
from .run_config import OF_IMAGES, RunConfig


def statistics(config: RunConfig, samples: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels of a run's first training samples.

    Images are read without augmentation, in 0 … 1, before `data.mean` and `data.std` act. A task's samples are taken
    as the task gives them.

    Args:
        samples: as many of the first epoch, up to a whole batch; all of them if there are fewer.

    Raises ConfigError: the data are missing or can't be used.
    """
    config = override(config, {f"recipe.{key}": plain for key, plain in OF_IMAGES.items()})
    total = torch.zeros(3, config.data.channels, dtype=torch.float64)
    seen = 0
    for inputs, _ in Data(config.data, config.recipe).batches(0):
        total += _sums(inputs.double())
        seen += len(inputs)
        if seen >= samples:
            break
    count, first, second = total
    mean = first / count
    spread = (second / count - mean.square()).clamp(min=0).sqrt()
    centre, unit = (torch.tensor(each, dtype=torch.float64) for each in (config.data.mean, config.data.std))
    return (mean * unit + centre).tolist(), (spread * unit).tolist()


def _sums(x: Tensor) -> Tensor:
    """Number, sum and sum of squares of each channel of (B, C, H, W)."""
    count = torch.full_like(x[0, :, 0, 0], x[:, 0].numel())
    return torch.stack([count, x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
