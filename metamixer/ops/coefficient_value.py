"""Coefficient-value interactions: coefficients and values, from X or learned → Y (B, C, H, W).

Those that take pairs and neighbourhoods come first, then learned values of a map; gates are in `gate.py`.
"""

import torch
from pydantic import model_validator
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNorm
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, Site, register
from ._common import DepthwiseConfig, ProjectedConfig, check_tokens, depthwise, projection, split_heads, windows


class Projected(CoefficientValue):
    """Values V = Linear_V(X), and an output projection."""

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.heads = coefficients.heads
        self.value = nn.Conv2d(site.dim, coefficients.channels, 1)
        self.proj = projection(self.name, config.projection, coefficients.channels, site.dim)


@register
class Matmul(Projected):
    """Values of all tokens summed by the coefficients, V = Linear_V(X), then an output projection.

    Source: arXiv 1706.03762.
    """

    name = "matmul"
    takes = Layout.PAIRS
    source = "dynamic"

    def operand(self, x: Tensor) -> Tensor:
        """Values (B, heads, d, N)."""
        return split_heads(self.value(x), self.heads)

    def merge(self, y: Tensor, x: Tensor) -> Tensor:
        """Sums of values (B, heads, d, N) → Y, of the size of x."""
        return self.proj(y.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return self.value.out_channels * x.shape[2] * x.shape[3]

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.merge(self.operand(x) @ coefficients.transpose(-2, -1), x)


@register
class ChannelMatmul(Projected):
    """Channels of the values summed by the coefficients, V = Linear_V(X), then an output projection.

    Source: XCiT, arXiv 2106.09681.
    """

    name = "channel_matmul"
    takes = Layout.CHANNELS
    source = "dynamic"

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        y = coefficients @ split_heads(self.value(x), self.heads)  # (B, heads, d, N)
        return self.proj(y.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))


@register
class WindowedSum(Projected):
    """Values of the k×k neighbours summed by the coefficients, V = Linear_V(X), then an output projection.

    Values are zero outside the map. Source: NAT, arXiv 2204.07143.
    """

    name = "windowed_sum"
    takes = Layout.NEIGHBOURHOOD
    source = "dynamic"

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.kernel_size = coefficients.kernel_size

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return self.value.out_channels * self.kernel_size**2

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.value(x)
        shape = (v.shape[0], self.heads, v.shape[1] // self.heads, v.shape[2], v.shape[3])
        y = torch.zeros_like(v).reshape(shape)
        for i, neighbours in enumerate(windows(v, self.kernel_size)):
            y = y + coefficients[:, :, i : i + 1] * neighbours.reshape(shape)
        return self.proj(y.reshape(v.shape))


@register
class RelativeValues(Projected):
    """Learned values of the k×k offsets, V_W ∈ R^(C×k²), summed by the coefficients; an output projection.

    Y tells where the keys that match lie, not what is there: dynamic keys with static values. The values are
    those of relative position in arXiv 1803.02155, here alone. A 1×1 convolution in groups of heads.
    """

    name = "relative_values"
    takes = Layout.NEIGHBOURHOOD
    source = "static"

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        keys = coefficients.heads * coefficients.kernel_size**2
        self.value = nn.Conv2d(keys, coefficients.channels, 1, groups=coefficients.heads, bias=False)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.proj(self.value(coefficients.flatten(1, 2)))  # (B, heads·k², H, W) → (B, C', H, W)


@register
class Depthwise(CoefficientValue):
    """Coefficients spread by learned K×K values, V_W ∈ R^(d×k²): a depthwise convolution (FFNet)."""

    name = "depthwise"
    takes = Layout.MAP
    source = "static"

    Config = DepthwiseConfig

    def __init__(self, config: DepthwiseConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.channels != site.dim:
            raise ValueError(
                f"coefficient_value 'depthwise' keeps the channels: it gets {coefficients.channels} "
                f"coefficients and the block has {site.dim}; set the query_key's expansion to 1"
            )
        self.value = depthwise(site.dim, config)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.value(coefficients)


@register
class Linear(CoefficientValue):
    """Learned values summed by the coefficients, V_W ∈ R^(d_m×d): the second layer of an FFN."""

    name = "linear"
    takes = Layout.MAP
    source = "static"

    class Config(OperationConfig):
        norm: bool = False
        bias: bool = True

        @model_validator(mode="after")
        def _norm_has_a_bias(self) -> "Linear.Config":
            if self.norm and not self.bias:
                raise ValueError("bias=false is for norm=false: a BatchNorm has its own bias")
            return self

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        channels = coefficients.channels
        self.value = ConvNorm(channels, site.dim) if config.norm else nn.Conv2d(channels, site.dim, 1, bias=config.bias)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.value(coefficients)


@register
class LinearSkip(CoefficientValue):
    """Learned values summed by the coefficients, plus the query, then an output projection.

    Source: SwiftFormer's additive attention, arXiv 2303.15446.
    """

    name = "linear_skip"
    takes = Layout.MAP
    source = "static"

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.value = nn.Conv2d(coefficients.channels, query_dim, 1)
        self.proj = projection(self.name, config.projection, query_dim, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.proj(self.value(coefficients) + q)


@register
class TokenLinear(CoefficientValue):
    """Learned maps summed by the coefficients of each channel: a linear layer over tokens (MLP-Mixer).

    A channel's coefficients are e·N, in e maps next to each other, as query_key 'token_linear' makes them.
    Source: arXiv 2105.01601.
    """

    name = "token_linear"
    takes = Layout.MAP
    source = "static"
    fixed_size = True

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.channels % site.dim:
            raise ValueError(
                f"coefficient_value 'token_linear' needs as many maps for each of {site.dim} channels, got "
                f"{coefficients.channels} coefficients; set the query_key's expansion to a whole number"
            )
        self.tokens = site.height * site.width
        self.maps = coefficients.channels // site.dim
        self.weight = nn.Parameter(trunc_normal_(torch.empty(self.tokens, self.maps * self.tokens), std=0.02))
        self.bias = nn.Parameter(torch.zeros(self.tokens))

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return coefficients.numel()

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        check_tokens("coefficient_value 'token_linear'", x, self.tokens)
        flat = coefficients.reshape(x.shape[0], x.shape[1], self.maps * self.tokens)
        return F.linear(flat, self.weight, self.bias).reshape(x.shape)
