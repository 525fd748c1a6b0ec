"""Probes: small tasks on a square of cells that ask one ability of a token mixer.

A cell holds up to two symbols, one of each vocabulary, or none: cells are integers (B, fields, G, G), 0 for none. They
are fed as one channel for each symbol, or painted: the first symbol is a pattern of 4×4 pixels, the second its colour.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..rng import derive, permutation
from .streams import Streams
from .task import Head, Metric, Task, TaskConfig

CELL = 4  # pixels, where cells are painted


class ProbeConfig(TaskConfig):
    """`size` cells a side. `permuted` moves every cell to another place, the same in all samples, so neighbours part.

    `picture` paints the cells as a picture of 4 pixels a cell, (B, 3, 4·size, 4·size).
    """

    size: int = Field(default=6, ge=4, le=64)
    permuted: bool = False
    picture: bool = False


class Probe(Task):
    """Base of the probes: a subclass draws cells with their answers, and solves cells by the definition.

    Attributes:
        dial: the parameter that makes it harder.
        fields: number of symbols in each vocabulary.
    """

    head: Head = "cells"
    dial: ClassVar[str]
    fields: tuple[int, ...]

    class Config(ProbeConfig):
        pass

    def __init__(self, config: Any, num_classes: int, fields: tuple[int, ...]) -> None:
        super().__init__(config)
        self.num_classes, self.fields = num_classes, fields
        height, width = self.grid
        scale = CELL if config.picture else 1
        self.in_chans = 3 if config.picture else sum(fields)
        self.input_size, self.answer_size = (height * scale, width * scale), self.grid
        chance = self.chance()
        solved = chance + 0.9 * (100 - chance)
        self.metrics = (Metric("accuracy", "accuracy", "%", chance=chance, levels=self.levels(), solved=solved),)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.config.size, self.config.size

    def chance(self) -> float:
        """Per cent right by the best answer that ignores the input."""
        return 100 / self.num_classes

    def levels(self) -> dict[str, float]:
        """Per cent right without one of the abilities that the probe asks, by a name that says which."""
        return {}

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Cells (B, fields, G, G), and answers (B,) or (B, G, G)."""
        raise NotImplementedError

    def solve(self, cells: Tensor) -> Tensor:
        """The right answers to cells (B, fields, G, G)."""
        raise NotImplementedError

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        cells, answers = self.draw(Streams(derive(seed, "task", self.name, split), indices))
        if self.config.permuted:
            cells = self._moved(cells, self._order)
            answers = self._moved(answers, self._order) if self.head == "cells" else answers
        return self._painted(cells) if self.config.picture else self._spread(cells), answers

    def oracle(self, inputs: Tensor) -> Tensor:
        cells = self._seen(inputs) if self.config.picture else self._gathered(inputs)
        if not self.config.permuted:
            return self.solve(cells)
        answers = self.solve(self._moved(cells, self._order.argsort()))
        return self._moved(answers, self._order) if self.head == "cells" else answers

    @cached_property
    def _order(self) -> Tensor:
        rows, columns = self.grid
        return torch.from_numpy(permutation(derive("cells of a permuted probe"), 0, rows * columns))

    def _moved(self, x: Tensor, order: Tensor) -> Tensor:
        return x.flatten(-2)[..., order.to(x.device)].reshape(x.shape)

    # ---- one channel for each symbol

    def _spread(self, cells: Tensor) -> Tensor:
        symbols = [torch.arange(1, n + 1, device=cells.device)[:, None, None] for n in self.fields]
        return torch.cat([cells[:, f : f + 1] == each for f, each in enumerate(symbols)], 1).float()

    def _gathered(self, inputs: Tensor) -> Tensor:
        parts = inputs.split(self.fields, 1)
        return torch.stack([torch.where(part.amax(1) > 0, part.argmax(1) + 1, 0) for part in parts], 1)

    # ---- pictures

    @cached_property
    def _patterns(self) -> Tensor:
        """(fields[0] + 2, 4, 4): none, one for each symbol of the first field, and all pixels."""
        numbers = permutation(derive("patterns of a probe"), 0, 2**16 - 2)[: self.fields[0]] + 1
        bits = torch.from_numpy(numbers)[:, None] >> torch.arange(CELL * CELL) & 1
        if self.fields[0] == 1:
            bits = torch.ones_like(bits)
        return torch.cat([bits[:1] * 0, bits, bits[:1] * 0 + 1]).view(-1, CELL, CELL).float()

    @cached_property
    def _palette(self) -> Tensor:
        """(26, 3): white for no second symbol, then the other colours of three levels a channel but black."""
        levels = torch.tensor([1.0, 0.0, 0.5])
        colours = torch.cartesian_prod(levels, levels, levels)
        return colours[colours.sum(1) > 0]

    def _painted(self, cells: Tensor) -> Tensor:
        second = cells[:, 1] if len(self.fields) > 1 else torch.zeros_like(cells[:, 0])
        first = torch.where((cells[:, 0] == 0) & (second > 0), self.fields[0] + 1, cells[:, 0])
        patterns, palette = self._patterns.to(cells.device), self._palette.to(cells.device)
        painted = patterns[first][:, None] * palette[second].movedim(-1, 1)[..., None, None]  # (B, 3, G, G, 4, 4)
        return painted.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _seen(self, pictures: Tensor) -> Tensor:
        pixels = pictures.unflatten(2, (-1, CELL)).unflatten(4, (-1, CELL)).transpose(3, 4)  # (B, 3, G, G, 4, 4)
        ink, colour = pixels.amax(1) > 0, pixels.amax((-1, -2)).movedim(1, -1)
        first = (ink[..., None, :, :] == (self._patterns > 0).to(ink.device)).all(-1).all(-1).int().argmax(-1)
        second = (colour[..., None, :] == self._palette.to(colour.device)).all(-1).int().argmax(-1)
        cells = [torch.where(first > self.fields[0], 0, first), torch.where(ink.any(-1).any(-1), second, 0)]
        return torch.stack(cells[: len(self.fields)], 1)
