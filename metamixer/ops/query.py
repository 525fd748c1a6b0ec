"""Query projections: X (B, C, H, W) → Q (B, C', H, W)."""

from torch import Tensor, nn

from ..layers import ConvNorm, spatial_conv
from ..operation import OperationConfig, Query, Site, register
from ._common import DepthwiseConfig


@register
class Identity(Query):
    """The input itself, as in an FFN."""

    name = "identity"

    def __init__(self, config: OperationConfig, site: Site) -> None:
        super().__init__(config, site)
        self.out_dim = site.dim

    def forward(self, x: Tensor) -> Tensor:
        return x


@register
class Linear(Query):
    """Linear layer on each token (a 1×1 convolution with bias), or with BatchNorm instead of the bias.

    Without norm: self-attention (arXiv 1706.03762). With norm: FFNified attention (arXiv 2406.02021).
    """

    name = "linear"

    class Config(OperationConfig):
        norm: bool = False

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.out_dim = site.dim
        self.proj = ConvNorm(site.dim, site.dim) if config.norm else nn.Conv2d(site.dim, site.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


@register
class Depthwise(Query):
    """K×K depthwise convolution, the query of the ConvNeXt block (arXiv 2201.03545)."""

    name = "depthwise"

    class Config(DepthwiseConfig):
        pass

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.out_dim = site.dim
        self.proj = spatial_conv(
            site.dim, site.dim, config.kernel_size, norm=config.norm, small_kernel=config.small_kernel
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)
