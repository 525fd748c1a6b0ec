"""Super-resolution: photographs from copies that bicubic interpolation made smaller; PSNR and SSIM of luma.

Loss and measures are those of FFNet's released super-resolution code (github.com/ysj9909/FFNet), which is BasicSR's.
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from ..rng import derive
from .files import FilesConfig, part_of, without
from .pictures import SUFFIXES, colour
from .streams import Streams
from .task import Metric, Task, register, sums

# PNG files of scikit-image are evaluated; what is trained on is scikit-image's and scikit-learn's, in part from JPEG
_EMBEDDED = {
    "train": ("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "retina.jpg", "ihc.png", "flower.jpg"),
    "val": ("china.jpg",),
    "test": ("astronaut.png", "chelsea.png", "coffee.png"),
}
_FOLDERS = {
    "train": ("train", "DIV2K_train"),
    "test": ("validation", "DIV2K_valid"),
}

SSIM_WINDOW = 11  # pixels

Pair = tuple[Tensor, Tensor]  # small and large, uint8 (3, H, W)


@register
class Photographs(Task):
    """What did the photograph look like, `scale` times as large? (B, 3, P, P) in 0 … 1 → (B, 3, scale·P, scale·P).

    Training samples are patches, flipped and turned; each photograph of the other splits is one sample, whole.
    """

    name = "photographs"
    networks = ("super_resolver",)
    on_disk = True
    head = "cells"
    in_chans = num_classes = 3
    eval_batch: ClassVar[int] = 1  # photographs differ in size

    class Config(FilesConfig):
        """`patch` pixels a side of a small patch; `fourier` is the weight of the spectrum's part in the loss.

        `root` holds `train` and `validation`, or DIV2K's folders; without it scikit-image's photographs are taken.
        `held_out` of its training photographs are the validation split. Small copies are read from `train_LR_x2` and
        its like, or DIV2K's own folders, where there are any.
        """

        path_key = "root"
        scale: int = Field(default=2, ge=2, le=4)
        patch: int = Field(default=32, ge=8)
        fourier: float = Field(default=0.02, ge=0)
        root: str | None = None
        held_out: int = Field(default=0, ge=0)

        def parts(self) -> dict[str, dict[str, list[Any]]]:
            if self.root is None:
                return {}
            found = {}
            for split in ("train", "test"):
                large = _of_folder(Path(self.root).expanduser(), split)
                small = (_small_copy(file, self.root, self.scale) for file in large)
                found[split] = part_of([*large, *filter(None, small)])
            return found

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.input_size = (config.patch, config.patch)
        self.answer_size = (config.patch * config.scale, config.patch * config.scale)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        pairs = self._pairs("test")
        total = sum(self.tally(_enlarged(small, self.config.scale), large[None] / 255) for small, large in pairs)
        bicubic = self.measure(total)  # type: ignore[arg-type]
        return (
            Metric("psnr", "PSNR", "dB", levels={"bicubic": bicubic["psnr"]}),
            Metric("ssim", "SSIM", decimals=4, levels={"bicubic": bicubic["ssim"]}),
        )

    def count(self, split: str) -> int | None:
        return None if split == "train" else len(self._pairs(split))

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        pairs, device = self._pairs(split), indices.device
        if split == "train":
            streams = Streams(derive(seed, "task", self.name, split), indices.cpu())
            draws = zip(*(streams.integers(2**20, 6).T.tolist()), strict=True)
            chosen = [self._patch(pairs[draw[0] % len(pairs)], *draw[1:]) for draw in draws]
        else:
            chosen = [pairs[index] for index in indices.tolist()]
        small, large = ((torch.stack(each).float() / 255).to(device) for each in zip(*chosen, strict=True))
        return small, large

    def _patch(self, pair: Pair, row: int, column: int, turn: int, flip: int, _: int) -> Pair:
        size, (_, high, wide) = self.config.patch, pair[0].shape
        row, column = row % (high - size + 1), column % (wide - size + 1)
        found = []
        for image, scale in zip(pair, (1, self.config.scale), strict=True):
            part = image[:, row * scale : (row + size) * scale, column * scale : (column + size) * scale]
            found.append(torch.rot90(part.flip(2) if flip % 2 else part, turn % 4, (1, 2)))
        return found[0], found[1]

    def _pairs(self, split: str) -> list[Pair]:
        root, scale, held_out = self.config.root, self.config.scale, self.config.held_out
        pairs = _read(root, "train" if root and split == "val" else split, scale)
        pairs = without(pairs, held_out, split) if root and split != "test" else pairs
        # SSIM's window must fit into what is left without the border
        least = self.config.patch if split == "train" else 2 - -SSIM_WINDOW // scale
        for number, (small, _) in enumerate(pairs):
            if min(small.shape[1:]) < least:
                size = "×".join(map(str, small.shape[:0:-1]))
                what = "a patch" if split == "train" else "SSIM's window"
                raise ConfigError(
                    f"task 'photographs': small copy {number} ({split}) is {size}, but {what} needs {least} a side"
                )
        return pairs

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """L1, and L1 of the real and imaginary parts of the spectra."""
        found, right = (torch.view_as_real(torch.fft.rfft2(each)) for each in (outputs, answers))
        return F.l1_loss(outputs, answers) + self.config.fourier * F.l1_loss(found, right)

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Sums over images of the loss, PSNR and SSIM, and their number."""
        border = self.config.scale
        found, right = (luma(each)[:, border:-border, border:-border] for each in (outputs, answers))
        count = len(answers)
        return sums(self.loss(outputs, answers) * count, psnr(found, right).sum(), ssim(found, right).sum(), count)

    def measure(self, tally: Tensor) -> dict[str, float]:
        loss, psnr, ssim, count = tally.tolist()
        return {"psnr": psnr / count, "ssim": ssim / count, "loss": loss / count}

    def pictures(self, inputs: Tensor, answers: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The middle of the photograph alone, where single pixels can be seen."""
        scale, size = self.config.scale, 32
        top, left = ((side - size) // 2 for side in inputs.shape[2:])
        small = inputs[0, :, top : top + size, left : left + size]
        places = slice(top * scale, (top + size) * scale), slice(left * scale, (left + size) * scale)
        large = small.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return large, answers[0][:, *places], outputs[0][:, *places]

    def predictions(self, outputs: Tensor, answers: Tensor) -> None:
        """None are kept."""


def luma(images: Tensor) -> Tensor:
    """Y of ITU-R BT.601 in 16 … 235 of RGB images (B, 3, H, W) in 0 … 1, brought to 8 bits first; float64 (B, H, W)."""
    levels = (images.double().clamp(0, 1) * 255).round()
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=images.device)
    return torch.einsum("bchw,c->bhw", levels, weights / 255) + 16


def psnr(found: Tensor, right: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B, H, W) of levels up to 255; infinite for equal ones."""
    return 10 * torch.log10(255**2 / (found - right).square().mean((1, 2)))


def ssim(found: Tensor, right: Tensor) -> Tensor:
    """Structural similarity of each image (B, H, W) of levels up to 255.

    Source: Wang et al., "Image quality assessment", 2004: a Gaussian window of 11, sigma 1.5.
    """
    half = SSIM_WINDOW // 2
    steps = torch.arange(-half, half + 1, dtype=found.dtype, device=found.device)
    window = torch.exp(-steps.square() / (2 * 1.5**2))
    window = (window / window.sum())[None, None]

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x[:, None], window[..., None]), window[:, :, None])[:, 0]

    a, b = smooth(found), smooth(right)
    of_a, of_b, both = smooth(found * found) - a * a, smooth(right * right) - b * b, smooth(found * right) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (of_a + of_b + c2))
    return similar.mean((1, 2))


