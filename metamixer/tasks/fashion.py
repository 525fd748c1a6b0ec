"""Fashion-MNIST (arXiv 1708.07747): 70,000 pictures of garments, 28×28, in ten classes."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@lru_cache(2)
def fashion_mnist(split: str, root: str | None = None) -> tuple[Tensor, Tensor]:
    """Grey levels (N, 28, 28), uint8, and classes (N,) of the split `train` or `test`.

    They are read from the four idx files in `root` or Debian's package, or downloaded by torchvision.

    Raises ConfigError: they are not there and cannot be downloaded, or cannot be read.
    """
    folder = Path(root).expanduser() if root else FASHION_MNIST
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        folder = _downloaded(folder, folder if root else Path.home() / ".cache" / "metamixer")
    name = "train" if split == "train" else "t10k"
    pictures = np.frombuffer(_idx(folder, f"{name}-images-idx3-ubyte.gz"), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(_idx(folder, f"{name}-labels-idx1-ubyte.gz"), np.uint8, offset=8).astype(np.int64)
    return torch.from_numpy(pictures.copy()), torch.from_numpy(labels)


def _downloaded(folder: Path, cache: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), download=True)
    except Exception as error:
        raise ConfigError(
            f"data 'fashion-mnist': not in {folder} and the download failed ({str(error).splitlines()[0][:80]}); "
            "install Debian's package dataset-fashion-mnist or put its four .gz files into data.root"
        ) from None
    return cache / "FashionMNIST" / "raw"


def _idx(folder: Path, name: str) -> bytes:
    try:
        return gzip.decompress((folder / name).read_bytes())
    except (OSError, EOFError) as error:
        raise ConfigError(f"data 'fashion-mnist': {folder / name} cannot be read ({error})") from None
