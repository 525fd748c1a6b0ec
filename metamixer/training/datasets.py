"""Data sets by name: small images decoded into memory, larger ones opened one at a time, in any order."""

from __future__ import annotations

import gzip
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor

from ..config import ConfigError
from ..rng import permutation
from .augment import resize
from .data_config import DataConfig

SPLIT_SEED = 0  # which training images are held out is part of the data, not of a run
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
ALIASES = {"train": ("train", "training"), "test": ("validation", "val", "valid", "eval", "test")}


@dataclass(frozen=True)
class Images:
    """Decoded images, uint8 (N, C, H, W), and their classes, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        return Images(self.images[indices], self.labels[indices])


class BrokenImage(Exception):
    """A file that holds no whole image: its name, and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: broken image ({reason}); mend or remove it, or set data.skip_broken=true")
        self.name, self.reason = name, reason


def open_split(config: DataConfig, split: str) -> Any:
    """The split `train` or `test`: `Images`, or a map-style data set for `read_image`.

    Raises:
        ConfigError: missing or empty data, or classes or channels that do not fit the configuration.
    """
    if config.name == "digits":
        found = _digits(config.image_size, split)
    elif config.name == "fashion-mnist":
        found = _fashion_mnist(config, "train" if split == "train" else "t10k")
    else:
        return _map_style(config, split)
    classes, channels = int(found.labels.max()) + 1, found.images.shape[1]
    if classes > config.num_classes:
        raise ConfigError(
            f"data {config.name!r} has {classes} classes, num_classes is {config.num_classes}: "
            f"set data.num_classes={classes}"
        )
    if channels != config.channels:
        raise ConfigError(f"data {config.name!r} has {channels} channels, not {config.channels}")
    return found


def class_names(dataset: Any) -> list[str] | None:
    """The classes of a data set that knows their names, in their order."""
    for holder in (getattr(dataset, "reader", None), dataset):
        for name in ("class_to_idx", "class_name_to_idx"):
            if getattr(holder, name, None):
                return list(getattr(holder, name))
    return None


def read_image(dataset: Any, index: int, channels: int) -> tuple[Image.Image, int]:
    """Image `index` of a map-style data set, decoded, as RGB or grey, and its class.

    Raises:
        BrokenImage: it can't be decoded.
        ConfigError: it can't be read, which a disk or a network may be to blame for.
    """
    try:
        reader = getattr(dataset, "reader", None)
        # timm's data sets pass over a broken image in silence and give the next one instead; their readers do not
        if isinstance(reader, ReaderImageInTar):
            image, label = _tar_member(reader, index)
        else:
            image, label = (reader or dataset)[index][:2]
        if isinstance(image, Image.Image):
            return image.convert("RGB" if channels == 3 else "L"), int(label)
        with image, Image.open(image) as opened:
            return opened.convert("RGB" if channels == 3 else "L"), int(label)
    except MemoryError:
        raise
    except Exception as error:
        name = _name(dataset, index)
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
        raise BrokenImage(name, str(error).split("\n")[0][:80] or type(error).__name__) from None


def _tar_member(reader: ReaderImageInTar, index: int) -> tuple[io.BytesIO, int]:
    """As timm's reader, but without open files, which forked workers would share and seek in at the same time."""
    member, tar, inner = reader.samples[index]
    with open(os.path.join(reader.root, tar) if tar else reader.root, "rb") as file:
        file.seek(member.offset_data + (inner.offset_data if inner is not None else 0))
        return io.BytesIO(file.read(member.size)), int(reader.targets[index])


def _name(dataset: Any, index: int) -> str:
    reader = getattr(dataset, "reader", None)
    if isinstance(reader, ReaderImageInTar):
        member, tar, _ = reader.samples[index]
        return f"{os.path.join(reader.root, tar) if tar else reader.root}: {member.name}"
    if reader is not None:
        return str(reader.filename(index, absolute=True))
    samples = getattr(dataset, "samples", None)  # torchvision's folders
    return str(samples[index][0]) if samples else f"image {index} of {type(dataset).__name__}"


