"""Pictures from files, with any number of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
ARRAYS = (".npy", ".tif", ".tiff")  # these may have any number of channels

# one image of Pillow in grey or RGB, or one of floats for each channel
Bands = list[Image.Image]


def eight_bits(image: Image.Image, channels: int, name: str) -> Image.Image:
    """An image as RGB, or as grey for one channel, with 8 bits a channel.

    Raises ConfigError: the range of its pixels is not known.
    """
    # Pillow's `convert` would cut these off at 255
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ConfigError(f"{name}: its pixels are {kind} of unknown range; save it with 8 or 16 bits a channel")
    return image.convert("RGB" if channels == 3 else "L")


def opened(file: Path) -> Image.Image:
    """An image as it is stored, decoded. Raises ConfigError: it can't be read."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace(f" '{file}'", "")
        raise ConfigError(f"{file}: cannot be read as an image ({reason})") from None


def colour(file: Path) -> Image.Image:
    """An image as RGB. Raises ConfigError: it can't be read."""
    return eight_bits(opened(file), 3, str(file))


def bands(file: Path, channels: int) -> Bands:
    """A picture of grey, of colour, or of as many channels as its array has.

    An array is (height, width, channels) or (channels, height, width); whole numbers are divided by their largest.

    Raises ConfigError: it can't be read, or has other channels.
    """
    if channels in (1, 3) and file.suffix.lower() != ".npy":
        return [eight_bits(opened(file), channels, str(file))]
    if file.suffix.lower() not in ARRAYS:
        raise ConfigError(f"{file}: a picture of {channels} channels is a file of {', '.join(ARRAYS)}")
    try:
        if file.suffix.lower() == ".npy":
            array = np.load(file)
        else:
            import tifffile

            array = tifffile.imread(file)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{file}: cannot be read as an array ({str(error).splitlines()[0]})") from None
    shape = "×".join(map(str, array.shape))
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[-1] != channels:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] != channels:
        raise ConfigError(f"{file}: an array of {shape}, but data.task.channels is {channels}")
    levels = np.iinfo(array.dtype).max if np.issubdtype(array.dtype, np.integer) else 1
    values = array.astype(np.float32) / np.float32(levels)
    if not np.isfinite(values).all():
        raise ConfigError(f"{file}: {int((~np.isfinite(values)).sum())} of its numbers are not finite")
    return [Image.fromarray(values[..., channel]) for channel in range(channels)]


def tensor(picture: Bands) -> Tensor:
    """Levels (C, H, W), as a rule in 0 … 1."""
    arrays = [torch.from_numpy(np.array(band)) for band in picture]
    if arrays[0].dtype == torch.uint8:
        return arrays[0].view(*arrays[0].shape[:2], -1).permute(2, 0, 1).float() / 255
    return torch.stack(arrays)
