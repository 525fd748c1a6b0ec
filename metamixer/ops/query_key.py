"""Query-key interactions: Q (B, C', H, W) and keys, from X or learned → scores."""

from pydantic import Field
from torch import Tensor, nn

from ..layers import ConvNorm, spatial_conv
from ..operation import Coefficients, Layout, OperationConfig, QueryKey, Site, register
from ._common import DepthwiseConfig, Ratio, count_heads, split_heads


@register
class ScaledDot(QueryKey):
    """Scaled dot product of every query token with every key token, K = Linear_K(X) (arXiv 1706.03762)."""

    name = "scaled_dot"
    makes = Layout.PAIRS
    source = "dynamic"

    class Config(OperationConfig):
        head_dim: int = Field(default=32, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.heads = count_heads("query_key 'scaled_dot'", query_dim, config.head_dim)
        self.scale = config.head_dim**-0.5
        self.coefficients = Coefficients(Layout.PAIRS, query_dim, self.heads)
        self.key = nn.Conv2d(site.dim, query_dim, 1)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q = split_heads(q, self.heads)  # (B, heads, d, N)
        k = split_heads(self.key(x), self.heads)
        return (q.transpose(-2, -1) * self.scale) @ k  # (B, heads, N, N)


@register
class Depthwise(QueryKey):
    """Each position and channel against a learned K×K key, K_W ∈ R^(d×k²): a depthwise convolution (FFNet)."""

    name = "depthwise"
    makes = Layout.MAP
    source = "static"

    class Config(DepthwiseConfig):
        pass

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, query_dim)
        self.key = spatial_conv(
            query_dim, query_dim, config.kernel_size, norm=config.norm, small_kernel=config.small_kernel
        )

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.key(q)


@register
class Linear(QueryKey):
    """Each token against d_m learned keys, K_W ∈ R^(d_m×d): the first layer of an FFN. d_m = expansion·C."""

    name = "linear"
    makes = Layout.MAP
    source = "static"

    class Config(OperationConfig):
        expansion: Ratio
        norm: bool = False

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        keys = max(1, round(config.expansion * site.dim))
        self.coefficients = Coefficients(Layout.MAP, keys)
        self.key = ConvNorm(query_dim, keys) if config.norm else nn.Conv2d(query_dim, keys, 1)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.key(q)
