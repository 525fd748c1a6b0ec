"""Probes of shapes on the map: which two are alike, and what is joined to what."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import ConfigError
from .probe import Probe, ProbeConfig
from .streams import Streams
from .task import NOT_ASKED, register


@register
class Match(Probe):
    """Of `shapes` patterns of 3×3 cells two are the same; the middle of each is asked whether it is one of the two.

    All others differ from each other and from the two. Each stands in its own 4×4 cells, its last row and column blank.
    The middle of a pattern is always marked. Needs pairs of patches.
    """

    name = "match"
    dial = "shapes"

    class Config(ProbeConfig):
        size: int = Field(default=8, ge=8, le=64, multiple_of=4)
        shapes: int = Field(default=4, ge=3)

        @model_validator(mode="after")
        def _shapes_fit(self) -> Match.Config:
            if self.shapes > (self.size // 4) ** 2:
                room = (self.size // 4) ** 2
                raise ConfigError(f"{self.shapes} shapes: {self.size}×{self.size} cells have room for {room}")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config, 2, (1,))

    def chance(self) -> float:
        return 100 * max(2, self.config.shapes - 2) / self.config.shapes

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        shapes, across = self.config.shapes, self.config.size // 4
        different = streams.permutations(256)[:, : shapes - 1]  # the eight cells around the middle
        numbers = torch.cat([different[:, :1], different], 1)
        bits = numbers[..., None] >> torch.arange(8, device=numbers.device) & 1
        pattern = torch.cat([bits[..., :4], torch.ones_like(bits[..., :1]), bits[..., 4:]], 2).unflatten(2, (3, 3))
        place = streams.permutations(across * across)[:, :shapes]
        blocks = numbers.new_zeros(len(numbers), across * across, 4, 4)
        blocks[torch.arange(len(numbers), device=place.device)[:, None], place, :3, :3] = pattern
        answers = torch.full_like(blocks, NOT_ASKED)
        alike = (torch.arange(shapes, device=place.device) < 2).long().expand_as(place)
        answers[torch.arange(len(numbers), device=place.device)[:, None], place, 1, 1] = alike
        return self._map(blocks)[:, None], self._map(answers)

    def _map(self, blocks: Tensor) -> Tensor:
        across = self.config.size // 4
        return blocks.unflatten(1, (across, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def solve(self, cells: Tensor) -> Tensor:
        answers = torch.zeros_like(cells[:, 0])
        for sample, answer in zip(cells[:, 0], answers, strict=True):
            corners = [(i - 1, j - 1) for i, j in sample.nonzero().tolist() if i % 4 == j % 4 == 1]
            seen = [tuple(sample[i : i + 3, j : j + 3].flatten().tolist()) for i, j in corners]
            for (i, j), pattern in zip(corners, seen, strict=True):
                answer[i + 1, j + 1] = seen.count(pattern) - 1
        return answers


@register
class Path(Probe):
    """Two lines wind over the map; the ends of one are marked. Are the marks joined, or is the line cut between them?

    Of the two lines exactly one is cut, so that finding the cut does not help: one has to follow the line. Lines have
    up to `length` cells, go to the four neighbours and don't touch. The marked cells are asked. Needs many hops.
    After Pathfinder (arXiv 1805.08315, 2011.04006).
    """

    name = "path"
    dial = "length"

    class Config(ProbeConfig):
        size: int = Field(default=12, ge=12, le=64)
        length: int = Field(default=8, ge=4, le=64)

    def __init__(self, config: Config) -> None:
        super().__init__(config, 2, (1, 1))

    def draw(self, streams: Streams) -> tuple[Tensor, Tensor]:
        wide = self.config.size + 2  # with a border that no line enters
        lines, count = self._lines(streams, wide)
        cut_line, marked_line = streams.integers(2, 1), streams.integers(2, 1)
        apart = ((count - 1) // 2).clamp(max=2)  # of a cut from the ends, where the line is long enough
        gap = lines.gather(2, (apart + streams.integers(count - 2 * apart, 2))[..., None]).squeeze(2)
        ends = torch.stack([lines[:, :, 0], lines.gather(2, count[..., None] - 1).squeeze(2)], 2)
        ends = ends.take_along_dim(marked_line[..., None], 1).squeeze(1)
        nothing = lines.new_zeros(len(lines), wide * wide)
        drawn = nothing.scatter(1, lines.flatten(1), 1).scatter(1, gap.gather(1, cut_line), 0)
        marks = nothing.scatter(1, ends, 1)
        answers = (nothing + NOT_ASKED).scatter(1, ends, (cut_line != marked_line).long().expand(-1, 2))
        maps = torch.stack([drawn, marks, answers], 1).view(-1, 3, wide, wide)[..., 1:-1, 1:-1]
        return maps[:, :2], maps[:, 2]

    def _lines(self, streams: Streams, wide: int) -> tuple[Tensor, Tensor]:
        """Cells of the two lines (B, 2, length), numbered on the map with its border, and how many each has.

        Both grow in turn, and start so far apart that each gets its first three cells.
        """
        size, length = self.config.size, self.config.length
        row, columns = streams.integers(size, 1), streams.integers(size, 2)
        rows = torch.cat([row, (row + size // 2) % size], 1)
        heads = (rows + 1) * wide + columns + 1
        lines, count = heads[..., None].repeat(1, 1, length), torch.ones_like(heads)
        steps = torch.tensor([-wide, -1, 1, wide], device=heads.device)
        border = torch.ones(wide, wide, dtype=torch.bool, device=heads.device)
        border[1:-1, 1:-1] = False
        closed = border.flatten().repeat(len(heads), 1).scatter(1, heads, True)
        preference = streams.words(length - 1, 2, 4) & (2**62 - 1)
        for step in range(length - 1):
            for line in (0, 1):
                head, other = heads[:, line, None], heads[:, 1 - line, None]
                around = head + steps
                touching = (around[..., None] - other[..., None] == steps).any(2)
                free = ~closed.gather(1, around) & ~touching
                best = torch.where(free, preference[:, step, line], -1).argmax(1, keepdim=True)
                moves = free.any(1, keepdim=True)
                new = torch.where(moves, around.gather(1, best), head)
                # what lies beside a line's body is closed to both
                closed.scatter_(1, torch.where(moves, around, head), True)
                lines[:, line].scatter_(1, count[:, line, None] - 1 + moves.long(), new)
                count[:, line] += moves[:, 0]
                heads[:, line] = new[:, 0]
        return lines, count

    def solve(self, cells: Tensor) -> Tensor:
        drawn, marks = cells.unbind(1)
        reached = torch.zeros_like(drawn, dtype=torch.bool)
        first = marks.flatten(1).argmax(1)
        reached.view(len(cells), -1)[torch.arange(len(cells), device=cells.device), first] = True
        while True:
            grown = reached.clone()
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            grown[:, :, 1:] |= reached[:, :, :-1]
            grown[:, :, :-1] |= reached[:, :, 1:]
            grown &= drawn > 0
            if torch.equal(grown, reached):
                break
            reached = grown
        joined = ((marks > 0) & reached).flatten(1).sum(1) == 2
        return joined.long()[:, None, None].expand(-1, *self.grid)
