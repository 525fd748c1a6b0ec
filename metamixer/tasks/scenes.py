"""Semantic segmentation of a folder of images and masks, in ADE20K's, Cityscapes' or a plain layout."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..config import ConfigError, later
from ..rng import derive
from .files import FilesConfig, part_of, without
from .pictures import ARRAYS, SUFFIXES, Bands, bands, opened, tensor
from .segmentation import Segmentation
from .streams import Streams
from .task import NOT_ASKED, register

Side = Annotated[int, Field(ge=32)]
Scale = Annotated[float, Field(gt=0)]
# training, and what is evaluated
_SPLITS = {"plain": ("train", "validation"), "ade20k": ("training", "validation"), "cityscapes": ("train", "val")}


@register
class Scenes(Segmentation):
    """Which class is at each pixel of a picture? (B, channels, H, W), normalised by `mean` and `std`.

    Training samples are crops of a scaled and perhaps mirrored picture; what lies outside it is not asked. The other
    splits are pictures as a whole, their shorter side brought to `size`, answered at the mask's own resolution.
    """

    name = "scenes"
    on_disk = True
    eval_batch: ClassVar[int] = 1  # pictures differ in size

    class Config(FilesConfig):
        """`root` in one of three layouts.

        `ade20k`: `images` and `annotations`, each with `training` and `validation`; value 0 of a mask is not asked.
        `cityscapes`: `leftImg8bit` and `gtFine`, each with `train/CITY` and `val/CITY`, masks `*_labelTrainIds.png`;
        value 255 is not asked. `plain`: `images` and `masks`, each with `train` and `validation`; the same.
        `held_out` training pictures are the validation split. `crop` is the height and width of training crops, by
        default `size` for both. `scales` are the smallest and the largest factor of a training picture. `photometric`
        changes brightness, contrast, saturation and hue of training pictures, as MMSegmentation does. With `window`,
        pictures are evaluated by windows of so many pixels a side, `window_stride` apart, whose scores are averaged
        where they overlap.

        Pictures of 1 or 3 `channels` are grey or colour, whatever the files are; those of other numbers are arrays
        (.npy, .tif). `mean` and `std` of each channel are ImageNet's for colour, else 0 and 1.
        """

        path_key = "root"
        root: str
        layout: Literal["plain", "ade20k", "cityscapes"] = "plain"
        num_classes: int = Field(gt=1, le=255)
        size: int = Field(default=512, ge=32)
        scales: tuple[Scale, Scale] = (0.5, 2.0)
        held_out: int = Field(default=0, ge=0)
        flip_prob: float = Field(default=0.5, ge=0, le=1)
        window: int | None = Field(default=None, ge=32)
        window_stride: int = Field(default=256, gt=0)
        crop: tuple[Side, Side] | None = later(None)
        channels: int = later(3, gt=0)
        mean: tuple[float, ...] | None = later(None)
        std: tuple[Scale, ...] | None = later(None)
        photometric: bool = later(False)

        @model_validator(mode="after")
        def _fits(self) -> Scenes.Config:
            if self.scales[0] > self.scales[1]:
                raise ConfigError(f"scales {self.scales}: the smallest factor, then the largest")
            for each in (self.mean, self.std):
                if each is not None and len(each) != self.channels:
                    raise ConfigError(f"mean and std need one number for each of {self.channels} channels, not {each}")
            if self.photometric and self.channels != 3:
                raise ConfigError("photometric is for pictures of three channels")
            return self

        def parts(self) -> dict[str, dict[str, list[Any]]]:
            pairs = {split: _pairs(self.root, self.layout, split) for split in _SPLITS[self.layout]}
            return {split: part_of(file for pair in found for file in pair) for split, found in pairs.items()}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_classes, self.in_chans = config.num_classes, config.channels
        of_colour = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        mean, std = of_colour if config.channels == 3 else ((0.0,) * config.channels, (1.0,) * config.channels)
        self.mean, self.std = config.mean or mean, config.std or std
        self.input_size = self.answer_size = config.crop or (config.size, config.size)

    def count(self, split: str) -> int | None:
        return None if split == "train" else len(self._files(split))

    def answer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        window, step = self.config.window, self.config.window_stride
        if window is None:
            return model(inputs)
        high, wide = inputs.shape[2:]
        total = inputs.new_zeros(len(inputs), self.num_classes, high, wide)
        seen = inputs.new_zeros(high, wide)
        for top, left in product(_starts(high, window, step), _starts(wide, window, step)):
            place = (..., slice(top, top + window), slice(left, left + window))
            total[place] += model(inputs[place])
            seen[place] += 1
        return total / seen

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        files, device = self._files(split), indices.device
        if split == "train":
            streams = Streams(derive(seed, "task", self.name, split), indices.cpu())
            draws = streams.integers(2**20, 5).tolist()
            found = [self._crop(*files[draw[0] % len(files)], *(part / 2**20 for part in draw[1:])) for draw in draws]
            if self.config.photometric:
                distortions = (streams.integers(2**20, 9) / 2**20).tolist()
                found = [
                    ([_distorted(image[0], by)], mask) for (image, mask), by in zip(found, distortions, strict=True)
                ]
        else:
            found = [self._whole(*files[index]) for index in indices.tolist()]
        images, masks = zip(*found, strict=True)
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        pixels = torch.stack([tensor(image) for image in images])
        return ((pixels - mean) / std).to(device), torch.from_numpy(np.stack(masks)).to(device)

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy of the pixels that are asked; 0 where a pass asks for none."""
        return super().loss(outputs, answers) if bool((answers != NOT_ASKED).any()) else 0 * outputs.sum()

    def _whole(self, file: Path, mask_file: Path) -> tuple[Bands, np.ndarray]:
        picture, mask = self._read(file, mask_file)
        return _scaled(picture, self.config.size / min(mask.size)), self._classes(mask, mask_file)

    def _crop(
        self, file: Path, mask_file: Path, scale: float, across: float, down: float, flip: float
    ) -> tuple[Bands, np.ndarray]:
        picture, mask = self._read(file, mask_file)
        (high, wide), (least, most) = self.input_size, self.config.scales
        factor = (least + scale * (most - least)) * self.config.size / min(mask.size)
        picture, [mask] = _scaled(picture, factor), _scaled([mask], factor, Image.Resampling.NEAREST)
        left, top = (
            int(part * (max(0, side - kept) + 1))
            for part, side, kept in zip((across, down), mask.size, (wide, high), strict=True)
        )
        box = (left, top, left + wide, top + high)
        classes = np.full((high, wide), NOT_ASKED, np.int64)
        there = self._classes(mask, mask_file)[top : top + high, left : left + wide]
        classes[: there.shape[0], : there.shape[1]] = there
        picture = [band.crop(box) for band in picture]
        if flip < self.config.flip_prob:
            return [band.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for band in picture], classes[:, ::-1]
        return picture, classes

    def _read(self, file: Path, mask_file: Path) -> tuple[Bands, Image.Image]:
        picture, mask = bands(file, self.in_chans), opened(mask_file)
        if picture[0].size != mask.size:
            sizes = ("×".join(map(str, each.size)) for each in (mask, picture[0]))
            raise ConfigError("{}: {} pixels, but its image has {}".format(mask_file, *sizes))
        if mask.mode not in ("L", "P"):
            raise ConfigError(f"{mask_file}: a mask holds one 8-bit number for each pixel, this one is {mask.mode}")
        return picture, mask

    def _classes(self, mask: Image.Image, file: Path) -> np.ndarray:
        values = np.asarray(mask).astype(np.int64)
        if self.config.layout == "ade20k":
            values = np.where(values == 0, 255, values - 1)
        wrong = values[(values >= self.num_classes) & (values != 255)]
        if len(wrong):
            raise ConfigError(f"{file}: class {wrong.max()}, num_classes is {self.num_classes}")
        return np.where(values == 255, NOT_ASKED, values)

    def _files(self, split: str) -> list[tuple[Path, Path]]:
        training, evaluated = _SPLITS[self.config.layout]
        if split == "test":
            return _pairs(self.config.root, self.config.layout, evaluated)
        return without(_pairs(self.config.root, self.config.layout, training), self.config.held_out, split)


