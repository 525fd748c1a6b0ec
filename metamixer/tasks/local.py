"""Probes of place: the symbols at a certain distance."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from .probe import Probe, ProbeConfig
from .streams import Streams
from .task import register


@register
class Shift(Probe):
    """Every cell is asked for the symbol `distance` cells below and one less to the right, around the edges.

    Needs static places and a kernel that reaches so far.
    """

    name = "shift"
    dial = "distance"

    class Config(ProbeConfig):
        distance: int = Field(default=3, ge=1)
        symbols: int = Field(default=16, ge=2, le=256)

        @model_validator(mode="after")
        def _within_reach(self) -> Shift.Config:
            if self.distance > self.size // 2:
                raise ConfigError(f"distance {self.distance}: at most half of the {self.size} cells, as edges join")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.symbols, (config.symbols,))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        symbols = streams.integers(self.config.symbols, *self.grid)
        down = self.config.distance
        return symbols[:, None] + 1, symbols.roll((-down, 1 - down), (1, 2))

    def solve(self, cells: Tensor) -> Tensor:
        size, down = self.config.size, self.config.distance
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        return cells[:, 0, (rows + down) % size, (columns + down - 1) % size] - 1


@register
class Parity(Probe):
    """Every cell is asked whether an odd number of the cells within `radius` steps of it are marked, itself aside.

    Steps go to the four neighbours, and nothing is marked outside. Needs a local mixing that is not linear.
    """

    name = "parity"
    dial = "radius"

    class Config(ProbeConfig):
        radius: int = Field(default=1, ge=1, le=4)

    def __init__(self, config: Config) -> None:
        super().__init__(config, 2, (1,))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        marked, radius = streams.integers(2, *self.grid), self.config.radius
        padded = F.pad(marked, [radius] * 4)
        size, answers = self.config.size, torch.zeros_like(marked)
        for down in range(-radius, radius + 1):
            for right in range(abs(down) - radius, radius - abs(down) + 1):
                if down or right:
                    answers ^= padded[:, radius + down :, radius + right :][:, :size, :size]
        return marked[:, None], answers

    def solve(self, cells: Tensor) -> Tensor:
        size, radius = self.config.size, self.config.radius
        place = torch.arange(size, device=cells.device)
        apart = (place[:, None] - place).abs()
        steps = apart[:, None, :, None] + apart[None, :, None, :]  # between cell (i, j) and cell (k, l)
        near = ((steps > 0) & (steps <= radius)).flatten(2).flatten(0, 1)  # (N, N)
        return (cells[:, 0].flatten(1).double() @ near.double()).long().remainder(2).view(-1, size, size)
