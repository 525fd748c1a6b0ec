"""Training augmentation of small images: a whole uint8 batch at once on the CPU, one draw for each sample.

Same meaning as timm 1.0.31's `create_transform(is_training=True, interpolation="bicubic", re_mode="pixel")`:
random resized crop, horizontal flip, RandAugment, colour jitter (timm's `force_color_jitter`), normalisation, random
erasing.
Sources: Szegedy et al., arXiv 1409.4842 (crop); Cubuk et al., arXiv 1909.13719 (RandAugment); Zhong et al.,
arXiv 1708.04896 (erasing).

A sample's result depends on (seed, epoch, its index) and its pixels alone, to the last bit, whatever the
batch: draws are counter-based, and the sums of the resize are exact in float32 (see `_crop_weights`).

Shapes: B images in the batch, C channels (1 or 3), H × W the input, S the side of the output.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..rng import derive, noise, uniforms
from .data_config import DataConfig
from .randaugment import OP_NAMES, RandAugment, apply_ops, parse_rand_augment
from .recipe import Recipe

_ATTEMPTS = 10  # at a box that fits, as in timm and torchvision
_BOX_DRAWS = 2 * _ATTEMPTS + 2
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_RATIO = (0.3, 1 / 0.3)
_JITTER_OPS = np.array([OP_NAMES.index(name) for name in ("Brightness", "Contrast", "Color")])

_Draw = Callable[[str, int], np.ndarray]  # purpose and count to uniform draws, (B, count)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std: (B, C, H, W) uint8 to float32, the same shape in channels-last memory."""
    batch, channels, height, width = images.shape
    levels = torch.empty(batch, height, width, channels, dtype=torch.uint8)
    for channel in range(channels):  # NumPy interleaves channels faster than torch
        levels.numpy()[..., channel] = images.numpy()[:, channel]
    pixels = levels.float()
    # Rows as long as an image: broadcasting over C alone would run in loops of 3.
    offset, scale = (
        torch.tensor(values, dtype=torch.float32).expand(pixels.shape[1:]).contiguous() for values in (mean, std)
    )
    return pixels.div_(255).sub_(offset).div_(scale).permute(0, 3, 1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic resize, equal to Pillow's: (B, C, H, W) uint8 to (B, C, size, size) uint8."""
    # Pillow's fixed point has 22 bits behind the point: exact in float64.
    height, width = (np.rint(_bicubic_weights(side, size) * 2**22) * 2.0**-22 for side in images.shape[2:])
    return _resample(images, torch.from_numpy(height)[None], torch.from_numpy(width)[None])


def _bicubic_weights(length: int, size: int) -> np.ndarray:
    """Pillow's bicubic weights (a = -0.5, wider when shrinking), (size, length), for `length` pixels."""
    scale = length / size
    stretch = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    x = np.abs((np.arange(length)[None, :] + 0.5 - centre) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@functools.lru_cache(maxsize=8)
def _crop_weights(length: int, size: int) -> np.ndarray:
    """The weights of every crop from a side of `length` pixels: [crop length, offset] is (size, length).

    Rounded to multiples of 2**-15, each row summing to 1: a sum of products with 8-bit pixels then fits
    float32's 24 bits, so that a matrix product is exact, the same in any order of summation, on any machine.
    """
    padded = np.zeros((length + 1, size, 2 * length), np.float32)
    for crop in range(1, length + 1):
        steps = np.rint(_bicubic_weights(crop, size) * 2**15)
        steps[np.arange(size), steps.argmax(1)] += 2**15 - steps.sum(1)
        padded[crop, :, length : length + crop] = steps * 2.0**-15
    windows = np.lib.stride_tricks.sliding_window_view(padded, length, axis=2)
    return windows[:, :, ::-1].transpose(0, 2, 1, 3)  # from (crop, size, offset, length)


def _resample(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Rows, then columns, rounded to grey levels between as in Pillow: (B, C, H, W) to (B, C, S, S) uint8.

    The weights are (B or 1, S, H) and (B or 1, S, W), float32 or float64.
    """
    batch, channels, height, width = images.shape
    size = vertical.shape[1]
    rows = images.permute(0, 2, 1, 3).contiguous()
    pixels = rows.to(vertical.dtype).view(batch, height * channels, width)
    pixels = torch.bmm(pixels, horizontal.transpose(1, 2).expand(batch, -1, -1))  # (B, H·C, S)
    pixels = pixels.add_(0.5).floor_().clamp_(0, 255).view(batch, height, channels * size)
    pixels = torch.bmm(vertical.expand(batch, -1, -1), pixels)  # (B, S, C·S)
    levels = pixels.add_(0.5).clamp_(0, 255).numpy().astype(np.uint8)  # faster than torch's cast
    return torch.from_numpy(levels).view(batch, size, channels, size).permute(0, 2, 1, 3).contiguous()


def _random_boxes(
    draws: np.ndarray,
    limit: tuple[int, int],
    image: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Boxes of random area and aspect, (B, 4) int64 as (top, left, height, width), from uniforms (B, 22).

    `scale` is in parts of the image's area, `ratio` is width over height, drawn evenly in its logarithm. The
    first of ten attempts no larger than `limit` (height, width) is placed in the image; where none is, both
    sides are 0.
    """
    height, width = image
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, :_ATTEMPTS])
    aspect = np.exp(log_low + (log_high - log_low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS])
    tall, wide = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))  # (B, 10)
    fits = (tall <= limit[0]) & (wide <= limit[1])
    first = np.arange(len(draws)), fits.argmax(1)
    sides = np.where(fits.any(1)[:, None], np.stack([tall[first], wide[first]], 1), 0)
    places = np.floor(draws[:, 2 * _ATTEMPTS :] * (np.array(image) - sides + 1))
    return np.concatenate([places, sides], 1).astype(np.int64)


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box within the aspect ratios, as (top, left, height, width)."""
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide


class BatchAugment:
    """Augments a batch: (B, C, H, W) uint8 to (B, C, S, S) float32, normalised, in channels-last memory.

    `data` gives S and the statistics, `recipe` the augmentation.
    """

    def __init__(self, data: DataConfig, recipe: Recipe, seed: int) -> None:
        self.data, self.recipe, self.seed = data, recipe, seed
        self.rand_augment = None if recipe.rand_augment is None else parse_rand_augment(recipe.rand_augment)

    def __call__(self, images: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """The augmented batch; `indices` (B,) are the samples' numbers in the data set. The input is kept."""

        def draw(purpose: str, count: int) -> np.ndarray:
            return uniforms(derive(self.seed, "augment", purpose), epoch, indices, count)

        levels = self._crop(images, draw)
        if self.recipe.flip_prob > 0:
            flipped = torch.from_numpy(np.flatnonzero(draw("flip", 1)[:, 0] < self.recipe.flip_prob))
            levels.index_copy_(0, flipped, levels.index_select(0, flipped).flip(-1))
        fill = torch.tensor([min(255, round(255 * value)) for value in self.data.mean], dtype=torch.uint8)
        for ops, arguments in self._draw_ops(draw):
            apply_ops(levels, ops, arguments, fill)
        normalised = normalise(levels, self.data.mean, self.data.std)
        if self.recipe.erase_prob > 0:
            self._erase(normalised, draw("erase", 1 + _BOX_DRAWS), epoch, indices)
        return normalised

    def _crop(self, images: Tensor, draw: _Draw) -> Tensor:
        """(B, C, S, S) uint8, contiguous, in memory of its own."""
        (height, width), size = images.shape[2:], self.data.image_size
        scale, ratio = self.recipe.crop_scale, self.recipe.crop_ratio
        if scale[0] == 1 and ratio[0] <= 1 <= ratio[1] and height == width == size:
            return images.clone(memory_format=torch.contiguous_format)  # of a square only the whole fits
        boxes = _random_boxes(draw("crop", _BOX_DRAWS), (height, width), (height, width), scale, ratio)
        boxes[boxes[:, 2] == 0] = _central_crop(height, width, ratio)
        top, left, tall, wide = boxes.T
        vertical = torch.from_numpy(_crop_weights(height, size)[np.maximum(tall, 1), top])
        horizontal = torch.from_numpy(_crop_weights(width, size)[np.maximum(wide, 1), left])
        return _resample(images, vertical, horizontal)

    def _draw_ops(self, draw: _Draw) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Operations and arguments for `apply_ops`, each (B,), by layer: RandAugment's, then colour jitter's."""
        if self.rand_augment is not None:
            layers = self.rand_augment.layers
            draws = draw("ops", layers * RandAugment.DRAWS)
            ops, arguments = self.rand_augment.draw(draws.reshape(len(draws), layers, RandAugment.DRAWS))
            yield from zip(ops.T, arguments.T, strict=True)
        if self.recipe.color_jitter > 0:
            order, strength = np.split(draw("jitter", 2 * len(_JITTER_OPS)), 2, axis=1)
            low, high = max(0.0, 1 - self.recipe.color_jitter), 1 + self.recipe.color_jitter
            yield from zip(_JITTER_OPS[order.argsort(axis=1)].T, (low + (high - low) * strength).T, strict=True)

    def _erase(self, normalised: Tensor, draws: np.ndarray, epoch: int, indices: np.ndarray) -> None:
        """Fills one rectangle in some of the samples, in place; it is always smaller than the image."""
        size, channels = self.data.image_size, len(self.data.mean)
        rows = np.flatnonzero(draws[:, 0] < self.recipe.erase_prob)
        boxes = _random_boxes(draws[rows, 1:], (size - 1, size - 1), (size, size), _ERASE_AREA, _ERASE_RATIO)
        top, left, tall, wide = boxes.T[:, :, None]
        side = np.arange(size)
        in_rows = (side >= top) & (side < top + tall)  # (n, S)
        in_columns = (side >= left) & (side < left + wide)
        mask = in_rows[:, :, None] & in_columns[:, None, :]  # (n, S, S)
        sample, pixel = np.divmod(np.flatnonzero(mask), size * size)
        positions = (pixel * channels)[:, None] + np.arange(channels)
        samples = rows[sample]
        values = noise(derive(self.seed, "augment", "noise"), epoch, indices[samples][:, None], positions)
        flat = normalised.permute(0, 2, 3, 1).numpy().reshape(-1, channels)  # a view of channels-last memory
        flat[samples * size * size + pixel] = values