def decode(config: DataConfig, dataset: Any, broken: dict[str, str]) -> tuple[Images, np.ndarray]:
    """All images, the shorter side resized to the configured size and the centre cropped, and which are whole, (N,).

    With `skip_broken` a broken one stays black and is noted in `broken`, reason by name.
    """
    from torchvision.transforms import functional as F

    size = config.image_size
    images = torch.zeros(len(dataset), config.channels, size, size, dtype=torch.uint8)
    labels = torch.zeros(len(dataset), dtype=torch.int64)
    whole = np.ones(len(dataset), bool)
    for i in range(len(dataset)):
        try:
            image, labels[i] = read_image(dataset, i, config.channels)
        except BrokenImage as error:
            if not config.skip_broken:
                raise ConfigError(str(error)) from None
            broken[error.name] = error.reason
            whole[i] = False
            continue
        image = F.resize(image, size, F.InterpolationMode.BICUBIC)
        images[i] = F.pil_to_tensor(F.center_crop(image, [size, size]))
    return Images(images, labels), whole


def _digits(size: int, split: str) -> Images:
    """scikit-learn's 1,797 scanned digits, 8×8, enlarged to `size`; 500 of them, fixed, are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    order = permutation(SPLIT_SEED, 1, len(pixels))
    indices = order[500:] if split == "train" else order[:500]
    return Images(resize(pixels, size), torch.from_numpy(digits.target.astype(np.int64))).take(indices)


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


def _map_style(config: DataConfig, split: str) -> Any:
    if config.root is None and config.name.lower().startswith("torch/"):
        raise ConfigError(f"data {config.name!r} needs data.root, the folder that holds its files")
    try:
        if config.name == "folder":
            dataset = _folder(config, split)
        else:
            name = "train" if split == "train" else "validation"
            dataset = create_dataset(config.name, config.root, split=name, is_training=split == "train")
        if len(dataset) == 0:
            raise ValueError("no images")
    except ConfigError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise ConfigError(
            f"data {config.name!r} at {config.root!r}, split {split}: cannot be opened ({reason})"
        ) from None
    classes = class_names(dataset)
    if classes is not None and len(classes) != config.num_classes:
        raise ConfigError(
            f"data {config.name!r} at {config.root!r} has {len(classes)} classes in its {split} split, "
            f"num_classes is {config.num_classes}: set data.num_classes={len(classes)}"
        )
    return dataset


def _folder(config: DataConfig, split: str) -> ImageDataset:
    """`root`/train, as class folders, as tar files in it, or as one tar file `root`/train.tar; so for validation."""
    if config.root is None:
        raise ConfigError("data 'folder' needs data.root, the folder that holds train/ and validation/")
    root = Path(config.root)
    if not root.is_dir():
        raise ConfigError(f"data.root {config.root!r}: no such folder")
    places = [root / f"{name}{end}" for name in ALIASES[split] for end in ("", ".tar")]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise ConfigError(f"data.root {config.root!r}: no folder {' or '.join(ALIASES[split])} in it")
    if path.is_file() or any(entry.suffix == ".tar" for entry in path.iterdir()):
        return ImageDataset(str(path), reader=_tar_reader(path))
    reader = ReaderImageFolder(str(path))
    reader.samples = _Samples(reader.samples)
    return ImageDataset(str(path), reader=reader)


class _Samples:
    """timm's list of paths and classes as two arrays, which forked workers share; of a list of millions of Python
    objects each would come to own a copy, by their reference counts."""

    def __init__(self, samples: list[tuple[str, int]]) -> None:
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.classes = np.array([label for _, label in samples])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return os.fsdecode(self.paths[index]), int(self.classes[index])


def _tar_reader(path: Path) -> ReaderImageInTar:
    """The first process of a machine goes first: timm leaves an index beside large tar files, which the rest read."""
    from torch import distributed

    together = distributed.is_available() and distributed.is_initialized()
    first = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
    if together and not first:
        distributed.barrier()
    try:
        return ReaderImageInTar(str(path))
    except OSError:  # no index can be left on a disk that is not ours to write
        return ReaderImageInTar(str(path), cache_tarinfo=False)
    finally:
        if together and first:
            distributed.barrier()
