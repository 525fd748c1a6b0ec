"""RandAugment on a batch of uint8 images, one draw for each sample, equal in meaning to timm's on PIL images.

Source: Cubuk et al., arXiv 1909.13719, with the operations, magnitudes and noise of timm 1.0.31
(`timm.data.auto_augment`, transform sets "rand" and "rand-inc1"). Samples that drew the same operation are
processed together. The operations on grey levels equal Pillow's exactly, rounding included; the geometric
ones, in float32 where Pillow has float64, differ by one grey level on about one pixel in 500.

Shapes: B images in the batch, n samples that drew an operation, C channels (1 or 3), S the side.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Op = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, one argument for each, (n,) float64, and `fill`, (C,) uint8


# Operations on grey levels, equal to Pillow's.


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Each grey level replaced by its entry in `table`, which broadcasts to (n, C, 256) uint8."""
    n, channels = images.shape[:2]
    levels = images.flatten(2).long()
    return table.expand(n, channels, 256).gather(2, levels).view_as(images)


def _auto_contrast(images: Tensor, argument: Tensor, fill: Tensor) -> Tensor:
    """Stretches each channel to 0 … 255; a constant channel stays as it is."""
    levels = images.flatten(2)
    low = levels.amin(2, keepdim=True).double()  # (n, C, 1)
    high = levels.amax(2, keepdim=True).double()
    scale = torch.tensor(255.0, dtype=torch.float64) / (high - low)  # with a plain 255.0 torch takes a reciprocal
    table = torch.arange(256.0, dtype=torch.float64) * scale + -low * scale
    table = torch.where(high > low, table, torch.arange(256.0, dtype=torch.float64))
    return _look_up(images, table.clamp_(0, 255).to(torch.uint8))


def _equalize(images: Tensor, argument: Tensor, fill: Tensor) -> Tensor:
    """Equalises each channel's histogram; one with too few pixels beside its top level stays as it is."""
    n, channels = images.shape[:2]
    levels = images.flatten(2).long()
    bins = levels + 256 * torch.arange(n * channels).view(n, channels, 1)
    counts = torch.bincount(bins.flatten(), minlength=n * channels * 256).view(n, channels, 256)
    top = counts.gather(2, levels.amax(2, keepdim=True))  # (n, C, 1) pixels at the highest level present
    step = (levels.shape[2] - top) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256))
    return _look_up(images, table.to(torch.uint8))