def _enlarged(small: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation by Pillow of (3, H, W), as (1, 3, scale·H, scale·W) in 0 … 1."""
    image = Image.fromarray(small.permute(1, 2, 0).numpy())
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    return _tensor(large)[None] / 255


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@cache
def _read(root: str | None, split: str, scale: int) -> list[Pair]:
    """All photographs of a split with their small copies.

    Raises ConfigError: none are there, one can't be read, or a small copy is of another size.
    """
    files = _embedded(split) if root is None else _of_folder(Path(root).expanduser(), split)
    pairs = []
    for file in files:
        large, other = colour(file), _small_copy(file, root, scale)
        high, wide = large.height // scale * scale, large.width // scale * scale
        large = large.crop((0, 0, wide, high))
        size = (wide // scale, high // scale)
        small = large.resize(size, Image.Resampling.BICUBIC) if other is None else colour(other)
        if small.size != size:
            got, right = ("×".join(map(str, each)) for each in (small.size, size))
            raise ConfigError(f"{other}: {got} pixels, but {file.name} at a scale of {scale} needs {right}")
        pairs.append((_tensor(small), _tensor(large)))
    return pairs


def _embedded(split: str) -> list[Path]:
    import skimage
    import sklearn

    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"]
    return [next(folder / name for folder in folders if (folder / name).exists()) for name in _EMBEDDED[split]]


def _of_folder(root: Path, split: str) -> list[Path]:
    plain, div2k = _FOLDERS[split]
    for folder in (root / plain, root / f"{div2k}_HR"):
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        if files:
            return files
    raise ConfigError(f"task 'photographs': no images in {root / plain}, nor in {root / f'{div2k}_HR'}")


def _small_copy(file: Path, root: str | None, scale: int) -> Path | None:
    """The file of the small copy, where its folder exists; DIV2K names it `0001x2.png`."""
    name = file.parent.name
    div2k = file.parent.parent / name.replace("_HR", "_LR_bicubic") / f"X{scale}"
    for folder in (file.parent.parent / f"{name}_LR_x{scale}", div2k):
        if root is None or not folder.is_dir():
            continue
        for found in (folder / file.name, folder / f"{file.stem}x{scale}{file.suffix}"):
            if found.exists():
                return found
        raise ConfigError(f"{folder}: no small copy of {file.name} there")
    return None
