"""Data by name, and the batches of a run: a pure function of (seed, epoch, sample).

Images of up to 64 px are decoded once into memory and augmented a batch at a time (`BatchAugment`); larger
ones go through timm's transforms in data workers. In both, a sample's draws come from (seed, epoch, index),
so neither the number of workers nor a restart changes a batch.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset, create_transform
from torch import Tensor

from ..config import ConfigError
from ..draws import derive, permutation
from .augment import BatchAugment, normalise, resize
from .config import DataConfig, Recipe

IN_MEMORY_UP_TO = 64  # pixels
SPLIT_SEED = 0  # which training images are held out is part of the data, not of a run
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
EVAL_BATCH = 500

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Decoded images, uint8 (N, C, H, W), and their classes, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        return Images(self.images[indices], self.labels[indices])


class Data:
    """The splits of a data set, and a run's batches of them.

    Raises:
        ConfigError: missing, empty or broken data, or classes that do not fit the configuration.
    """

    def __init__(self, config: DataConfig, recipe: Recipe, seed: int, workers: int = 0) -> None:
        self.config, self.recipe, self.workers = config, recipe, workers
        self.seed = derive(seed, "data")
        self.in_memory = config.image_size <= IN_MEMORY_UP_TO
        train, self.test = _splits(config, self.in_memory)
        order = permutation(SPLIT_SEED, 0, len(train))
        self.val_indices = order[: config.val_samples]
        self.train_indices = np.sort(order[config.val_samples :][: config.train_samples])
        self.train = train
        self.steps = len(self.train_indices) // recipe.batch_size
        if self.steps == 0:
            raise ConfigError(
                f"data {config.name!r} has {len(self.train_indices)} training images, fewer than one batch of "
                f"{recipe.batch_size}: lower recipe.batch_size"
            )
        if self.in_memory:
            self.augment = BatchAugment(
                image_size=config.image_size,
                mean=config.mean,
                std=config.std,
                crop_scale=recipe.crop_scale,
                crop_ratio=recipe.crop_ratio,
                flip=recipe.flip,
                color_jitter=recipe.color_jitter,
                rand_augment=recipe.rand_augment,
                erase=recipe.erase,
                seed=self.seed,
            )

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Augmented training batches of an epoch from `first_step` on: (B, C, S, S) normalised, and classes (B,)."""
        size = self.recipe.batch_size
        order = self.train_indices[permutation(self.seed, epoch, len(self.train_indices))]
        chunks = [order[step * size : (step + 1) * size] for step in range(first_step, self.steps)]
        if isinstance(self.train, Images):
            for chunk in chunks:
                yield self.augment(self.train.images[chunk], epoch, chunk), self.train.labels[chunk]
        else:
            yield from self._loader(
                _Seeded(self.train, _train_transform(self.config, self.recipe), self.seed, epoch), chunks
            )

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Batches of the split `val` or `test`, each image once, in order."""
        source, indices = (self.train, self.val_indices) if split == "val" else (self.test, np.arange(len(self.test)))
        chunks = [indices[i : i + EVAL_BATCH] for i in range(0, len(indices), EVAL_BATCH)]
        if isinstance(source, Images):
            for chunk in chunks:
                yield normalise(source.images[chunk], self.config.mean, self.config.std), source.labels[chunk]
        else:
            yield from self._loader(_Seeded(source, _eval_transform(self.config), self.seed, 0), chunks)

    def _loader(self, dataset: _Seeded, chunks: list[np.ndarray]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=chunks, num_workers=self.workers)  # type: ignore[arg-type]
        try:
            for images, labels in loader:
                yield images.contiguous(memory_format=torch.channels_last), labels
        except ConfigError as error:
            # a worker's error arrives wrapped in its traceback; the line itself comes last
            raise ConfigError(str(error).rstrip().rsplit("ConfigError: ", 1)[-1]) from None


class _Seeded(torch.utils.data.Dataset):
    """A timm data set whose transform draws from (seed, epoch, index), in whichever worker it runs."""

    def __init__(self, dataset: Any, transform: Any, seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = _open(self.dataset, int(index))
        seed = derive(self.seed, self.epoch, int(index))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return self.transform(image), label


def _splits(config: DataConfig, in_memory: bool) -> tuple[Any, Any]:
    if config.name == "digits":
        train, test = _digits(config.image_size)
    elif config.name == "fashion-mnist":
        train, test = (_fashion_mnist(config, split) for split in ("train", "t10k"))
    else:
        train, test = (_timm_dataset(config, split) for split in ("train", "validation"))
        for split, dataset in (("train", train), ("validation", test)):
            _check_classes(config, split, dataset)
        if in_memory:
            train, test = (_decode(config, dataset) for dataset in (train, test))
    for split, found in (("train", train), ("test", test)):
        if isinstance(found, Images) and int(found.labels.max()) >= config.num_classes:
            raise ConfigError(
                f"data {config.name!r}: the {split} split has class {int(found.labels.max())}, "
                f"num_classes is {config.num_classes}"
            )
        if isinstance(found, Images) and found.images.shape[1] != config.channels:
            raise ConfigError(f"data {config.name!r} has {found.images.shape[1]} channels, not {config.channels}")
    if config.val_samples >= len(train):
        raise ConfigError(f"data.val_samples {config.val_samples} leaves none of {len(train)} training images")
    return train, test


def _digits(size: int) -> tuple[Images, Images]:
    """scikit-learn's 1,797 scanned digits, 8×8, enlarged to `size`; 500 of them, fixed, are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    found = Images(resize(pixels, size), torch.from_numpy(digits.target.astype(np.int64)))
    order = permutation(SPLIT_SEED, 1, len(found))
    return found.take(order[500:]), found.take(order[:500])


