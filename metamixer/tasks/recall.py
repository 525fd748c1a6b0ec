"""Recall: pairs of a key and a value lie at random places, and other cells show a key and are asked for its value.

After the associative recall of MQAR (arXiv 2312.04927) and MAD (arXiv 2403.17844), in two dimensions.
"""

from __future__ import annotations

from math import factorial

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import ConfigError
from .probe import Probe, ProbeConfig
from .streams import Streams
from .task import NOT_ASKED, register


class RecallConfig(ProbeConfig):
    """`pairs` of one of `keys` keys, all different, and one of `values` values; each key is asked for once."""

    pairs: int = Field(default=8, ge=2)
    keys: int = Field(default=16, ge=2, le=256)
    values: int = Field(default=16, ge=2, le=25)

    @model_validator(mode="after")
    def _pairs_fit(self) -> RecallConfig:
        if self.pairs > self.keys:
            raise ConfigError(f"{self.pairs} pairs need as many keys, and there are {self.keys}")
        if 2 * self.pairs > self.places():
            raise ConfigError(f"{self.pairs} pairs and their questions need {2 * self.pairs} of {self.places()} places")
        return self

    def places(self) -> int:
        """How many pairs and questions have room."""
        return self.size**2


@register
class Recall(Probe):
    """A pair is one cell with both symbols. Needs dynamic keys that reach every cell."""

    name = "recall"
    dial = "pairs"

    class Config(RecallConfig):
        pass

    def __init__(self, config: RecallConfig) -> None:
        super().__init__(config, config.values, (config.keys, config.values))

    def levels(self) -> dict[str, float]:
        return {"knows the values, not whose": 100 * most_frequent(self.config.pairs, self.config.values)}

    def symbols(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Keys and values of the pairs, counted from 1, each (B, pairs)."""
        keys = streams.permutations(self.config.keys)[:, : self.config.pairs] + 1
        return keys, streams.integers(self.config.values, self.config.pairs) + 1

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        pairs, count = self.config.pairs, self.config.size**2
        keys, values = self.symbols(streams)
        places = streams.permutations(count)[:, : 2 * pairs]
        nothing = torch.zeros_like(places[:, :1]).expand(-1, count)
        first = nothing.scatter(1, places, keys.repeat(1, 2))
        second = nothing.scatter(1, places[:, :pairs], values)
        answers = (nothing + NOT_ASKED).scatter(1, places[:, pairs:], values - 1)
        return torch.stack([first, second], 1).view(-1, 2, *self.grid), answers.view(-1, *self.grid)

    def solve(self, cells: Tensor) -> Tensor:
        first, second = cells.flatten(2).unbind(1)
        same = (first[:, :, None] == first[:, None, :]) & (second[:, None, :] > 0)  # (B, asking cell, pair)
        return (same * second[:, None, :]).amax(2).view(-1, *self.grid) - 1


@register
class NoisyRecall(Recall):
    """Recall where a share `noise` of the other cells show symbols that are no keys."""

    name = "noisy_recall"
    dial = "noise"

    class Config(RecallConfig):
        """`noise` in steps of a thousandth; the other symbols are `others` in number."""

        noise: float = Field(default=0.4, ge=0, le=1)
        others: int = Field(default=16, ge=1, le=256)

    def __init__(self, config: Config) -> None:
        Probe.__init__(self, config, config.values, (config.keys + config.others, config.values))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        cells, answers = super().draw(streams)
        other = streams.integers(self.config.others, *self.grid) + 1 + self.config.keys
        noisy = streams.integers(1000, *self.grid) < round(1000 * self.config.noise)
        cells[:, 0] = torch.where(noisy & (cells[:, 0] == 0), other, cells[:, 0])
        return cells, answers


@register
class SplitRecall(Recall):
    """Recall where the value stands in the cell to the right of its key. Needs to join neighbours first."""

    name = "split_recall"

    class Config(RecallConfig):
        size: int = Field(default=6, ge=4, le=64, multiple_of=2)

        def places(self) -> int:
            return self.size**2 // 2

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        pairs, count = self.config.pairs, self.config.places()
        keys, values = self.symbols(streams)
        left = 2 * streams.permutations(count)[:, : 2 * pairs]  # a place is two cells side by side
        nothing = torch.zeros_like(left[:, :1]).expand(-1, 2 * count)
        first = nothing.scatter(1, left, keys.repeat(1, 2))
        second = nothing.scatter(1, left[:, :pairs] + 1, values)
        answers = (nothing + NOT_ASKED).scatter(1, left[:, pairs:], values - 1)
        return torch.stack([first, second], 1).view(-1, 2, *self.grid), answers.view(-1, *self.grid)

    def solve(self, cells: Tensor) -> Tensor:
        to_the_left = torch.roll(cells[:, 1], -1, 2)
        to_the_left[:, :, -1] = 0
        return super().solve(torch.stack([cells[:, 0], to_the_left], 1))


def most_frequent(draws: int, kinds: int) -> float:
    """Expected share of the most frequent kind among `draws` independent uniform draws.

    The chance that no kind comes more than m times is draws! / kinds^draws times the coefficient of x^draws in
    (1 + x + … + x^m / m!)^kinds.
    """
    at_most = []
    for m in range(draws + 1):
        terms, product = np.array([1 / factorial(j) for j in range(m + 1)]), np.ones(1)
        for _ in range(kinds):
            product = np.convolve(product, terms)[: draws + 1]
        at_most.append(product[draws] * factorial(draws) / kinds**draws if len(product) > draws else 0.0)
    return float(draws - sum(at_most[:-1])) / draws
