"""Query projections: X (B, C, H, W) → Q (B, C', H, W)."""

from torch import Tensor, nn

from ..config import later
from ..layers import LayerScale
from ..operation import OperationConfig, Query, Site, register
from ._common import DepthwiseConfig, Normalize, ProjectionConfig, Ratio, depthwise, ending, linear


@register
class Identity(Query):
    """The input itself, as in an FFN."""

    name = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x


@register
class Linear(Query):
    """Linear layer on each token (a 1×1 convolution with bias), or with BatchNorm instead of the bias.

    Plain: self-attention (arXiv 1706.03762). With norm: FFNified attention (arXiv 2406.02021). With a
    function and a normalisation behind it: the feature maps of linear attention, the queries of gates.
    Queries have expansion·C channels, or as many as `channels` says. `part` takes the first part·C channels of X.
    """

    name = "linear"

    class Config(ProjectionConfig):
        norm: bool = False
        expansion: Ratio = 1.0
        channels: int | None = later(None, gt=0)
        part: float | None = later(None, gt=0, le=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.out_dim = config.channels or max(1, round(config.expansion * site.dim))
        self.proj = linear(site.dim, self.out_dim, config.norm, config.part)
        self.ending = ending(self.out_dim, config.activation, config.normalize, config.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self.proj(x))


@register
class Depthwise(Query):
    """K×K depthwise convolution, the query of the ConvNeXt block (arXiv 2201.03545), normalised or not."""

    name = "depthwise"

    class Config(DepthwiseConfig):
        normalize: Normalize = "none"

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.proj = depthwise(site.dim, config)
        self.ending = ending(site.dim, "identity", config.normalize)

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self.proj(x))


@register
class Decomposed(Query):
    """Linear layer, then SiLU(Q + γ·(Q − mean of Q over the map)): stresses what differs from the mean.

    γ is one factor per channel and starts at 1e-5. Source: MogaNet's feature decomposition, arXiv 2211.03295.
    """

    name = "decomposed"

    def __init__(self, config: OperationConfig, site: Site) -> None:
        super().__init__(config, site)
        self.proj = nn.Conv2d(site.dim, site.dim, 1)
        self.scale = LayerScale(site.dim, 1e-5)
        self.act = nn.SiLU()

    def state_size(self, x: Tensor) -> int:
        return self.out_dim  # the mean

    def forward(self, x: Tensor) -> Tensor:
        q = self.proj(x)
        return self.act(q + self.scale(q - q.mean((2, 3), keepdim=True)))
