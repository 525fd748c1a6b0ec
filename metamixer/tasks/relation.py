"""Relation: objects of two shapes and many colours, each asked about another one or about all.

After Sort-of-CLEVR's relational questions (arXiv 1706.01427).
"""

from __future__ import annotations

from math import comb
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import ConfigError
from .probe import Probe, ProbeConfig
from .streams import Streams
from .task import NOT_ASKED, register


@register
class Relation(Probe):
    """Each object is asked for the shape of the closest, or of the furthest other object, or how many have its shape.

    Distances are straight. An object is not asked where two others of different shapes are equally far.
    """

    name = "relation"
    dial = "objects"

    class Config(ProbeConfig):
        objects: int = Field(default=6, ge=2, le=25)
        question: Literal["closest", "furthest", "count"] = "closest"

        @model_validator(mode="after")
        def _room(self) -> Relation.Config:
            if self.objects > self.size**2:
                raise ConfigError(f"{self.objects} objects need as many cells, and there are {self.size**2}")
            return self

    def __init__(self, config: Config) -> None:
        classes = config.objects if config.question == "count" else 2
        super().__init__(config, classes, (2, config.objects))

    def chance(self) -> float:
        if self.config.question != "count":
            return 50.0
        # every object of a shape that k of n have answers k; the others of the n are a fair coin each
        n = self.config.objects
        return 100 * max(comb(n - 1, k) for k in range(n)) / 2 ** (n - 1)

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        objects, size = self.config.objects, self.config.size
        place = streams.permutations(size * size)[:, :objects]
        shape = streams.integers(2, objects)
        colour = streams.permutations(objects) + 1
        nothing = torch.zeros_like(place[:, :1]).expand(-1, size * size)
        cells = torch.stack([nothing.scatter(1, place, shape + 1), nothing.scatter(1, place, colour)], 1)
        answers = (nothing + NOT_ASKED).scatter(1, place, self._answers(place, shape))
        return cells.view(-1, 2, size, size), answers.view(-1, size, size)

    def _answers(self, place: Tensor, shape: Tensor) -> Tensor:
        if self.config.question == "count":
            return (shape[:, :, None] == shape[:, None, :]).sum(2) - 1
        size = self.config.size
        row, column = place // size, place % size
        distance = (row[:, :, None] - row[:, None, :]) ** 2 + (column[:, :, None] - column[:, None, :]) ** 2
        sign = -1 if self.config.question == "closest" else 1
        itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
        score = (sign * distance).masked_fill(itself, -(2**20))
        best = score == score.amax(2, keepdim=True)
        of_a_shape = [(best & (shape[:, None, :] == s)).any(2) for s in (0, 1)]
        return torch.where(of_a_shape[0] & of_a_shape[1], NOT_ASKED, of_a_shape[1].long())

    def solve(self, cells: Tensor) -> Tensor:
        answers = torch.zeros_like(cells[:, 0])
        for sample, answer in zip(cells[:, 0], answers, strict=True):
            objects = [(i, j, int(sample[i, j]) - 1) for i, j in sample.nonzero().tolist()]
            for i, j, shape in objects:
                others = [(abs(complex(i - k, j - m)), s) for k, m, s in objects if (k, m) != (i, j)]
                if self.config.question == "count":
                    answer[i, j] = sum(s == shape for _, s in others)
                else:
                    answer[i, j] = (min if self.config.question == "closest" else max)(others)[1]
        return answers
