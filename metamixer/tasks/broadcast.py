"""Probes of the whole: one cell that all others must hear of, and a count as a control."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from .probe import Probe, ProbeConfig
from .streams import Streams
from .task import register


@register
class Needle(Probe):
    """One cell is marked, and every cell is asked for its symbol. Needs a way from everywhere to everywhere."""

    name = "needle"
    dial = "size"

    class Config(ProbeConfig):
        symbols: int = Field(default=16, ge=2, le=256)

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.symbols, (config.symbols, 1))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        size = self.config.size
        symbols = streams.integers(self.config.symbols, size * size)
        place = streams.integers(size * size, 1)
        marks = torch.zeros_like(symbols).scatter(1, place, 1)
        answers = symbols.gather(1, place).expand(-1, size * size)
        return torch.stack([symbols + 1, marks], 1).view(-1, 2, size, size), answers.reshape(-1, size, size)

    def solve(self, cells: Tensor) -> Tensor:
        symbols, marks = cells.flatten(2).unbind(1)
        return (symbols[marks > 0] - 1)[:, None, None].expand(-1, *self.grid)


@register
class Majority(Probe):
    """Which symbol is the most frequent? A pooled head tells without any mixing: the control.

    One cell is given the winner's symbol in the place of its own, so that there is no tie.
    """

    name = "majority"
    head = "pooled"
    dial = "symbols"

    class Config(ProbeConfig):
        symbols: int = Field(default=4, ge=2, le=16)

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.symbols, (config.symbols,))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        kinds, count = self.config.symbols, self.config.size**2
        symbols = streams.integers(kinds, count)
        # a random order among the kinds of one frequency
        frequency = F.one_hot(symbols, kinds).sum(1) * kinds + streams.permutations(kinds)
        winner = frequency.argmax(1, keepdim=True)
        other = (symbols != winner).int().argmax(1, keepdim=True)
        symbols = symbols.scatter(1, other, winner)
        return symbols.view(-1, 1, *self.grid) + 1, winner[:, 0]

    def solve(self, cells: Tensor) -> Tensor:
        return torch.stack([torch.bincount(sample.flatten()).argmax() for sample in cells.cpu()]).to(cells.device) - 1
