"""The batches of a run: a pure function of (seed, epoch, sample).

Images of up to 64 px are decoded once into memory and augmented a batch at a time (`BatchAugment`); larger
ones, or too many, go through timm's transforms in data workers. In both, a sample's draws come from (seed, epoch,
index), so neither the number of workers nor a restart changes a batch.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from ..config import ConfigError
from ..rng import derive, permutation
from .augment import BatchAugment, normalise
from .data_config import AnyData, DataConfig
from .datasets import SPLIT_SEED, BrokenImage, Images, class_names, decode, open_split, read_image
from .folder import RunFolder
from .image_folder import manifest_of, number_classes, what_changed
from .recipe import Recipe
from .signals import STOP_SIGNALS
from .surroundings import SurroundingsError

IN_MEMORY_UP_TO = 64  # pixels
IN_MEMORY_BYTES = 4 * 2**30
EVAL_BATCH = 500
EVAL_BATCH_STREAMED = 125

Batch = tuple[Tensor, Tensor]
# split, epoch and the images' numbers: what a data worker makes a batch from
Key = tuple[str, int, np.ndarray]

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
            if self.classes is not None and not isinstance(source, Images):
                number_classes(source, self.classes, f"data {config.name!r} at {config.root!r}, {split} split")
        if recipe is not None:
            self.train, whole_train = self._decode(sources["train"])
        self.test, whole = self._decode(sources["test"])
        self.test_indices = np.flatnonzero(whole)
        if recipe is not None:
            self._split_train(recipe, whole_train)
        self._loader: _Loader | None = None

    def _decode(self, found: Any) -> tuple[Any, np.ndarray]:
        """A split and which of its images are known to be whole; broken ones of a streamed split turn up later."""
        config = self.config
        size = len(found) * config.channels * config.image_size**2
        whole = np.ones(len(found), bool)
        small = config.image_size <= IN_MEMORY_UP_TO and size <= IN_MEMORY_BYTES and self.transform is None
        if not isinstance(found, Images) and small:
            found, whole = decode(config, found, self.broken)
        if isinstance(found, Images) and config.eval_crop != 1:
            raise ConfigError(f"data.eval_crop {config.eval_crop}: small images are evaluated whole, set it to 1.0")
        return found, whole

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

    def _split_train(self, recipe: Recipe, whole: np.ndarray) -> None:
        """Choose what is trained on and what is held out, of images of which `whole` can be decoded, (N,)."""
        config, self.recipe = self.config, recipe
        if config.val_samples >= len(self.train):
            raise ConfigError(f"data.val_samples {config.val_samples} leaves none of {len(self.train)} training images")
        order = permutation(SPLIT_SEED, 0, len(self.train))
        self.val_indices = order[: config.val_samples]
        self.val_indices = self.val_indices[whole[self.val_indices]]
        self.train_indices = np.sort(order[config.val_samples :][: config.train_samples])
        self.steps = len(self.train_indices) // recipe.batch_size
        if self.steps == 0:
            raise ConfigError(
                f"data {config.name!r} has {len(self.train_indices)} training images, fewer than one batch of "
                f"{recipe.batch_size}: lower recipe.batch_size"
            )
        if not isinstance(self.train, Images):
            return
        for position in np.flatnonzero(~whole[self.train_indices]):
            behind = np.roll(self.train_indices, -position - 1)
            next_whole = behind[whole[behind]]
            if not len(next_whole):
                raise ConfigError(f"data {config.name!r} at {config.root!r}: every training image is broken")
            index = self.train_indices[position]
            self.train.images[index] = self.train.images[next_whole[0]]
            self.train.labels[index] = self.train.labels[next_whole[0]]
        self.augment = BatchAugment(config, recipe, self.seed)

    def batches(self, epoch: int, first_step: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Augmented training batches of an epoch from `first_step` on: (B, C, S, S) normalised, and classes (B,).

        Each is for one forward pass, of `recipe.micro_batch` images; of the `recipe.passes` in a step, which
        `processes` share out evenly, those of `rank`.
        """
        chunks = self._chunks(epoch, first_step, rank, processes)
        if isinstance(self.train, Images):
            for chunk in chunks:
                yield self.augment(self.train.images[chunk], epoch, chunk), self.train.labels[chunk]
        else:
            yield from self._load(("train", epoch, chunk) for chunk in chunks)

    def _chunks(self, epoch: int, first_step: int, rank: int, processes: int) -> Iterator[np.ndarray]:
        passes = self.recipe.passes
        size, share = self.recipe.batch_size // passes, passes // processes
        order = self.train_indices[permutation(self.seed, epoch, len(self.train_indices))]
        for step in range(first_step, self.steps):
            for n in range(step * passes + rank * share, step * passes + (rank + 1) * share):
                yield order[n * size : (n + 1) * size]

    def evaluation(self, split: str, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Batches of the split `val` or `test`, each image once, in order; of `processes`' parts, that of `rank`."""
        source, indices = (self.train, self.val_indices) if split == "val" else (self.test, self.test_indices)
        indices = np.array_split(indices, processes)[rank]
        size = EVAL_BATCH if isinstance(source, Images) else EVAL_BATCH_STREAMED
        chunks = (indices[i : i + size] for i in range(0, len(indices), size))
        if isinstance(source, Images):
            for chunk in chunks:
                yield normalise(source.images[chunk], self.config.mean, self.config.std), source.labels[chunk]
        else:
            yield from self._load((split, 0, chunk) for chunk in chunks)

    def _load(self, keys: Iterator[Key]) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = _Loader(self)
        for images, classes, broken in self._loader.run(keys):
            for name, reason in broken.items():
                if name not in self.broken:
                    self.broken[name] = reason
                    log.warning("%s: broken image left out (%s)", name, reason)
            if len(classes):
                yield images, classes


class _Loader:
    """One set of data workers for all splits and epochs. One iteration at a time: a new one ends the one before."""

    def __init__(self, data: Data) -> None:
        self.keys = _Keys()
        self.loader = torch.utils.data.DataLoader(
            _Stream(data),
            batch_size=None,  # a worker makes whole batches
            sampler=self.keys,
            num_workers=data.workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=data.workers > 0,
            worker_init_fn=_ignore_stop_signals,
        )
        # before the interpreter waits for its child processes
        weakref.finalize(self, _stop_workers, self.loader)

    def run(self, keys: Iterator[Key]) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        self.keys.iterator = keys
        try:
            with _undisturbed_start():
                batches = iter(self.loader)
            for made in batches:
                if isinstance(made, ConfigError):
                    raise made
                yield made
        except (RuntimeError, EOFError, OSError) as error:
            # the last two when it died between a batch and its hand-over
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise SurroundingsError(
                "a data worker died, often for want of memory or of space in /dev/shm: launch again to go on, with "
                f"fewer data workers than {self.loader.num_workers} if it happens again"
            ) from None


class _Keys(torch.utils.data.Sampler):
    """What the loader makes next."""

    iterator: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.iterator


class _Stream(torch.utils.data.Dataset):
    """A batch by its key, whichever process makes it: images, classes and broken images, or the error of a user.

    The transforms are timm's; they draw from (seed, epoch, index).
    """

    def __init__(self, data: Data) -> None:
        self.config, self.seed, self.train_indices = data.config, data.seed, data.train_indices
        self.sources = {"train": data.train, "val": data.train, "test": data.test}
        evaluation = data.transform or _eval_transform(data.config)
        self.transforms = {"val": evaluation, "test": evaluation}
        if data.train is not None:
            self.transforms["train"] = _train_transform(data.config, data.recipe)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, dict[str, str]] | ConfigError:
        split, epoch, indices = key
        images: list[Tensor] = []
        classes: list[int] = []
        broken: dict[str, str] = {}
        try:
            for index in indices.tolist():
                found = self._read(split, index, broken)
                if found is not None:
                    seed = derive(self.seed, epoch, index)
                    random.seed(seed)
                    np.random.seed(seed % 2**32)
                    torch.default_generator.manual_seed(seed)
                    images.append(self.transforms[split](found[0]))
                    classes.append(found[1])
        except BrokenImage as error:
            return ConfigError(str(error))
        except ConfigError as error:
            return error
        batch = torch.stack(images).contiguous(memory_format=torch.channels_last) if images else torch.empty(0)
        return batch, torch.tensor(classes), broken

    def _read(self, split: str, index: int, broken: dict[str, str]) -> Any:
        """An image and its class; for a broken one the next whole training image, or None in evaluation."""
        for candidate in self._candidates(split, index):
            try:
                return read_image(self.sources[split], candidate, self.config.channels)
            except BrokenImage as error:
                if not self.config.skip_broken:
                    raise
                broken[error.name] = error.reason
        if split == "train":
            raise ConfigError(f"data {self.config.name!r} at {self.config.root!r}: every training image is broken")
        return None

    def _candidates(self, split: str, index: int) -> Iterator[int]:
        yield index
        if split == "train":
            position, count = int(np.searchsorted(self.train_indices, index)), len(self.train_indices)
            for offset in range(1, count):
                yield int(self.train_indices[(position + offset) % count])


