"""Batches that a task makes: a new sample for each place in each batch, and the same ones to evaluate on in any run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..config import ConfigError
from .data import Batch, Data
from .data_config import AnyData, TaskData
from .folder import RunFolder
from .recipe import Recipe


def open_data(
    config: AnyData, recipe: Recipe | None, seed: int, device: torch.device, workers: int = 0
) -> Data | Samples:
    """The batches of a run (without a recipe: of the test split) on a data set or a task.

    Raises:
        ConfigError: data that can't be used.
    """
    if isinstance(config, TaskData):
        return Samples(config, recipe, seed, device)
    return Data(config, recipe, seed, workers)


class Samples:
    """A run's batches of a task, made on the device; it has the methods of `Data`, which describes them."""

    def __init__(self, config: TaskData, recipe: Recipe | None, seed: int, device: torch.device) -> None:
        self.config, self.recipe, self.seed, self.device = config, recipe, seed, device
        self.task = config.built
        self.broken: dict[str, str] = {}
        self.classes = None
        self.train_indices, self.val_indices = range(config.train_samples), range(config.val_samples)
        self.steps = config.train_samples // recipe.batch_size if recipe is not None else 0
        if recipe is not None and not self.steps:
            raise ConfigError(f"data.train_samples {config.train_samples}: fewer than one batch of {recipe.batch_size}")
        self._count("val"), self._count("test")

    def record(self, folder: RunFolder, write: bool = True) -> None:
        """Nothing to record: the run's configuration holds everything."""

    def batches(self, epoch: int, first_step: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        assert self.recipe is not None
        passes = self.recipe.passes
        size, share = self.recipe.batch_size // passes, passes // processes
        for step in range(epoch * self.steps + first_step, (epoch + 1) * self.steps):
            for n in range(step * passes + rank * share, step * passes + (rank + 1) * share):
                yield self._make(self.seed, "train", range(n * size, (n + 1) * size))

    def evaluation(self, split: str, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        count = self._count(split)
        own = range(rank * count // processes, (rank + 1) * count // processes)
        for first in own[:: self.task.eval_batch]:
            yield self._make(0, split, range(first, min(first + self.task.eval_batch, own.stop)))

    def _count(self, split: str) -> int:
        """Samples that are evaluated on.

        Raises:
            ConfigError: more than there are, or all of a split without end.
        """
        wanted, there = self.config.val_samples if split == "val" else self.config.test_samples, self.task.count(split)
        if wanted is None and there is None:
            raise ConfigError(f"data.test_samples: task {self.task.name!r} has no end of them; say how many")
        if wanted is None or there is None or wanted <= there:
            return wanted if wanted is not None else there  # type: ignore[return-value]
        raise ConfigError(f"data.{split}_samples {wanted}: task {self.task.name!r} has {there}")

    def _make(self, seed: int, split: str, numbers: range) -> Batch:
        return self.task.samples(seed, split, torch.arange(numbers.start, numbers.stop, device=self.device))