def _by_level(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An operation that maps grey levels, (n, 1, 1, 1) arguments beside images, both int16, to grey levels."""

    def op(images: Tensor, argument: Tensor, fill: Tensor) -> Tensor:
        return function(images.short(), argument.short().view(-1, 1, 1, 1)).to(torch.uint8)

    return op


def _blend_with(other: Callable[[Tensor], Tensor]) -> Op:
    """An operation that is `other` where its factor is 0 and the image where it is 1; truncated, as Pillow's blend."""

    def op(images: Tensor, factor: Tensor, fill: Tensor) -> Tensor:
        degenerate = other(images).float()
        pixels = images.float().sub_(degenerate)
        pixels.mul_(factor.float().view(-1, 1, 1, 1)).add_(degenerate)
        return pixels.clamp_(0, 255).to(torch.uint8)

    return op


def _grey(images: Tensor) -> Tensor:
    """Pillow's conversion to "L", (n, 1, S, S) int32."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _mean_grey(images: Tensor) -> Tensor:
    return (_grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor_()


def _smooth(images: Tensor) -> Tensor:
    """Pillow's 3 × 3 kernel (5 in the middle, sum 13); the border stays as it was."""
    smooth = images.float()
    rows = smooth[:, :, :, :-2] + smooth[:, :, :, 1:-1] + smooth[:, :, :, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = smooth[:, :, 1:-1, 1:-1]
    inner.copy_(box.add_(inner, alpha=4).div_(13).add_(0.5).floor_())
    return smooth


# Geometric operations: `fill` where the source lies outside the image. Bicubic with a = -1, as Pillow's transform has
# it (its resize: -0.5), and truncated.


def _cubic_weights(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 for a place `d` between the middle two."""
    e = 1 - d
    return -d * e * e, 1 - d * d * (2 - d), 1 - e * e * (2 - e), -e * d * d


def _to_levels(values: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    # The lift keeps float32 from turning a whole level into the one below it.
    levels = values.add_(1e-3).clamp_(0, 255).to(torch.uint8)
    return torch.where(inside[:, None], levels, fill.view(1, -1, 1, 1))


def _centres(side: int) -> Tensor:
    return torch.arange(side, dtype=torch.float64) + 0.5


def _shift_rows(images: Tensor, shift: Tensor, fill: Tensor) -> Tensor:
    """Row y takes its pixels from `shift`[y] pixels further right; `shift` is (n, S) float64."""
    n, channels, side, _ = images.shape
    source = _centres(side) + shift[:, :, None]  # (n, S, S)
    base = shift.floor()
    weights = _cubic_weights((shift - base).float()[:, None, :, None])  # each (n, 1, S, 1)
    first = base.long()[:, :, None] + torch.arange(-1, side - 1)
    pixels, values = images.float(), torch.zeros(n, channels, side, side)
    for tap, weight in enumerate(weights):
        # (n, C, S, S), the same for all channels
        at = (first + tap).clamp_(0, side - 1)[:, None].expand(n, channels, side, side)
        values.add_(pixels.gather(3, at).mul_(weight))
    return _to_levels(values, (source >= 0) & (source < side), fill)


def _shear_x(images: Tensor, factor: Tensor, fill: Tensor) -> Tensor:
    return _shift_rows(images, factor[:, None] * _centres(images.shape[2]), fill)


def _translate_x(images: Tensor, fraction: Tensor, fill: Tensor) -> Tensor:
    """By a fraction of the side, to the left where it is positive."""
    side = images.shape[2]
    return _shift_rows(images, (fraction * side)[:, None].expand(-1, side), fill)


def _transposed(op: Op) -> Op:
    return lambda images, argument, fill: op(images.transpose(2, 3), argument, fill).transpose(2, 3)


def _rotate(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Counter-clockwise about the middle of the image."""
    n, channels, side, _ = images.shape
    angle = torch.deg2rad(degrees)[:, None, None]
    cos, sin, middle = angle.cos(), angle.sin(), side / 2
    x, y = _centres(side) - middle, (_centres(side) - middle)[:, None]
    source_x, source_y = cos * x - sin * y + middle, sin * x + cos * y + middle  # (n, S, S)
    inside = (source_x >= 0) & (source_x < side) & (source_y >= 0) & (source_y < side)
    base_x, base_y = (source_x - 0.5).floor(), (source_y - 0.5).floor()
    x_weights = torch.stack(_cubic_weights((source_x - 0.5 - base_x).float()), 1)  # (n, 4, S, S)
    y_weights = torch.stack(_cubic_weights((source_y - 0.5 - base_y).float()), 1)
    offsets = torch.arange(-1, 3).view(4, 1, 1)
    columns = (base_x.long()[:, None] + offsets).clamp_(0, side - 1)
    rows = (base_y.long()[:, None] + offsets).clamp_(0, side - 1)
    pixels = images.flatten(2).float()
    at = (rows[:, :, None] * side + columns[:, None]).view(n, 1, -1).expand(n, channels, -1)
    taps = pixels.gather(2, at).view(n, channels, 4, 4, side, side)
    values = torch.zeros(n, channels, side, side)
    for row in range(4):
        line = taps[:, :, row].mul_(x_weights[:, None])
        values.add_((line[:, :, 0] + line[:, :, 1] + line[:, :, 2] + line[:, :, 3]).mul_(y_weights[:, row, None]))
    return _to_levels(values, inside, fill)


_OPS: dict[str, Op] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _by_level(lambda level, _: 255 - level),
    # Pillow 12's, which makes a black image of 0 bits; 13 raises
    "Posterize": _by_level(lambda level, bits: level & (256 - 2 ** (8 - bits))),
    "Solarize": _by_level(lambda level, threshold: torch.where(level < threshold, level, 255 - level)),
    "SolarizeAdd": _by_level(lambda level, add: torch.where(level < 128, level + add, level)),
    "Color": _blend_with(_grey),
    "Contrast": _blend_with(_mean_grey),
    "Brightness": _blend_with(torch.zeros_like),
    "Sharpness": _blend_with(_smooth),
    "Rotate": _rotate,
    "ShearX": _shear_x,
    "ShearY": _transposed(_shear_x),
    "TranslateX": _translate_x,
    "TranslateY": _transposed(_translate_x),
}
OP_NAMES = tuple(_OPS)
NO_OP = -1


def apply_ops(images: Tensor, ops: np.ndarray, arguments: np.ndarray, fill: Tensor) -> None:
    """Applies to each sample its own operation, in place: (B, C, S, S) uint8, contiguous.

    `ops` is (B,) of places in OP_NAMES, or NO_OP; `arguments` is (B,) float64; `fill`, (C,) uint8, is the
    colour outside the image.
    """
    for op in np.unique(ops[ops != NO_OP]):
        rows = torch.from_numpy(np.flatnonzero(ops == op))
        drawn, argument = images.index_select(0, rows), torch.from_numpy(arguments)[rows]
        images.index_copy_(0, rows, _OPS[OP_NAMES[op]](drawn, argument, fill))


# What each sample draws.

_MAX_LEVEL = 10.0

# timm's arguments, offset + scale · level for a level of 0 … 1: (offset, scale, whole number, random sign).
_GENTLE = {
    "Posterize": (0, 4, True, False),
    "Solarize": (0, 256, True, False),
    "SolarizeAdd": (0, 110, True, False),
    "Color": (0.1, 1.8, False, False),
    "Contrast": (0.1, 1.8, False, False),
    "Brightness": (0.1, 1.8, False, False),
    "Sharpness": (0.1, 1.8, False, False),
    "Rotate": (0, 30, False, True),  # degrees
    "ShearX": (0, 0.3, False, True),
    "ShearY": (0, 0.3, False, True),
    "TranslateX": (0, 0.45, False, True),  # parts of the side
    "TranslateY": (0, 0.45, False, True),
}
_INCREASING = {
    **_GENTLE,
    "Posterize": (4, -4, True, False),
    "Solarize": (256, -256, True, False),
    "Color": (1, 0.9, False, True),
    "Contrast": (1, 0.9, False, True),
    "Brightness": (1, 0.9, False, True),
    "Sharpness": (1, 0.9, False, True),
}
_ARGUMENTS = [
    np.array([table.get(name, (0, 0, False, False)) for name in OP_NAMES]) for table in (_GENTLE, _INCREASING)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """How operations and arguments are drawn; see `parse_rand_augment` for the text form of timm."""

    magnitude: int = 10  # of 10
    magnitude_std: float = 0.0  # infinity: uniform between 0 and the magnitude
    layers: int = 2
    probability: float = 0.5  # of each layer
    increasing: bool = False  # every operation grows stronger with the magnitude

    DRAWS = 4  # uniform draws for a sample and layer

    def draw(self, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Operations, (B, layers) as places in OP_NAMES or NO_OP, and arguments, (B, layers) float64.

        `uniforms` is (B, layers, 4) on [0, 1): for the operation, its application, its magnitude, its sign.
        """
        choice, applied, strength, sign = np.moveaxis(uniforms, -1, 0)
        ops = (choice * len(OP_NAMES)).astype(np.int64)
        if math.isinf(self.magnitude_std):
            level = self.magnitude * strength
        elif self.magnitude_std > 0:
            quantile = torch.special.ndtri(torch.from_numpy(np.ascontiguousarray(strength))).numpy()
            level = self.magnitude + self.magnitude_std * quantile
        else:
            level = np.full_like(strength, self.magnitude)
        level = np.clip(level, 0.0, _MAX_LEVEL) / _MAX_LEVEL
        offset, scale, whole, random_sign = np.moveaxis(_ARGUMENTS[self.increasing][ops], -1, 0)
        change = scale * level
        change = np.where(whole, np.trunc(change), change)
        arguments = offset + np.where((random_sign == 1) & (sign > 0.5), -change, change)
        return np.where(applied < self.probability, ops, NO_OP), arguments


_SECTIONS = {"m": r"\d+", "n": r"\d+", "p": r"\d*\.?\d+", "mstd": r"\d+(\.\d+)?", "inc": r"[01]"}


def parse_rand_augment(text: str) -> RandAugment:
    """timm's text form, such as "rand-m9-mstd0.5-inc1": sections m, mstd, inc, n, p in any order, once each.

    timm's other sections (mmax, t) and anything it would pass over in silence raise ValueError.
    """
    first, *sections = text.split("-")
    values: dict[str, str] = {}
    for section in sections:
        key, value = re.fullmatch(r"([a-z]*)(.*)", section, re.DOTALL).groups()  # type: ignore[union-attr]
        if key not in _SECTIONS or key in values or not re.fullmatch(_SECTIONS[key], value):
            break
        values[key] = value
    if first != "rand" or len(values) != len(sections):
        raise ValueError(f'rand_augment must look like "rand-m9-mstd0.5-inc1" (m, mstd, inc, n, p), got {text!r}')
    probability, std = float(values.get("p", 0.5)), float(values.get("mstd", 0))
    if not 0 <= probability <= 1:
        raise ValueError(f"rand_augment's p must lie between 0 and 1, got {text!r}")
    return RandAugment(
        magnitude=int(values.get("m", 10)),
        magnitude_std=math.inf if std > 100 else std,  # timm's convention
        layers=int(values.get("n", 2)),
        probability=probability,
        increasing=values.get("inc", "0") == "1",
    )
