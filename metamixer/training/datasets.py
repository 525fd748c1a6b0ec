"""Data sets by name, whose images are opened one at a time, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image
from timm.data import create_dataset

from ..config import ConfigError
from ..rng import permutation
from ..tasks.fashion import fashion_mnist
from ..tasks.pictures import eight_bits
from .image_folder import CLASSES, class_list, open_folder, trained_classes
from .image_source import Parts, Source, few
from .surroundings import SurroundingsError

if TYPE_CHECKING:
    from .data_config import DataConfig

SPLIT_SEED = 0  # which training images are held out is part of the data, not of a run


class BrokenImage(Exception):
    """A file that holds no whole image: its name, and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: broken image ({reason}); mend or remove it, or set data.skip_broken=true")
        self.name, self.reason = name, reason


@dataclass
class Images(Source):
    """Grey images, uint8 (N, H, W), and their classes, int (N,)."""

    images: np.ndarray
    labels: np.ndarray

    names = None

    def __post_init__(self) -> None:
        self.parts = {"": [len(self), ""]}

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])

    def where(self, index: int) -> str:
        return f"image {index}"


def open_split(config: DataConfig, split: str) -> Source:
    """The images of the split `train` or `test`, to be read by `read_image`.

    Raises ConfigError: missing or empty data, or classes that do not fit the configuration.
    """
    if config.name == "digits":
        found = _digits(split)
    elif config.name == "fashion-mnist":
        found = _fashion_mnist(config, split)
    else:
        return open_folder(config.root, split) if config.name == "folder" else OfTimm(config, split)
    classes = int(found.labels.max()) + 1
    if classes > config.num_classes:
        raise ConfigError(
            f"data {config.name!r} has {classes} classes, num_classes is {config.num_classes}: "
            f"set data.num_classes={classes}"
        )
    return found


def class_names(config: DataConfig, split: str, source: Source) -> list[str] | None:
    """The classes of the training split, in order, from one of the splits; None if the data set does not name them.

    Raises ConfigError: they are not `num_classes`.
    """
    names = source.names
    if config.name == "folder":
        listed = class_list(config.root or "")
        if listed and split == "train" and (unseen := [name for name in listed if name not in (names or ())]):
            raise ConfigError(f"data.root {config.root!r}: no training image of {few(unseen)}, named in {CLASSES}")
        names = listed or (trained_classes(config.root) if split != "train" else None) or names
    if names is not None and len(names) != config.num_classes:
        where = f"data {config.name!r} at {config.root!r}"
        if len(names) == 1:
            raise ConfigError(f"{where} has one class, {names[0]!r}: a classifier needs two")
        raise ConfigError(
            f"{where} has {len(names)} classes, num_classes is {config.num_classes}: set data.num_classes={len(names)}"
        )
    return names


class OfTimm(Source):
    """A split of a data set that timm opens, `torch/NAME` or `hfds/NAME`."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.name = config.name
        if config.root is None and config.name.lower().startswith("torch/"):
            raise ConfigError(f"data {config.name!r} needs data.root, the folder that holds its files")
        root = None if config.root is None else str(Path(config.root).expanduser())
        try:
            found = self._opened(root, "train" if split == "train" else "validation")
            if len(found) == 0:
                raise ValueError("no images")
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
            where = f"data {config.name!r} at {config.root!r}, split {split}"
            raise ConfigError(f"{where}: cannot be opened ({reason})") from None
        # timm's data sets pass over a broken image in silence and give the next one instead; their readers do not
        self.found = getattr(found, "reader", found)
        numbers = getattr(self.found, "class_to_idx", None)
        self.names = sorted(numbers, key=numbers.get) if numbers else None
        self.parts: Parts = {"": [len(self.found), ""]}

    def _opened(self, root: str | None, split: str) -> Any:
        try:
            return create_dataset(self.name, root, split=split, is_training=split == "train")
        except ValueError as error:
            # what the Hugging Face hub calls `test` alone; its package says it in these words
            if split != "validation" or "Unknown split" not in str(error):
                raise
            return create_dataset(self.name, root, split="test")

    def __len__(self) -> int:
        return len(self.found)

    def open(self, index: int) -> tuple[Image.Image | BinaryIO, int]:
        return self.found[index][:2]

    def where(self, index: int) -> str:
        return f"image {index} of {self.name}"


def read_image(source: Source, index: int, channels: int) -> tuple[Image.Image, int]:
    """Image `index`, decoded, as RGB or grey with 8 bits a channel, and the source's number of its class.

    Raises:
        BrokenImage: it can't be decoded.
        SurroundingsError: it can't be read, which a disk or a network may be to blame for.
        ConfigError: its pixels can't be used.
    """
    name = source.where(index)
    try:
        image, label = source.open(index)
        if isinstance(image, Image.Image):
            pixels = eight_bits(image, channels, name)
        else:
            with image, Image.open(image) as opened:
                pixels = eight_bits(opened, channels, name)
    except (MemoryError, ConfigError, BrokenImage):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SurroundingsError(f"{name}: cannot be read ({error.strerror})") from None
        if isinstance(error, Image.DecompressionBombError):
            raise ConfigError(f"{name}: {error} Make it smaller.") from None
        raise BrokenImage(name, str(error).split("\n")[0][:80] or type(error).__name__) from None
    return pixels, int(label if source.numbers is None else source.numbers[label])


def _digits(split: str) -> Images:
    """scikit-learn's 1,797 scanned digits, 8×8; 500 of them, fixed, are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    order = permutation(SPLIT_SEED, 1, len(pixels))
    indices = order[500:] if split == "train" else order[:500]
    return Images(pixels[indices], digits.target[indices])


def _fashion_mnist(config: DataConfig, split: str) -> Images:
    pixels, labels = fashion_mnist(split, config.root)
    return Images(pixels.numpy(), labels.numpy())
