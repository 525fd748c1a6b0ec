"""Tasks: samples, answers, loss and metrics, in one registered class.

A new task is one class that derives from `Task`, carries a `name` and a `Config`, and is decorated with `@register`.
Training and evaluation use nothing else of it: `samples` and `count` give the data, whether they are made up or read
from files; `loss`, `tally`, `measure` and `metrics` say what is learnt and measured; `predictions` what is kept of it;
`networks`, `in_chans`, `input_size`, `num_classes` and `head` which networks fit. `oracle` is for `check` alone.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config, ConfigError, hash_of, parse, unknown
from ..metric import Metric
from ..plugins import add

NOT_ASKED = -100  # in the place of an answer; the default `ignore_index` of torch's losses

Head = Literal["pooled", "cells"]


class TaskConfig(Config):
    """Parameters of a task; `name` says which."""

    name: str

    def parts(self) -> dict[str, dict[str, list[Any]]]:
        """By split and class: the number of files that it reads, and a digest of them."""
        return {}


class Task:
    """Base of all tasks. Unless a task says otherwise, its answers are classes and its metric is their accuracy.

    Attributes:
        head: whether a network answers once, (B, num_classes), or for every cell, (B, num_classes, H, W).
        in_chans: channels of the input.
        input_size: height and width of the input.
        answer_size: height and width of the answers, where there is one for every cell.
        num_classes: what the network gives for each answer, e.g. one score for each class.
        networks: the networks that can answer, by the key `network` of their configurations.
        mean, std: of each channel; inputs in 0 … 1 were normalised by them, None if they were not.
        on_disk: samples are read from files: on the CPU, by data workers where there are any. All others are made on
            the run's device.
        eval_batch: samples of a batch in evaluation; 1 where they differ in size.
        metrics: what `measure` gives besides the loss; the first one decides.
        classes: their names in the order of their numbers, where there are any.
        broken: the reason by the name of each file that was left out as broken, if a task does that.
    """

    name: ClassVar[str]
    head: Head = "pooled"
    in_chans: int
    input_size: tuple[int, int]
    answer_size: tuple[int, int]
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    networks: ClassVar[tuple[str, ...]] = ("backbone",)
    on_disk: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 500
    metrics: tuple[Metric, ...]
    classes: list[str] | None = None

    class Config(TaskConfig):
        pass

    def __init__(self, config: Any) -> None:
        self.config = config
        self.broken: dict[str, str] = {}

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, in_chans, H, W) and answers of the samples `indices` (B,), on their device.

        Answers are (B,), or (B, H, W) with one for each cell; `NOT_ASKED` where nothing is asked. A sample depends
        on the seed, the split (`train`, `val`, `test`) and its index alone. Training counts on through all epochs, so
        that each sample may be augmented or drawn by its index (`shuffled` picks from a finite set). `val` and `test`
        have seed 0 and are not augmented.
        """
        raise NotImplementedError

    def count(self, split: str) -> int | None:
        """How many samples a split has; None if it has no end.

        Raises ConfigError: the data are missing or can't be used.
        """
        return None

    def parts(self) -> dict[str, dict[str, list[Any]]]:
        """The parts of its configuration, or of the files that it has opened. A run does not go on with others."""
        return self.config.parts()

    def oracle(self, inputs: Tensor) -> Tensor:
        """The right answers, found in the inputs by the task's definition; any value where nothing is asked."""
        raise NotImplementedError

    def answer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """What a network answers in evaluation, e.g. to parts of an input, joined."""
        return model(inputs)

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """What training minimises, a scalar."""
        return F.cross_entropy(outputs, answers, ignore_index=NOT_ASKED)

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Sums that `measure` needs, float64; those of several batches and processes are added up."""
        logits, classes = asked(outputs, answers)
        right = (logits.argmax(1) == classes).sum()
        return sums(F.cross_entropy(logits, classes, reduction="sum"), right, len(classes))

    def measure(self, tally: Tensor) -> dict[str, float]:
        """Values of the metrics by name, and `loss`, out of the sums over all samples."""
        loss, right, count = tally.tolist()
        return {self.metrics[0].name: 100 * right / count, "loss": loss / count}

    def predictions(self, outputs: Tensor, answers: Tensor) -> tuple[Tensor, Tensor] | None:
        """What is kept for each answer that is asked: the class predicted and the right one, each (N,).

        None where nothing is kept.
        """
        logits, classes = asked(outputs, answers)
        return logits.argmax(1), classes

    def pictures(self, inputs: Tensor, answers: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, answer and output of one sample as RGB pictures (3, H, W) in 0 … 1; None where they are no pictures.

        All three are batches of one.
        """
        return None

    def legend(self) -> dict[str, tuple[float, ...]]:
        """What the colours of the answers in `pictures` mean: (red, green, blue) in 0 … 1 by name."""
        return {}


def asked(outputs: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, K, …) and classes (B, …) as (N, K) and (N,): one row for each answer that is asked."""
    where = answers != NOT_ASKED
    return outputs.movedim(1, -1)[where], answers[where]


def sums(*values: Tensor | float) -> Tensor:
    """A tally of numbers, float64."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


TASKS: dict[str, type[Task]] = {}

T = TypeVar("T", bound=type[Task])


def register(cls: T) -> T:
    """Make a task known by its `name`.

    Raises ConfigError: the class is no task, has no name or no `Config` of its own kind, or its name is taken.
    """
    where = cls.__qualname__
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

    Raises ConfigError: no such task, or parameters that it does not take.
    """
    if isinstance(value, TaskConfig):
        value = value.to_dict()
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ConfigError(f"a task is a name or {{'name': ..., parameters}}, got {value!r}")
    cls = TASKS.get(value["name"])
    if cls is None:
        raise unknown("task", value["name"], sorted(TASKS))
    return parse(cls.Config, value, f"task {cls.name}")


def build_task(value: Any) -> Task:
    """The task that `resolve_task` understands by `value`."""
    config = resolve_task(value)
    return TASKS[config.name](config)


def fingerprint(cls: type[Task], config: str) -> str:
    """16 hexadecimal digits of some samples of a task, whose configuration is JSON: equal in any process."""
    samples = cls(cls.Config.model_validate_json(config)).samples(5, "train", torch.arange(100, 140))
    return hash_of(*(part.contiguous().numpy().tobytes() for part in samples))
