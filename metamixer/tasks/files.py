"""Which files a task reads, so that a run does not go on with others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..config import ConfigError
from ..rng import permutation

T = TypeVar("T")


def without(files: list[T], held_out: int, split: str) -> list[T]:
    """Of the training files, those that are held out for the split `val`, or the others; always the same ones."""
    order = permutation(0, 0, len(files))
    chosen = order[:held_out] if split == "val" else order[held_out:]
    if not len(chosen) and split == "train":
        raise ConfigError(f"data.task.held_out {held_out} leaves none of {len(files)} training pictures")
    return [files[index] for index in sorted(chosen.tolist())]


def part_of(files: Iterable[Path]) -> dict[str, list[Any]]:
    """The number of `files` and a digest of their names and sizes, as `Task.parts` has it for one split."""
    listed = sorted((file.name, file.stat().st_size) for file in files)
    return {"": [len(listed), hashlib.blake2b(repr(listed).encode(), digest_size=8).hexdigest()]}
