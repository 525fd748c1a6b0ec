"""The batches of a run: a pure function of (seed, epoch, sample).

Images of up to 64 px are decoded once into memory; larger ones, or too many, are read each time. All are augmented by
timm's transforms, whose draws come from (seed, epoch, index): neither the number of workers nor a restart changes a
batch (`loader`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..rng import derive, permutation
from .data_config import AnyData, DataConfig
from .datasets import SPLIT_SEED, Images, class_names, decode, open_split
from .folder import RunFolder
from .image_folder import Source, manifest_of, number_classes, what_changed
from .loader import Batch, Key, Loader, Stream
from .recipe import Recipe

IN_MEMORY_UP_TO = 64  # pixels
IN_MEMORY_BYTES = 4 * 2**30
EVAL_BATCH = 500
EVAL_BATCH_STREAMED = 125

log = logging.getLogger(__name__)


class Data:
    """The splits of a data set, and a run's batches of them.

    Args:
        recipe: None for evaluation of the test split alone, which then needs no training images.
        workers: processes that read images which are not in memory.
        classes: names of the network's classes; of the training split's classes if None.
        transform: makes the tensor (C, H, W) of an evaluation image; as `config` says if None.

    Attributes:
        classes: names of the classes in the order of their numbers; None if the data set does not name them.
        steps: optimizer steps in an epoch; training images beyond the last whole batch wait for another epoch.
        broken: with `skip_broken`, the reason by the name of each broken image that was met so far.

    Raises:
        ConfigError: missing, empty or broken data, or classes that do not fit the configuration.
    """

    def __init__(
        self,
        config: DataConfig,
        recipe: Recipe | None,
        seed: int = 0,
        workers: int = 0,
        classes: list[str] | None = None,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.config, self.workers, self.transform = config, workers, transform
        self.seed = derive(seed, "data")
        self.broken: dict[str, str] = {}
        self.train: Any = None
        self.train_indices = self.val_indices = np.arange(0)
        self.steps = 0
        splits = ("test",) if recipe is None else ("train", "test")
        sources = {split: open_split(config, split) for split in splits}
        self.parts = {split: source.parts for split, source in sources.items()}
        self.classes = classes or class_names(config, sources)
        for split, source in sources.items():
            for line in source.passed_over:
                log.warning("data %r at %r, %s split: passed over %s", config.name, config.root, split, line)
            if self.classes is not None:
                number_classes(source, self.classes, f"data {config.name!r} at {config.root!r}, {split} split")
        if recipe is not None:
            self.train, self.recipe = self._decoded(sources["train"]), recipe
            self._split_train()
        self.test = self._decoded(sources["test"])
        self._loader: Loader | None = None

    def _decoded(self, source: Source) -> Source:
        """A split, in memory if it is small enough."""
        config = self.config
        size = len(source) * config.channels * config.image_size**2
        small = config.image_size <= IN_MEMORY_UP_TO and size <= IN_MEMORY_BYTES and self.transform is None
        if small and not isinstance(source, Images):
            source = decode(config, source)
        if isinstance(source, Images):
            self.broken.update(source.broken.values())
            if config.eval_crop != 1:
                raise ConfigError(f"data.eval_crop {config.eval_crop}: small images are evaluated whole, set it to 1.0")
        return source

    def record(self, folder: RunFolder, write: bool = True) -> None:
        """Keep class names, and by split and class the number and digest of the files, in a run's folder.

        Raises:
            ConfigError: the images are not those that the run was planned or begun with; the line says what changed.
        """
        before, planned = folder.read("data.json"), self.config.manifest
        changed = what_changed(before["splits"], self.parts) if before else ""
        if not changed and planned is not None and manifest_of(self.parts) != planned:
            changed = "its images are not those that the run was planned with"
        if changed:
            raise ConfigError(
                f"{folder.path}: data {self.config.name!r} at {self.config.root!r} has changed: {changed}; put it back "
                "as it was, or plan another run"
            )
        if write and before is None:
            folder.write("data.json", {"classes": self.classes, "splits": self.parts})

    def _split_train(self) -> None:
        """Choose what is trained on and what is held out."""
        config, batch_size = self.config, self.recipe.batch_size
        if config.val_samples >= len(self.train):
            raise ConfigError(f"data.val_samples {config.val_samples} leaves none of {len(self.train)} training images")
        order = permutation(SPLIT_SEED, 0, len(self.train))
        self.val_indices = order[: config.val_samples]
        self.train_indices = np.sort(order[config.val_samples :][: config.train_samples])
        self.steps = len(self.train_indices) // batch_size
        if self.steps == 0:
            raise ConfigError(
                f"data {config.name!r} has {len(self.train_indices)} training images, fewer than one batch of "
                f"{batch_size}: lower recipe.batch_size"
            )

    def batches(self, epoch: int, first_step: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Augmented training batches of an epoch from `first_step` on: (B, C, S, S) normalised, and classes (B,).

        Each is for one forward pass, of `recipe.micro_batch` images; of the `recipe.passes` in a step, which
        `processes` share out evenly, those of `rank`.
        """
        return self._load(("train", epoch, chunk) for chunk in self._chunks(epoch, first_step, rank, processes))

    def _chunks(self, epoch: int, first_step: int, rank: int, processes: int) -> Iterator[np.ndarray]:
        passes = self.recipe.passes
        size, share = self.recipe.batch_size // passes, passes // processes
        order = self.train_indices[permutation(self.seed, epoch, len(self.train_indices))]
        for step in range(first_step, self.steps):
            for n in range(step * passes + rank * share, step * passes + (rank + 1) * share):
                yield order[n * size : (n + 1) * size]

    def evaluation(self, split: str, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Batches of the split `val` or `test`, each image once, in order; of `processes`' parts, that of `rank`."""
        source, indices = (self.train, self.val_indices) if split == "val" else (self.test, np.arange(len(self.test)))
        indices = np.array_split(indices, processes)[rank]
        if isinstance(source, Images) and self.transform is None:
            return (self._normalised(source.take(chunk)) for chunk in _chunks(indices, EVAL_BATCH))
        return self._load((split, 0, chunk) for chunk in _chunks(indices, EVAL_BATCH_STREAMED))

    def _normalised(self, images: Images) -> Batch:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.config.mean, self.config.std))
        pixels = images.images.float().div_(255).sub_(mean).div_(std)
        return pixels.contiguous(memory_format=torch.channels_last), images.labels

    def _load(self, keys: Iterator[Key]) -> Iterator[Batch]:
        if self._loader is None:
            sources = {"train": self.train, "val": self.train, "test": self.test}
            recipe = self.recipe if self.train is not None else None
            self._loader = Loader(
                Stream(self.config, recipe, self.seed, sources, self.train_indices, self.transform), self.workers
            )
        for images, classes, broken in self._loader.run(keys):
            for name, reason in broken.items():
                if name not in self.broken:
                    self.broken[name] = reason
                    log.warning("%s: broken image left out (%s)", name, reason)
            if len(classes):
                yield images, classes


def _chunks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[i : i + size] for i in range(0, len(indices), size))


def default_workers(config: AnyData, device: str, processes: int = 1) -> int:
    """Data workers for each of `processes` training processes on this machine.

    A GPU wants all the cores that it can get, up to 16; on a CPU the training needs them itself, and small images,
    which are in memory, need none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" or not torch.cuda.is_available():
        return 0 if config.image_size <= IN_MEMORY_UP_TO else min(16, cores // processes // 4)
    return max(1, min(16, cores // processes))