def _starts(side: int, window: int, step: int) -> list[int]:
    """Where windows begin on a side; the last one ends with it."""
    last = max(0, side - window)
    return [*range(0, last, step), last]


def _scaled(picture: Bands, factor: float, how: Image.Resampling = Image.Resampling.BILINEAR) -> Bands:
    wide, high = (max(1, round(side * factor)) for side in picture[0].size)
    return [band.resize((wide, high), how) for band in picture]


def _distorted(image: Image.Image, draws: list[float]) -> Image.Image:
    """MMSegmentation's PhotoMetricDistortion of an RGB image; `draws` are nine numbers in 0 … 1.

    Each with probability ½: brightness ± 32 levels, then contrast, saturation and hue; contrast first or last.
    """

    def levels(values: np.ndarray, use: float, factor: float, by: float = 0) -> np.ndarray:
        return np.clip(values * factor + by, 0, 255).astype(np.uint8) if use < 0.5 else values

    def contrast(values: np.ndarray) -> np.ndarray:
        return levels(values, draws[2], 0.5 + draws[3])

    pixels = levels(np.asarray(image), draws[0], 1, 64 * draws[1] - 32)
    pixels = contrast(pixels) if draws[4] < 0.5 else pixels
    hue, saturation, value = Image.fromarray(pixels).convert("HSV").split()
    if draws[7] < 0.5:
        turn = round((2 * draws[8] - 1) * 18 * 256 / 180)
        hue = hue.point(lambda level: (level + turn) % 256)
    saturation = Image.fromarray(levels(np.asarray(saturation), draws[5], 0.5 + draws[6]))
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image if draws[4] < 0.5 else Image.fromarray(contrast(np.asarray(image)))


@cache
def _pairs(root: str, layout: str, split: str) -> list[tuple[Path, Path]]:
    """Images and their masks, in order. Raises ConfigError: no image, or one without a mask."""
    top = Path(root).expanduser()
    if layout == "cityscapes":
        images = sorted((top / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        masks = [
            top / "gtFine" / split / file.parent.name / file.name.replace("_leftImg8bit", "_gtFine_labelTrainIds")
            for file in images
        ]
        folder = top / "leftImg8bit" / split
    else:
        folder = top / "images" / split
        images = sorted(file for file in folder.glob("*") if file.suffix.lower() in (*SUFFIXES, *ARRAYS))
        masks = [
            top / ("annotations" if layout == "ade20k" else "masks") / split / f"{file.stem}.png" for file in images
        ]
    if not images:
        raise ConfigError(f"task 'scenes': no images in {folder} (layout {layout!r})")
    for image, mask in zip(images, masks, strict=True):
        if not mask.exists():
            raise ConfigError(f"{image}: its mask {mask} is not there")
    return list(zip(images, masks, strict=True))