def _fashion_mnist(config: DataConfig, split: str) -> Images:
    """Fashion-MNIST (arXiv 1708.07747) from its four idx files, or by torchvision's download into `root`."""
    folder = Path(config.root) if config.root else FASHION_MNIST
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        from torchvision.datasets import FashionMNIST

        cache = Path(config.root) if config.root else Path.home() / ".cache" / "metamixer"
        try:
            FashionMNIST(str(cache), download=True)
        except Exception as error:
            raise ConfigError(
                f"data 'fashion-mnist': not in {folder} and the download failed ({str(error).splitlines()[0][:80]}); "
                "install Debian's package dataset-fashion-mnist or put its four .gz files into data.root"
            ) from None
        folder = cache / "FashionMNIST" / "raw"
    images = np.frombuffer(_idx(folder, f"{split}-images-idx3-ubyte.gz"), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(_idx(folder, f"{split}-labels-idx1-ubyte.gz"), np.uint8, offset=8).astype(np.int64)
    return Images(resize(torch.from_numpy(images.copy()), config.image_size), torch.from_numpy(labels))


def _idx(folder: Path, name: str) -> bytes:
    try:
        return gzip.decompress((folder / name).read_bytes())
    except (OSError, EOFError) as error:
        raise ConfigError(f"data 'fashion-mnist': {folder / name} cannot be read ({error})") from None


def _timm_dataset(config: DataConfig, split: str) -> Any:
    name = "" if config.name == "folder" else config.name
    if not name and config.root is None:
        raise ConfigError("data 'folder' needs data.root, the folder that holds train/ and validation/")
    if not name and not Path(config.root or "").is_dir():
        raise ConfigError(f"data.root {config.root!r}: no such folder")
    if not name and not any((Path(config.root or "") / alias).is_dir() for alias in _ALIASES[split]):
        raise ConfigError(f"data.root {config.root!r}: no folder {' or '.join(_ALIASES[split])} in it")
    try:
        dataset = create_dataset(name, config.root, split=split, is_training=split == "train")
        if len(dataset) == 0:
            raise ValueError("no images")
    except Exception as error:
        raise ConfigError(
            f"data {config.name!r} at {config.root!r}, split {split}: cannot be opened "
            f"({str(error).splitlines()[0][:120] or type(error).__name__})"
        ) from None
    return dataset


_ALIASES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "eval", "test")}


def _check_classes(config: DataConfig, split: str, dataset: Any) -> None:
    classes = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or getattr(dataset, "class_to_idx", None)
    if classes is not None and len(classes) != config.num_classes:
        raise ConfigError(
            f"data {config.name!r} at {config.root!r} has {len(classes)} classes in its {split} split, "
            f"num_classes is {config.num_classes}"
        )


def _open(dataset: Any, index: int) -> tuple[Image.Image, int]:
    try:
        # timm's data sets pass over a broken image in silence and give the next one instead; their reader does not
        image, label = dataset.reader[index] if hasattr(dataset, "reader") else dataset[index]
        image = image if isinstance(image, Image.Image) else Image.open(image)
        image.load()
        return image, int(label)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        name = dataset.filename(index, absolute=True) if hasattr(dataset, "filename") else f"image {index}"
        raise ConfigError(f"{name}: broken image ({str(error).splitlines()[0][:80]}); mend or remove it") from None


def _decode(config: DataConfig, dataset: Any) -> Images:
    """All images, the shorter side resized to the configured size and the centre cropped."""
    from torchvision.transforms import functional as F

    size = config.image_size
    images = torch.empty(len(dataset), config.channels, size, size, dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for i in range(len(dataset)):
        image, labels[i] = _open(dataset, i)
        image = F.resize(image.convert("L" if config.channels == 1 else "RGB"), size, F.InterpolationMode.BICUBIC)
        images[i] = F.pil_to_tensor(F.center_crop(image, [size, size]))
    return Images(images, labels)


def _train_transform(config: DataConfig, recipe: Recipe) -> Any:
    return create_transform(
        (config.channels, config.image_size, config.image_size),
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
        re_prob=recipe.erase,
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
