"""Tasks: samples, answers, loss and metrics, in one registered class.

A new task is one class that derives from `Task`, carries a `name` and a `Config`, and is decorated with `@register`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Config, ConfigError, parse
from ..plugins import add

NOT_ASKED = -100  # in the place of an answer; the default `ignore_index` of torch's losses

Head = Literal["pooled", "cells"]


@dataclass(frozen=True)
class Metric:
    """How a number is read.

    Attributes:
        chance: what answers give that ignore the input; None where that means nothing.
        levels: other values with a meaning, by name, e.g. the best that is possible without a certain ability.
        solved: from here on the task counts as solved; None where it has no such value.
    """

    name: str
    unit: str
    higher_is_better: bool = True
    chance: float | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    solved: float | None = None


class TaskConfig(Config):
    """Parameters of a task; `name` says which."""

    name: str


class Task:
    """Base of all tasks. Unless a task says otherwise, its answers are classes and its metric is their accuracy.

    Attributes:
        head: whether a network answers once, (B, num_classes), or for every cell, (B, num_classes, H, W).
        in_chans: channels of the input.
        input_size: height and width of the input.
        answer_size: height and width of the answers, where there is one for every cell.
        metrics: what `measure` gives; the first one decides.
    """

    name: ClassVar[str]
    head: Head = "pooled"
    in_chans: int
    input_size: tuple[int, int]
    answer_size: tuple[int, int]
    num_classes: int
    metrics: tuple[Metric, ...]

    class Config(TaskConfig):
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, in_chans, H, W) and answers of the samples `indices` (B,), on their device.

        Answers are (B,), or (B, H, W) with one for each cell; `NOT_ASKED` where nothing is asked. A sample depends
        on the seed, the split and its index alone.
        """
        raise NotImplementedError

    def oracle(self, inputs: Tensor) -> Tensor:
        """The right answers, found in the inputs by the task's definition; any value where nothing is asked."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """What training minimises, a scalar."""
        return F.cross_entropy(outputs, answers, ignore_index=NOT_ASKED)

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Sums that `measure` needs; those of several batches and processes are added up."""
        asked = answers != NOT_ASKED
        return torch.stack([((outputs.argmax(1) == answers) & asked).sum(), asked.sum()])

    def measure(self, tally: Tensor) -> dict[str, float]:
        """Values of the metrics by name, out of the sums over all samples."""
        right, asked = tally.tolist()
        return {self.metrics[0].name: 100 * right / asked}


TASKS: dict[str, type[Task]] = {}

T = TypeVar("T", bound=type[Task])


def register(cls: T) -> T:
    """Make a task known by its `name`.

    Raises:
        ConfigError: the class is no task, has no name or no `Config` of its own kind, or its name is taken.
    """
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{where}: a task derives from Task")
    if not isinstance(getattr(cls, "name", None), str) or not cls.name:
        raise ConfigError(f'{where}: a task needs a name: `name = "..."`')
    if not issubclass(cls.Config, TaskConfig):
        raise ConfigError(f"{where}: its Config derives from TaskConfig")
    add(TASKS, cls)
    return cls


def resolve_task(value: Any) -> TaskConfig:
    """The configuration of a task from its name, a dict with a `name`, or a ready configuration.

    Raises:
        ConfigError: no such task, or parameters that it does not take.
    """
    if isinstance(value, TaskConfig):
        value = value.to_dict()
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ConfigError(f"a task is a name or {{'name': ..., parameters}}, got {value!r}")
    cls = TASKS.get(value["name"])
    if cls is None:
        raise ConfigError(f"no task {value['name']!r}; there are {', '.join(sorted(TASKS))}")
    return parse(cls.Config, value, f"task {cls.name}")


def build_task(value: Any) -> Task:
    """The task that `resolve_task` understands by `value`."""
    config = resolve_task(value)
    return TASKS[config.name](config)


def fingerprint(cls: type[Task], config: str) -> str:
    """16 hexadecimal digits of some samples of a task, whose configuration is JSON: equal in any process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in cls(cls.Config.model_validate_json(config)).samples(5, "test", torch.arange(100, 140)):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()