@contextmanager
def _undisturbed_start() -> Iterator[None]:
    """Hold signals back until workers ignore them, and keep SIGCHLD's handler: torch's raises in whatever runs then."""
    before = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _ignore_stop_signals(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(made: Any) -> Any:
    return made


def _stop_workers(loader: Any) -> None:
    if getattr(loader, "_iterator", None) is not None:
        loader._iterator._shutdown_workers()


def _train_transform(config: DataConfig, recipe: Recipe) -> Any:
    return transforms_imagenet_train(  # `create_transform` has no `force_color_jitter`
        config.image_size,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.flip_prob,
        color_jitter=recipe.color_jitter or None,
        force_color_jitter=True,
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
        re_prob=recipe.erase_prob,
        re_mode="pixel",
        re_count=1,
    )


def _eval_transform(config: DataConfig) -> Any:
    return create_transform(
        (config.channels, config.image_size, config.image_size),
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
        crop_pct=config.eval_crop,
    )


def default_workers(config: AnyData, device: str, processes: int = 1) -> int:
    """Data workers for each of `processes` training processes on this machine.

    None for small images, which are in memory. A GPU wants all the cores that it can get, up to 16; on a CPU the
    training needs them itself.
    """
    if config.image_size <= IN_MEMORY_UP_TO:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" or not torch.cuda.is_available():
        return min(16, cores // processes // 4)
    return max(1, min(16, cores // processes))
