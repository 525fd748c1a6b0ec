"""Semantic segmentation: a class for each pixel, measured by a confusion matrix; pictures composed of garments."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from ..rng import derive
from .fashion import fashion_mnist
from .streams import Streams
from .task import NOT_ASKED, Metric, Task, TaskConfig, asked, register

_VISIBLE = 25  # grey levels of a garment's pixels from here on hide what is behind them
_HELD_OUT = 5000  # of the training garments, for the validation pictures


class Segmentation(Task):
    """Base of the tasks that ask a class for every pixel; `names` are those of the classes, where there are any."""

    names: ClassVar[tuple[str, ...]] = ()
    networks = ("segmenter",)
    head = "cells"
    metrics = (
        Metric("miou", "mIoU", "%"),
        Metric("pixel_accuracy", "pixel accuracy", "%"),
    )

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """The summed cross-entropy, then the confusion matrix, row by row: right classes by predicted ones."""
        if outputs.shape[2:] != answers.shape[1:]:
            outputs = F.interpolate(outputs, size=answers.shape[1:], mode="bilinear")
        logits, classes = asked(outputs, answers)
        loss = F.cross_entropy(logits, classes, reduction="sum")
        cells = torch.bincount(classes * self.num_classes + logits.argmax(1), minlength=self.num_classes**2)
        return torch.cat([loss[None].double(), cells.double()]).cpu()

    def measure(self, tally: Tensor) -> dict[str, float]:
        """Mean over the classes that are there or predicted, in per cent."""
        confusion = tally[1:].view(self.num_classes, self.num_classes)
        right, all_pixels = confusion.diagonal(), confusion.sum()
        if not all_pixels:
            raise ConfigError(f"task {self.name!r}: no pixel of the masks that are evaluated is asked for")
        union = confusion.sum(0) + confusion.sum(1) - right
        there = union > 0
        return {
            "miou": float(100 * (right[there] / union[there]).mean()),
            "pixel_accuracy": float(100 * right.sum() / all_pixels),
            "loss": float(tally[0] / all_pixels),
        }

    def pictures(self, inputs: Tensor, answers: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = F.interpolate(outputs, size=answers.shape[1:], mode="bilinear").argmax(1)
        low, high = inputs.amin(), inputs.amax()
        shown = inputs[0, :3] if self.in_chans >= 3 else inputs[0, :1].expand(3, -1, -1)
        truth, answer = (
            self._colours()[torch.where(classes == NOT_ASKED, self.num_classes, classes)].permute(2, 0, 1)
            for classes in (answers[0], found[0])
        )
        return (shown - low) / (high - low), truth, answer

    def legend(self) -> dict[str, tuple[float, ...]]:
        names = self.names or [f"class {number}" for number in range(self.num_classes)]
        return dict(zip([*names, "not asked"], map(tuple, self._colours().tolist()), strict=True))

    def _colours(self) -> Tensor:
        """(num_classes + 1, 3): one colour for each class, black for 0, grey for what is not asked."""
        hues = torch.arange(1, self.num_classes) / (self.num_classes - 1) * 2 * torch.pi
        turns = torch.tensor([0.0, 2.1, 4.2])
        return torch.cat([torch.zeros(1, 3), 0.5 + 0.5 * torch.cos(hues[:, None] - turns), torch.full((1, 3), 0.5)])

    def predictions(self, outputs: Tensor, answers: Tensor) -> None:
        """None are kept: one for each pixel is too many."""


@register
class Garments(Segmentation):
    """Which garment is at each pixel? Fashion-MNIST's in any size and colour, some hidden in part, on textured ground.

    Class 0 is the ground. Pictures are (B, 3, size, size). Everything is drawn in whole numbers, so masks are exact.
    Validation and test pictures have garments and ground of their own.
    """

    name = "garments"
    num_classes = 11
    names = ("ground", "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    in_chans = 3
    mean, std = (128 / 255,) * 3, (64 / 255,) * 3

    class Config(TaskConfig):
        """`size` pixels a side; `fewest` to `most` garments; `root` holds Fashion-MNIST's four files."""

        size: int = Field(default=64, ge=32, le=256)
        fewest: int = Field(default=2, ge=1)
        most: int = Field(default=5, ge=1, le=20)
        root: str | None = None

        @model_validator(mode="after")
        def _in_order(self) -> Garments.Config:
            if self.fewest > self.most:
                raise ConfigError(f"fewest {self.fewest} exceeds most {self.most}")
            return self

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.input_size = self.answer_size = (config.size, config.size)

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        streams, size = Streams(derive(seed, "task", self.name, split), indices), self.config.size
        pictures, labels, device = *self._garments(split), indices.device
        picture = self._ground(streams, split)  # (B, 3, S, S)
        answers = torch.zeros(len(indices), size, size, dtype=torch.int64, device=device)
        place = torch.arange(size, device=device)
        count = streams.integers(self.config.most - self.config.fewest + 1, 1) + self.config.fewest
        for n in range(self.config.most):
            chosen = streams.integers(len(pictures), 1)[:, 0]
            side = streams.integers(size // 3, 1) + size // 3
            corner = streams.integers(size, 2) - side // 2
            flip, colour = streams.integers(2, 1), streams.integers(160, 3) + 96
            # the pixel of the garment, 28 px a side, that is seen at each row and column
            row, column = ((place - corner[:, axis : axis + 1]) * 28 // side for axis in (0, 1))
            inside = ((row >= 0) & (row < 28))[:, :, None] & ((column >= 0) & (column < 28))[:, None]
            column = torch.where(flip == 1, 27 - column, column)
            row, column = row.clamp(0, 27)[:, :, None], column.clamp(0, 27)[:, None]
            level = pictures.to(device)[chosen[:, None, None], row, column].long()
            seen = inside & (level >= _VISIBLE) & (n < count)[:, :, None]
            painted = level[:, None] * colour[:, :, None, None] // 255
            picture = torch.where(seen[:, None], painted, picture)
            answers = torch.where(seen, labels.to(device)[chosen][:, None, None] + 1, answers)
        return picture.float() / 64 - 2, answers

    def _garments(self, split: str) -> tuple[Tensor, Tensor]:
        pictures, labels = fashion_mnist("test" if split == "test" else "train", self.config.root)
        part = {"train": slice(0, -_HELD_OUT), "val": slice(-_HELD_OUT, None), "test": slice(None)}[split]
        return pictures[part], labels[part]

    def _ground(self, streams: Streams, split: str) -> Tensor:
        """A crop of a texture in some colour; for the test pictures from the right halves, else from the left ones."""
        textures, size = _textures().to(streams.device), self.config.size
        place = torch.arange(size, device=streams.device)
        which = streams.integers(len(textures), 1)[:, :, None]
        rows = streams.integers(512 - size + 1, 1) + place
        columns = streams.integers(256 - size + 1, 1) + place + (256 if split == "test" else 0)
        level = textures[which, rows[:, :, None], columns[:, None]].long()
        return level[:, None] * (streams.integers(160, 3) + 64)[:, :, None, None] // 255


@cache
def _textures() -> Tensor:
    """Brick, grass and gravel from scikit-image, grey levels (3, 512, 512)."""
    from skimage import data

    return torch.from_numpy(np.stack([data.brick(), data.grass(), data.gravel()]))
