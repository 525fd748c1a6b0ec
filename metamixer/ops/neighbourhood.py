"""Interactions in the neighbourhood layout: scores (B, heads, k², H, W) of k×k keys, and sums over their values."""

import torch
from pydantic import Field
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNorm
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, QueryKey, Site, register
from ._common import Kernel, ProjectedConfig, heads_of, outside, projection, windows
from .dot_product import Compared
from .values import Values, ValuesConfig


@register
class Neighbourhood(Compared):
    """Scaled dot product with the keys of the k×k window around each position, plus a bias for each offset.

    Scores (B, heads, k², H, W). Windows are cut at the border, and keys that are not on the map score 0 (the
    authors shift windows inwards instead, which needs maps of at least k×k). Source: NAT, arXiv 2204.07143.
    """

    name = "neighbourhood"
    makes = Layout.NEIGHBOURHOOD

    class Config(Compared.Config):
        kernel_size: Kernel = 7

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        # drawn first, so that it does not depend on the layer's draws
        heads = query_dim // (config.head_dim or query_dim)
        bias = trunc_normal_(torch.empty(heads, config.kernel_size**2, 1, 1), std=0.02)
        super().__init__(config, site, query_dim, config.kernel_size)
        self.kernel_size = config.kernel_size
        self.bias = nn.Parameter(bias)

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.shape[1] * self.kernel_size**2

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q = q * self.scale
        shape = (q.shape[0], self.heads, q.shape[1] // self.heads, q.shape[2], q.shape[3])
        products = [(q * k).reshape(shape).sum(2) for k in windows(self.key(x), self.kernel_size)]
        return (torch.stack(products, 2) + self.bias).masked_fill(outside(q, self.kernel_size), 0.0)


class Shifted(nn.Module):
    """Each of the k×k neighbours by a fixed shift plus a learned depthwise kernel, shared by the heads.

    (B, heads·d, H, W) → (B, heads, d, k², H, W). Source: Slide attention, arXiv 2304.04237.
    """

    shift: Tensor

    def __init__(self, head_dim: int, kernel_size: int) -> None:
        super().__init__()
        offsets = kernel_size**2
        self.head_dim = head_dim
        self.learned = nn.Conv2d(head_dim, head_dim * offsets, kernel_size, groups=head_dim)
        shift = torch.eye(offsets).reshape(offsets, 1, kernel_size, kernel_size).repeat(head_dim, 1, 1, 1)
        self.register_buffer("shift", shift, persistent=False)
        self.padding = kernel_size // 2

    def state_size(self, x: Tensor) -> int:
        # the convolution counts those of one head
        return (x.shape[1] - self.head_dim) * self.learned.kernel_size[0] ** 2

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        heads = x.reshape(-1, self.head_dim, height, width)
        kernels = self.learned.weight + self.shift
        moved = F.conv2d(heads, kernels, self.learned.bias, padding=self.padding, groups=self.head_dim)
        return moved.reshape(batch, channels // self.head_dim, self.head_dim, -1, height, width)


@register
class Slide(Neighbourhood):
    """Scaled dot product with the k×k neighbours, each by a fixed shift plus a learned depthwise kernel.

    The bias of an offset is added to its keys. Source: Slide attention, arXiv 2304.04237; keys off the map score 0.
    """

    name = "slide"

    class Config(Neighbourhood.Config):
        kernel_size: Kernel = 3

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.shifted = Shifted(self.head_dim, config.kernel_size)

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return 0  # that of `shifted`

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        keys = self.shifted(self.key(x)) + self.bias.unsqueeze(1)
        q = (q * self.scale).reshape(keys.shape[0], self.heads, self.head_dim, 1, x.shape[2], x.shape[3])
        return (q * keys).sum(2).masked_fill(outside(x, self.kernel_size), 0.0)


@register
class WindowKernel(QueryKey):
    """Learned keys of a large neighbourhood that score a small one: the weights of a kernel at each position.

    Depthwise k×k, 1×1 and ReLU, then 1×1 to window² scores for each head of `head_dim` neighbouring channels, under
    GroupNorm. Source: the large-kernel perception of LSNet, arXiv 2503.23135.
    """

    name = "window_kernel"
    makes = Layout.NEIGHBOURHOOD
    source = "static"
    channel_counts = ("head_dim",)

    class Config(OperationConfig):
        kernel_size: Kernel = 7
        window: Kernel = 3
        head_dim: int = Field(default=8, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        heads = heads_of("query_key 'window_kernel'", site.dim, config.head_dim)
        self.coefficients = Coefficients(Layout.NEIGHBOURHOOD, site.dim, heads, config.window)
        self.heads, scores = heads, heads * config.window**2
        self.key = nn.Sequential(
            ConvNorm(query_dim, query_dim, config.kernel_size, groups=query_dim),
            ConvNorm(query_dim, query_dim),
            nn.ReLU(),
            nn.Conv2d(query_dim, scores, 1),
            nn.GroupNorm(heads, scores),
        )

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return 2 * self.heads  # mean and variance of GroupNorm

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.key(q).reshape(q.shape[0], self.heads, -1, q.shape[2], q.shape[3])


@register
class WindowedSum(Values):
    """Values of the k×k neighbours summed by the coefficients, V = Linear_V(X), then an output projection.

    Values are zero outside the map. Source: NAT, arXiv 2204.07143.
    """

    name = "windowed_sum"
    takes = Layout.NEIGHBOURHOOD

    def __init__(self, config: ValuesConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.kernel_size = coefficients.kernel_size

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return self.channels * self.kernel_size**2

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.values(x)
        shape = (v.shape[0], self.heads, v.shape[1] // self.heads, v.shape[2], v.shape[3])
        y = torch.zeros_like(v).reshape(shape)
        for i, neighbours in enumerate(windows(v, self.kernel_size)):
            y = y + coefficients[:, :, i : i + 1] * neighbours.reshape(shape)
        return self.merge(y.flatten(3), v, x)


@register
class SlideSum(WindowedSum):
    """The same, with each neighbour's value by a fixed shift plus a learned depthwise kernel.

    Source: Slide attention, arXiv 2304.04237.
    """

    name = "slide_sum"

    def __init__(self, config: ValuesConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.shifted = Shifted(coefficients.channels // self.heads, coefficients.kernel_size)

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return 0  # that of `shifted`

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.values(x)
        y = (coefficients.unsqueeze(2) * self.shifted(v)).sum(3)  # (B, heads, d, H, W)
        return self.merge(y.flatten(3), v, x)


@register
class RelativeValues(CoefficientValue):
    """Learned values of the k×k offsets, V_W ∈ R^(C×k²), summed by the coefficients; an output projection.

    Y tells where the keys that match lie, not what is there: dynamic keys with static values. The values are
    those of relative position in arXiv 1803.02155, here alone. A 1×1 convolution in groups of heads.
    """

    name = "relative_values"
    takes = Layout.NEIGHBOURHOOD
    source = "static"

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        keys = coefficients.heads * coefficients.kernel_size**2
        self.value = nn.Conv2d(keys, coefficients.channels, 1, groups=coefficients.heads, bias=False)
        self.proj = projection(self.name, config.projection, coefficients.channels, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.proj(self.value(coefficients.flatten(1, 2)))  # (B, heads·k², H, W) → (B, C', H, W)
