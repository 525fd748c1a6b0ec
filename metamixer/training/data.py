"""The batches of a run: a pure function of (seed, sample), made on its device or by data workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import torch

from ..config import ConfigError
from ..tasks import Task
from ..tasks.files import manifest_of
from .data_config import AnyData
from .folder import RunFolder
from .image_source import what_changed
from .images import IN_MEMORY_UP_TO
from .loader import Batch, Loader, Samples
from .recipe import Recipe

log = logging.getLogger(__name__)


class Data:
    """A run's batches of its task.

    Args:
        recipe: None for evaluation of the test split alone, which then needs no training samples.
        workers: processes that read samples from files.
        device: where other samples are made.
        task: in place of the one that `config` names.

    Attributes:
        steps: optimizer steps in an epoch.
        counts: samples by split, for `train` those of an epoch.
        broken: with `skip_broken`, the reason by the name of each broken image that was met so far.

    Raises ConfigError: data that are missing, empty or broken, or that do not fit the configuration.
    """

    def __init__(
        self,
        config: AnyData,
        recipe: Recipe | None,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        task: Task | None = None,
    ) -> None:
        self.config, self.recipe, self.seed, self.workers, self.device = config, recipe, seed, workers, device
        self.task = task or config.task_for(recipe)
        self.broken: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.steps = 0
        if recipe is not None:
            self.counts["train"] = self._count("train", config.train_samples)
            self.counts["val"] = self._count("val", config.val_samples)
        self.counts["test"] = self._count("test", config.test_samples)
        if recipe is not None:
            self.steps = self.counts["train"] // recipe.batch_size
            if self.steps == 0:
                raise ConfigError(
                    f"{config.about} has {self.counts['train']} training samples, fewer than one batch of "
                    f"{recipe.batch_size}: lower recipe.batch_size"
                )
        self._loader: Loader | None = None

    def _count(self, split: str, wanted: int | None) -> int:
        there = self.task.count(split) if wanted != 0 else None
        if wanted is None and there is None:
            raise ConfigError(f"data.{split}_samples: {self.config.about} has no end of them; say how many")
        if wanted is not None and there is not None and wanted > there:
            if split != "val":
                advice = "set it to null for all"
            elif hasattr(self.task.config, "held_out"):
                advice = "hold out more training pictures by data.task.held_out"
            else:
                advice = "ask for fewer"
            raise ConfigError(f"data.{split}_samples {wanted}: {self.config.about} has {there}; {advice}")
        return wanted if wanted is not None else there  # type: ignore[return-value]

    def record(self, folder: RunFolder, write: bool = True) -> None:
        """Keep class names, and by split and class the number and digest of the files, in a run's folder.

        Raises ConfigError: the files are not those that the run was planned or begun with; the line says what changed.
        """
        parts = self.task.parts()
        if not parts:
            return
        before, planned = folder.read("data.json"), self.config.manifest
        changed = what_changed(before["splits"], parts) if before else ""
        if not changed and planned is not None and manifest_of(parts) != planned:
            changed = "its files are not those that the run was planned with"
        if changed:
            raise ConfigError(
                f"{folder.path}: {self.config.about} has changed: {changed}; put it back as it was, or plan another run"
            )
        if write and before is None:
            folder.write("data.json", {"classes": self.task.classes, "splits": parts})

    def batches(self, epoch: int, first_step: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Training batches of an epoch from `first_step` on.

        Each is for one forward pass, of `recipe.micro_batch` samples; of the `recipe.passes` in a step, which
        `processes` share out evenly, those of `rank`.
        """
        assert self.recipe is not None
        passes = self.recipe.passes
        size, share = self.recipe.batch_size // passes, passes // processes
        steps = range(epoch * self.steps + first_step, (epoch + 1) * self.steps)
        own = (step * passes + rank * share + each for step in steps for each in range(share))
        return self._load((self.seed, "train", range(n * size, (n + 1) * size)) for n in own)

    def evaluation(self, split: str, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Batches of the split `val` or `test`, each sample once, in order; of `processes`' parts, that of `rank`."""
        count, size = self.counts[split], self.task.eval_batch
        own = range(rank * count // processes, (rank + 1) * count // processes)
        return self._load((0, split, own[first : first + size]) for first in range(0, len(own), size))

    def _load(self, keys: Iterator[tuple[int, str, range]]) -> Iterator[Batch]:
        if self.task.on_disk:
            self._loader = self._loader or Loader(Samples(self.task, "cpu"), self.workers)
            made = self._loader.run(keys)
        else:
            made = map(Samples(self.task, self.device).__getitem__, keys)
        for each in made:
            if isinstance(each, ConfigError):
                raise each
            inputs, answers, broken = each
            for name, reason in broken.items():
                if name not in self.broken:
                    self.broken[name] = reason
                    log.warning("%s: broken image left out (%s)", name, reason)
            if len(answers):
                yield inputs, answers


def default_workers(config: AnyData, device: str, processes: int = 1) -> int:
    """Data workers for each of `processes` training processes on this machine.

    A GPU wants all the cores that it can get, up to 16; on a CPU the training needs them itself, and small images,
    which are in memory, need none. Samples that are made on the device have none.
    """
    if not config.built.on_disk:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" or not torch.cuda.is_available():
        return 0 if max(config.input_size[1:]) <= IN_MEMORY_UP_TO else min(16, cores // processes // 4)
    return max(1, min(16, cores // processes))
