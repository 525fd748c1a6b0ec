"""What images come from: a source that opens them one at a time, and the order and the numbers of its classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from ..config import ConfigError

# of a split: by class or tar file, the number of files and a digest of their names and sizes
Parts = dict[str, list[Any]]


class Source(Protocol):
    """Images that are opened one at a time.

    `names` are its classes in the order of its numbers, if it knows them; `passed_over` says what else lies there.
    """

    names: list[str] | None
    parts: Parts
    passed_over: Sequence[str] = ()
    numbers: np.ndarray | None = None  # of its classes in a run, if the run numbers them otherwise

    def __len__(self) -> int: ...

    def open(self, index: int) -> tuple[Image.Image | BinaryIO, int]:
        """An image, decoded or as a file to decode, and the source's number of its class."""

    def where(self, index: int) -> str:
        """The image's name in messages."""


def class_order(name: str) -> tuple[Any, ...]:
    """Sort key of class names: numbers in them by value, as in timm; names that are equal so, by their bytes."""
    pieces = re.split(r"(\d+)", name.lower())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], os.fsencode(name)


def number_classes(source: Source, classes: list[str], place: str) -> None:
    """Let a source number its classes as a run does, by their names.

    Raises ConfigError: the run does not know one of them.
    """
    if source.names is None:
        return
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in source.names if name not in numbers]
    if unknown:
        raise ConfigError(f"{place}: no such class among the {len(classes)} trained ones: {few(unknown)}")
    source.numbers = np.array([numbers[name] for name in source.names])


def what_changed(before: Mapping[str, Parts], now: Mapping[str, Parts]) -> str:
    """The first differences between two manifests, such as `train/ash has 20 files where it had 40`; "" if none."""
    found = []
    for split in sorted({*before, *now}):
        old, new = before.get(split, {}), now.get(split, {})
        for name in sorted({*old, *new}, key=class_order):
            (had, was), (has, is_now) = (part.get(name, (0, "")) for part in (old, new))
            if (had, was) != (has, is_now):
                count = "other files" if had == has else f"{has} files where it had {had}"
                found.append(f"{split}/{name}".rstrip("/") + f" has {count}")
    return few(found)


def few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
