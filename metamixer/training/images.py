"""Classification of images as a task: the splits of a data set, augmented by timm's transforms."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from ..rng import derive, permutation
from ..tasks import Metric, Task, shuffled, sums
from .datasets import SPLIT_SEED, BrokenImage, class_names, open_split, read_image
from .image_source import Parts, Source, number_classes
from .recipe import Recipe

if TYPE_CHECKING:
    from .data_config import DataConfig

IN_MEMORY_UP_TO = 64  # pixels
IN_MEMORY_BYTES = 4 * 2**30

log = logging.getLogger(__name__)


class ImageClasses(Task):
    """One class for each image of a data set.

    Images of up to 64 px are read once and kept, resized and cropped; larger ones are read each time.

    Args:
        recipe: the augmentation of training images.
        classes: names of the network's classes; of the training split's classes if None.
        transform: makes the tensor (C, S, S) of an evaluation image; as `config` says if None.

    Attributes:
        classes: names of the classes in the order of their numbers; None if the data set does not name them.
    """

    name = "images"
    on_disk = True
    metrics = (Metric("top1", "top-1", "%"), Metric("top5", "top-5", "%"))

    def __init__(
        self,
        config: DataConfig,
        recipe: Recipe | None = None,
        classes: list[str] | None = None,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(config)
        self.recipe, self.classes = recipe, classes
        self.in_chans, self.num_classes = config.channels, config.num_classes
        self.input_size = config.input_size[1:]
        self.small = max(self.input_size) <= IN_MEMORY_UP_TO and transform is None
        self.eval_batch = 500 if self.small else 125  # type: ignore[misc]
        self.evaluation = transform or eval_transform(config)
        self._sources: dict[str, Source] = {}
        self._kept: dict[tuple[str, int], tuple[Image.Image, int]] = {}

    def source(self, split: str) -> Source:
        """The images of `train` or `test`, their classes numbered as in training.

        Raises ConfigError: missing or empty data, or classes that do not fit the configuration.
        """
        if split not in self._sources:
            config, found = self.config, open_split(self.config, split)
            for line in found.passed_over:
                log.warning("%s, %s split: passed over %s", config.about, split, line)
            self.classes = self.classes or class_names(config, split, found)
            if self.classes is not None:
                number_classes(found, self.classes, f"{config.about}, {split} split")
            self._sources[split] = found
        return self._sources[split]

    def parts(self) -> dict[str, Parts]:
        return {split: source.parts for split, source in self._sources.items()}

    @cached_property
    def _order(self) -> np.ndarray:
        count = len(self.source("train"))
        if self.config.val_samples >= count:
            raise ConfigError(f"data.val_samples {self.config.val_samples} leaves none of {count} training images")
        return permutation(SPLIT_SEED, 0, count)

    @cached_property
    def trained_on(self) -> np.ndarray:
        """Numbers of the training images that a run sees, in order."""
        return np.sort(self._order[self.config.val_samples :][: self.config.train_samples])

    @cached_property
    def held_out(self) -> np.ndarray:
        """Numbers of the training images for validation."""
        return self._order[: self.config.val_samples]

    def count(self, split: str) -> int:
        if split == "test":
            return len(self.source("test"))
        return len(self.trained_on if split == "train" else self.held_out)

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S), normalised, and classes (B,); with `skip_broken`, broken test images are left out."""
        images: list[Tensor] = []
        classes: list[int] = []
        transform = self.augmentation if split == "train" else self.evaluation
        for image, label in self._images(seed, split, indices):
            images.append(transform(image))
            classes.append(label)
        batch = torch.stack(images).contiguous(memory_format=torch.channels_last) if images else torch.empty(0)
        return batch, torch.tensor(classes)

    @cached_property
    def augmentation(self) -> Callable[[Any], Tensor]:
        assert self.recipe is not None
        return train_transform(self.config, self.recipe)

    def _images(self, seed: int, split: str, indices: Tensor) -> Iterator[tuple[Image.Image, int]]:
        """Images with their classes; for one in training, everything random is seeded by (seed, epoch, image)."""
        if split == "train":
            assert self.recipe is not None
            seed, train, batch = derive(seed, "data"), self.trained_on, self.recipe.batch_size
            # images beyond the last whole batch wait for another epoch
            epochs, places = shuffled(seed, indices, len(train), len(train) // batch * batch)
            for epoch, index in zip(epochs.tolist(), train[places.numpy()].tolist(), strict=True):
                found = self.training_image(index)
                drawn = derive(seed, epoch, index)
                random.seed(drawn)
                np.random.seed(drawn % 2**32)
                torch.default_generator.manual_seed(drawn)
                yield found
            return
        for number in indices.tolist():
            try:
                yield self._read("train", int(self.held_out[number])) if split == "val" else self._read("test", number)
            except BrokenImage as error:
                self._leave_out(error)

    def training_image(self, index: int) -> tuple[Image.Image, int]:
        """A training image and its class; for a broken one the next whole one that is trained on."""
        train = self.trained_on
        place = int(np.searchsorted(train, index))
        for offset in range(len(train)):
            try:
                return self._read("train", int(train[(place + offset) % len(train)]))
            except BrokenImage as error:
                self._leave_out(error)
        raise ConfigError(f"{self.config.about}: every training image is broken")

    def _read(self, split: str, index: int) -> tuple[Image.Image, int]:
        if (split, index) in self._kept:
            return self._kept[split, index]
        source, size = self.source(split), self.input_size
        image, label = read_image(source, index, self.config.channels)
        if self.small and len(source) * self.config.channels * prod(size) <= IN_MEMORY_BYTES:
            from torchvision.transforms import functional as V

            # the shorter side of a square; of a rectangle, what covers it
            scale = max(side / own for side, own in zip(size, image.size[::-1], strict=True))
            fit = size[:1] if size[0] == size[1] else [round(scale * own) for own in image.size[::-1]]
            image = V.center_crop(V.resize(image, fit, V.InterpolationMode.BICUBIC), size)
            self._kept[split, index] = image, label
        return image, label

    def _leave_out(self, error: BrokenImage) -> None:
        if not self.config.skip_broken:
            raise ConfigError(str(error)) from None
        self.broken[error.name] = error.reason

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        right = outputs.topk(min(5, outputs.shape[1])).indices == answers[:, None]
        loss = F.cross_entropy(outputs, answers, reduction="sum")
        return sums(loss, right[:, 0].sum(), right.any(1).sum(), len(answers))

    def measure(self, tally: Tensor) -> dict[str, float]:
        loss, first, five, count = tally.tolist()
        return {"top1": 100 * first / count, "top5": 100 * five / count, "loss": loss / count}


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
        config.input_size,
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
        crop_pct=config.eval_crop,
    )
