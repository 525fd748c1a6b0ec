"""Batches by their keys, made in data workers or here: images read, augmented by timm's transforms, and normalised."""

from __future__ import annotations

import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from ..config import ConfigError
from ..rng import derive
from .data_config import DataConfig
from .datasets import BrokenImage, read_image
from .image_folder import Source
from .recipe import Recipe
from .signals import STOP_SIGNALS
from .surroundings import SurroundingsError

Batch = tuple[Tensor, Tensor]
# split, epoch and the images' numbers: what a data worker makes a batch from
Key = tuple[str, int, np.ndarray]


class Loader:
    """One set of data workers for all splits and epochs. One iteration at a time: a new one ends the one before."""

    def __init__(self, stream: Stream, workers: int) -> None:
        self.keys = _Keys()
        self.loader = torch.utils.data.DataLoader(
            stream,
            batch_size=None,  # a worker makes whole batches
            sampler=self.keys,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
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
                "a data worker died, often because memory or space in /dev/shm ran out: launch again to go on, with "
                f"fewer data workers than {self.loader.num_workers} if it happens again"
            ) from None


class _Keys(torch.utils.data.Sampler):
    """What the loader makes next."""

    iterator: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.iterator


class Stream(torch.utils.data.Dataset):
    """A batch by its key, whichever process makes it: images, classes and broken images, or the error of a user.

    The transforms are timm's; they draw from (seed, epoch, index).
    """

    def __init__(
        self,
        config: DataConfig,
        recipe: Recipe | None,
        seed: int,
        sources: Mapping[str, Source],
        train_indices: np.ndarray,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.config, self.seed, self.sources, self.train_indices = config, seed, sources, train_indices
        evaluation = transform or eval_transform(config)
        self.transforms = {"val": evaluation, "test": evaluation}
        if recipe is not None:
            self.transforms["train"] = train_transform(config, recipe)

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


def train_transform(config: DataConfig, recipe: Recipe) -> Any:
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


def eval_transform(config: DataConfig) -> Any:
    return create_transform(
        (config.channels, config.image_size, config.image_size),
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
        crop_pct=config.eval_crop,
    )
