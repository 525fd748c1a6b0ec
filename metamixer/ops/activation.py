"""Activations: scores → coefficients of the same shape."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..operation import (
    ALL_LAYOUTS,
    KEYED_LAYOUTS,
    Activation,
    Coefficients,
    Layout,
    OperationConfig,
    Site,
    register,
)
from ._common import outside

torch.fx.wrap("log")  # of a shape, which is symbolic under fx


@register
class Identity(Activation):
    """Scores are the coefficients."""

    name = "identity"

    def forward(self, scores: Tensor) -> Tensor:
        return scores


@register
class Softmax(Activation):
    """Softmax over the keys (arXiv 1706.03762); of a neighbourhood, over the keys that lie on the map."""

    name = "softmax"

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        self.window = coefficients.kernel_size if coefficients.layout == Layout.NEIGHBOURHOOD else 0

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        if self.window:
            scores = scores.masked_fill(outside(scores[:, 0, :1], self.window), float("-inf"))
        return scores.softmax(self.key_axis)


@register
class L1Norm(Activation):
    """Scores divided by the sum of their magnitudes over the keys.

    Of non-negative scores that is the normalisation of linear attention (arXiv 2006.16236; EfficientViT,
    arXiv 2205.14756); the magnitude keeps the sum away from zero for scores of both signs.
    """

    name = "l1_norm"

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        self.eps = 1e-5

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        return scores / (scores.abs().sum(self.key_axis, keepdim=True) + self.eps)


class OfMean(Activation):
    """Scores times a slope plus an offset, over N keys; both follow from the mean of a query's scores.

    So sums over values need no map of scores: Q(KᵀV) and the mean of V do.
    """

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS

    def terms(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and offset by the mean of the scores, of its shape."""
        raise NotImplementedError

    def forward(self, scores: Tensor) -> Tensor:
        slope, offset = self.terms(scores.mean(self.key_axis, keepdim=True))
        return (slope * scores + offset) / scores.shape[self.key_axis]


@register
class UnitSum(OfMean):
    """Scores shifted so that a query's coefficients sum to 1: (s + 1 - mean s) / N (InLine, arXiv 2412.06590)."""

    name = "unit_sum"

    def terms(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(mean), 1 - mean


@register
class MagnitudeAware(OfMean):
    """Coefficients that sum to 1 and grow sharper with the scores: (s·(1 + 1/mean s) - mean s) / N.

    For positive scores. Source: MALA, arXiv 2507.00698.
    """

    name = "magnitude_aware"

    def terms(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        return 1 + 1 / (mean.abs() + 1e-6), -mean


@register
class Differential(Softmax):
    """The softmax of one map minus λ times that of the next, so that pairs of heads become one.

    λ = exp(a·b) - exp(c·d) + `start`, of four learned vectors. Source: differential transformer, arXiv 2410.05258,
    with one start of λ for all layers.
    """

    name = "differential"

    class Config(OperationConfig):
        start: float = 0.8

    def __init__(self, config: Config, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        heads, left = divmod(coefficients.heads, 2)
        if left:
            raise ValueError(
                f"activation 'differential' joins pairs of heads, and there are {coefficients.heads}; change head_dim"
            )
        self.coefficients = replace(coefficients, heads=heads)
        self.start = config.start
        self.factors = nn.Parameter(0.1 * torch.randn(4, coefficients.channels // coefficients.heads))

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return frozenset({Layout.PAIRS})

    def share(self) -> Tensor:
        """λ. The axis stays until the end: Core ML folds no numbers without one."""
        a, b, c, d = self.factors.unbind()
        return ((a * b).sum(0, keepdim=True).exp() - (c * d).sum(0, keepdim=True).exp() + self.start).squeeze()

    def forward(self, scores: Tensor) -> Tensor:
        maps = scores.softmax(self.key_axis)
        return maps[:, 0::2] - self.share() * maps[:, 1::2]


@register
class DoubleNorm(Activation):
    """Softmax over the tokens, then shares of the sum over keys (external attention, arXiv 2105.02358)."""

    name = "double_norm"

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return frozenset({Layout.MAP})

    def state_size(self, scores: Tensor) -> int:
        return scores.shape[1]  # the sum of a softmax

    def forward(self, scores: Tensor) -> Tensor:
        shares = scores.flatten(2).softmax(-1).reshape(scores.shape)  # (B, keys, H, W)
        return shares / (shares.sum(1, keepdim=True) + 1e-9)


class Elementwise(Activation):
    """A function of each score alone.

    With `over_keys` it is divided by the number of keys, which keeps the sum over values of the size of a
    mean: what lets ReLU stand in for softmax in attention (arXiv 2309.08586).
    """

    make_function: ClassVar[Callable[[], nn.Module]]

    class Config(OperationConfig):
        over_keys: bool = False

    def __init__(self, config: Config, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        self.over_keys = config.over_keys
        self.function = type(self).make_function()

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS if isinstance(config, cls.Config) and config.over_keys else ALL_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        coefficients = self.function(scores)
        return coefficients / scores.shape[self.key_axis] if self.over_keys else coefficients


@register
class GELU(Elementwise):
    """Gaussian error linear unit (arXiv 1606.08415)."""

    name = "gelu"
    make_function = nn.GELU


@register
class ReLU(Elementwise):
    """Rectified linear unit."""

    name = "relu"
    make_function = nn.ReLU


@register
class ReLU6(Elementwise):
    """ReLU cut off at 6 (arXiv 1704.04861), as in StarNet."""

    name = "relu6"
    make_function = nn.ReLU6


@register
class SiLU(Elementwise):
    """x · σ(x) (arXiv 1702.03118)."""

    name = "silu"
    make_function = nn.SiLU


class _SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


@register
class SquaredReLU(Elementwise):
    """ReLU(x)² (Primer, arXiv 2109.08668)."""

    name = "squared_relu"
    make_function = _SquaredReLU


class _StarReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu().square() + self.bias


@register
class StarReLU(Elementwise):
    """s · ReLU(x)² + b with learned s and b (MetaFormer baselines, arXiv 2210.13452)."""

    name = "star_relu"
    make_function = _StarReLU


@register
class Sigmoid(Elementwise):
    """σ(x); with `over_keys`, σ(x − log N) for N keys, whose sum is near a softmax's (arXiv 2409.04431)."""

    name = "sigmoid"
    make_function = nn.Sigmoid

    def forward(self, scores: Tensor) -> Tensor:
        return self.function(scores - log(scores.shape[self.key_axis]) if self.over_keys else scores)
