"""Strips: one-dimensional signals, each a written digit's outline somewhere in noise.

After MNIST-1D (arXiv 2011.14439), from which the templates are; place, height and noise are drawn here in whole
numbers, and the noise is bounded, so that one can always tell.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..rng import derive, permutation
from .streams import Streams
from .task import Metric, Task, TaskConfig, register

# MNIST-1D's templates of 0 … 9, twelve points each, times 100 and around their mean of 5
_TEMPLATES = (
    (0, 100, 150, 175, 200, 200, 200, 200, 175, 150, 100, 0),
    (0, -200, -200, -160, -120, -80, -40, 0, 40, 80, 0, 0),
    (0, 100, 150, 150, 100, 25, -25, -100, -150, -150, -100, 0),
    (0, 100, 150, 150, 100, 0, 0, 100, 150, 150, 100, 0),
    (0, -60, -120, -180, -240, -240, 0, 0, 0, 0, 0, 0),
    (0, -200, -200, -200, -200, 0, 100, 150, 150, 100, -50, 0),
    (0, -100, -150, -175, -200, -200, -200, -200, -175, -150, -100, 0),
    (0, 200, 200, 160, 120, 80, 40, 0, -40, -80, 0, 0),
    (0, -100, -150, -150, -100, 0, 0, -100, -150, -150, -100, 0),
    (0, -100, -150, -150, -100, 0, 0, 0, 0, -30, -70, 0),
)
_HEIGHTS = (3, 4, 5)
_POINTS, _MOST_NOISE = 40, 159  # two signals of different digits are 320 apart somewhere


@register
class Strips(Task):
    """Which digit's outline is it? Needs locality, as `permuted` shows.

    The input is a map one cell high, (B, 1, 1, 40). The outline begins anywhere, at one of three heights.
    """

    name = "strips"
    dial: ClassVar[str] = "noise"
    in_chans, input_size, num_classes = 1, (1, _POINTS), 10
    metrics = (Metric("accuracy", "accuracy", "%", chance=10.0, solved=91.0),)

    class Config(TaskConfig):
        """`noise` is a share of the most with which the digit can always be told. `permuted` reorders the points."""

        noise: float = Field(default=1.0, ge=0, le=1)
        permuted: bool = False

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        streams, (signals, digits) = Streams(derive(seed, "task", self.name, split), indices), self._signals
        chosen = streams.integers(len(signals), 1)[:, 0]
        most = round(_MOST_NOISE * self.config.noise)
        noise = streams.integers(2 * most + 1, _POINTS) - most
        points = signals.to(indices.device)[chosen] + noise
        if self.config.permuted:
            points = points[:, self._order.to(points.device)]
        # by a tensor: CUDA multiplies by a plain number's reciprocal, which rounds otherwise (pytorch/pytorch#191495)
        points = points.float() / torch.tensor(1000.0, device=points.device)
        return points[:, None, None], digits.to(indices.device)[chosen]

    def oracle(self, inputs: Tensor) -> Tensor:
        points = (inputs[:, 0, 0] * 1000).round()
        if self.config.permuted:
            points = points[:, self._order.argsort().to(points.device)]
        signals, digits = (x.to(points.device) for x in self._signals)
        return digits[torch.cdist(points.double(), signals.double(), p=torch.inf).argmin(1)]

    @cached_property
    def _order(self) -> Tensor:
        return torch.from_numpy(permutation(derive("points of permuted strips"), 0, _POINTS))

    @cached_property
    def _signals(self) -> tuple[Tensor, Tensor]:
        """Every digit at every height and place without noise, (870, 40), and which digit it is (870,)."""
        outlines = torch.tensor(_TEMPLATES)[:, None] * torch.tensor(_HEIGHTS)[:, None]  # (10, 3, 12)
        places = range(_POINTS - outlines.shape[2] + 1)
        shifted = [F.pad(outlines, (p, _POINTS - outlines.shape[2] - p)) for p in places]
        signals = torch.stack(shifted, 2).flatten(1, 2)
        return signals.flatten(0, 1), torch.arange(10).repeat_interleave(signals.shape[1])
