"""Coefficient-value interactions: coefficients and values, from X or learned → Y (B, C, H, W)."""

from torch import Tensor, nn

from ..layers import ConvNorm, spatial_conv
from ..operation import CoefficientValue, Coefficients, Layout, OperationConfig, Site, register
from ._common import DepthwiseConfig, split_heads


@register
class Matmul(CoefficientValue):
    """Values of all tokens summed by the coefficients, V = Linear_V(X), then an output projection.

    Source: arXiv 1706.03762.
    """

    name = "matmul"
    takes = Layout.PAIRS
    source = "dynamic"

    class Config(OperationConfig):
        projection: bool = True

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.heads = coefficients.heads
        self.value = nn.Conv2d(site.dim, coefficients.channels, 1)
        self.proj = _projection("matmul", config.projection, coefficients.channels, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = split_heads(self.value(x), self.heads)  # (B, heads, d, N)
        y = v @ coefficients.transpose(-2, -1)  # (B, heads, d, N)
        return self.proj(y.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))


@register
class Hadamard(CoefficientValue):
    """Coefficients times values of the same place and channel, V = Linear_V(X), then an output projection."""

    name = "hadamard"
    takes = Layout.MAP
    source = "dynamic"

    class Config(OperationConfig):
        projection: bool = True

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.value = nn.Conv2d(site.dim, coefficients.channels, 1)
        self.proj = _projection("hadamard", config.projection, coefficients.channels, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.proj(coefficients * self.value(x))


@register
class Depthwise(CoefficientValue):
    """Coefficients spread by learned K×K values, V_W ∈ R^(d×k²): a depthwise convolution (FFNet)."""

    name = "depthwise"
    takes = Layout.MAP
    source = "static"

    class Config(DepthwiseConfig):
        pass

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.channels != site.dim:
            raise ValueError(
                f"coefficient_value 'depthwise' keeps the channels: it gets {coefficients.channels} coefficients "
                f"and the block has {site.dim}; set the query_key's expansion to 1"
            )
        self.value = spatial_conv(
            site.dim, site.dim, config.kernel_size, norm=config.norm, small_kernel=config.small_kernel
        )

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

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        channels = coefficients.channels
        self.value = ConvNorm(channels, site.dim) if config.norm else nn.Conv2d(channels, site.dim, 1)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.value(coefficients)


def _projection(name: str, wanted: bool, in_dim: int, out_dim: int) -> nn.Module:
    if wanted:
        return nn.Conv2d(in_dim, out_dim, 1)
    if in_dim != out_dim:
        raise ValueError(f"coefficient_value {name!r}: {in_dim} channels to {out_dim} need projection=true")
    return nn.Identity()
