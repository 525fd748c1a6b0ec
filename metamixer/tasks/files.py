"""Which files a task reads, so that a run does not go on with others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import model_validator

from ..config import ConfigError, hash_of, later
from ..rng import permutation
from .task import TaskConfig

T = TypeVar("T")


class FilesConfig(TaskConfig):
    """Parameters of a task that reads files.

    `manifest` is filled in from the files and is, in place of their path, part of a run's identity: a digest of
    `parts`. It is null where they are not on this machine, and where no path is given.

    Attributes:
        path_key: the parameter that is the path.
    """

    path_key: ClassVar[str]
    manifest: str | None = later(None)

    @model_validator(mode="after")
    def _identify(self) -> FilesConfig:
        if "manifest" not in self.model_fields_set and getattr(self, self.path_key) is not None:
            try:
                object.__setattr__(self, "manifest", manifest_of(self.parts()))  # frozen
            except (ConfigError, OSError):
                pass  # a run on this machine says what is missing
        return self

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().hashed(values)
        return values if self.manifest is None else {**values, self.path_key: None}


def manifest_of(parts: Mapping[str, Mapping[str, list[Any]]]) -> str:
    """A digest of what `Task.parts` says of files."""
    return hash_of(json.dumps(parts, sort_keys=True))


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
    return {"": [len(listed), hash_of(repr(listed))]}
