"""Query-key interactions: Q (B, C', H, W) and keys, from X or learned → scores.

Those whose keys are the other tokens or channels come first, then those that make a map.
"""

import torch
from pydantic import Field
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNorm, spatial_conv
from ..operation import Coefficients, Layout, OperationConfig, QueryKey, Site, register
from ._common import (
    DepthwiseConfig,
    Kernel,
    ProjectionConfig,
    Ratio,
    check_tokens,
    depthwise,
    ending,
    outside,
    split_heads,
    windows,
)


class Compared(QueryKey):
    """Keys K = Linear_K(X), compared with the queries head by head."""

    source = "dynamic"
    channel_counts = ("head_dim",)

    class Config(OperationConfig):
        head_dim: int = Field(default=32, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int, kernel_size: int = 1) -> None:
        super().__init__(config, site, query_dim)
        self.heads, left = divmod(query_dim, config.head_dim)
        if left:
            raise ValueError(
                f"query_key {self.name!r}: {query_dim} channels do not divide into heads of {config.head_dim}; "
                "change head_dim or the width"
            )
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.coefficients = Coefficients(self.makes, query_dim, self.heads, kernel_size)
        self.key = nn.Conv2d(site.dim, query_dim, 1)


@register
class ScaledDot(Compared):
    """Scaled dot product of every query token with every key token, K = Linear_K(X) (arXiv 1706.03762).

    `activation` and `normalize` make feature maps of the keys, as in linear attention (arXiv 2006.16236); the
    query has its own. Heads of one channel are Hydra attention (arXiv 2209.07484).
    """

    name = "scaled_dot"
    makes = Layout.PAIRS

    class Config(ProjectionConfig, Compared.Config):
        scale: bool = True

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.scale = self.scale if config.scale else 1.0
        self.ending = ending(config.activation, config.normalize, query_dim)

    def operands(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries and keys, both (B, heads, d, N)."""
        return split_heads(q, self.heads) * self.scale, split_heads(self.ending(self.key(x)), self.heads)

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.numel()  # a key for each token

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q, k = self.operands(q, x)
        return q.transpose(-2, -1) @ k  # (B, heads, N, N)


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
        bias = trunc_normal_(torch.empty(query_dim // config.head_dim, config.kernel_size**2, 1, 1), std=0.02)
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


@register
class CrossCovariance(Compared):
    """Every query channel with every key channel of its head, over all tokens: scores (B, heads, d, d).

    Keys have L2 norm 1 over the tokens (the query's own is `normalize="tokens"`), so that scores are cosines,
    times a learned temperature of each head. Source: XCiT, arXiv 2106.09681.
    """

    name = "cross_covariance"
    makes = Layout.CHANNELS

    def __init__(self, config: Compared.Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.shape[1] * (self.head_dim + 1)  # the scores, and the norms of the keys

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        k = F.normalize(split_heads(self.key(x), self.heads), dim=-1)  # (B, heads, d, N)
        return split_heads(q, self.heads) @ k.transpose(-2, -1) * self.temperature


@register
class Hadamard(QueryKey):
    """Each position's query times its key, K = Linear_K(X), channel by channel.

    `pooled`: one query for the whole map times each key. It is the sum of all queries, weighted by a learned
    linear function of each that is L2-normalised over the tokens (SwiftFormer, arXiv 2303.15446).
    """

    name = "hadamard"
    makes = Layout.MAP
    source = "dynamic"

    class Config(ProjectionConfig):
        pooled: bool = False

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.key = nn.Conv2d(site.dim, query_dim, 1)
        self.ending = ending(config.activation, config.normalize, query_dim)
        self.pooled = config.pooled
        self.pool = nn.Conv2d(query_dim, 1, 1, bias=False) if config.pooled else nn.Identity()

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.shape[1] + 1 if self.pooled else 0  # the sum of the queries, and the norm of the weights

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        if self.pooled:
            weights = F.normalize(self.pool(q).flatten(2), dim=-1)  # (B, 1, N)
            q = (q.flatten(2) @ weights.transpose(-2, -1)).unsqueeze(-1)  # (B, C', 1, 1)
        return q * self.ending(self.key(x))


class LearnedMap(QueryKey):
    """Queries against learned keys: a layer from a map to a map."""

    makes = Layout.MAP
    source = "static"

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.key(q)  # type: ignore[operator]


@register
class Depthwise(LearnedMap):
    """Each position and channel against a learned K×K key, K_W ∈ R^(d×k²): a depthwise convolution.

    Source: FFNet, arXiv 2406.02021.
    """

    name = "depthwise"

    Config = DepthwiseConfig

    def __init__(self, config: DepthwiseConfig, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.key = depthwise(query_dim, config)


@register
class LargeKernel(LearnedMap):
    """A large learned key in three parts: depthwise k×k, depthwise dilated, 1×1 (VAN, arXiv 2202.09741)."""

    name = "large_kernel"

    class Config(OperationConfig):
        kernel_size: Kernel = 5
        dilated_kernel: Kernel = 7
        dilation: int = Field(default=3, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        far, dilation = config.dilated_kernel, config.dilation
        self.key = nn.Sequential(
            spatial_conv(query_dim, query_dim, config.kernel_size, norm=False),
            nn.Conv2d(query_dim, query_dim, far, padding=dilation * (far // 2), dilation=dilation, groups=query_dim),
            nn.Conv2d(query_dim, query_dim, 1),
        )


@register
class MultiScale(LearnedMap):
    """Depthwise k×k, added to it pairs of strips 1×s and s×1 of several lengths, then 1×1.

    Source: SegNeXt's multi-scale convolutional attention, arXiv 2209.08575.
    """

    name = "multi_scale"

    class Config(OperationConfig):
        kernel_size: Kernel = 5
        strips: tuple[Kernel, ...] = (7, 11, 21)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)

        def strip(height: int, width: int) -> nn.Conv2d:
            padding = (height // 2, width // 2)
            return nn.Conv2d(query_dim, query_dim, (height, width), padding=padding, groups=query_dim)

        self.key = spatial_conv(query_dim, query_dim, config.kernel_size, norm=False)
        self.strips = nn.ModuleList(nn.Sequential(strip(1, s), strip(s, 1)) for s in config.strips)
        self.mix = nn.Conv2d(query_dim, query_dim, 1)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        near = self.key(q)
        scores = near
        for strip in self.strips:
            scores = scores + strip(near)
        return self.mix(scores)


@register
class Linear(LearnedMap):
    """Each token against d_m learned keys, K_W ∈ R^(d_m×d): the first layer of an FFN. d_m = expansion·C."""

    name = "linear"

    class Config(OperationConfig):
        expansion: Ratio
        norm: bool = False

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        keys = max(1, round(config.expansion * site.dim))
        self.coefficients = Coefficients(Layout.MAP, keys)
        self.key = ConvNorm(query_dim, keys) if config.norm else nn.Conv2d(query_dim, keys, 1)


@register
class Memory(LearnedMap):
    """Each token against a number of learned keys that is free of the width.

    Source: external attention, arXiv 2105.02358.
    """

    name = "memory"

    class Config(OperationConfig):
        slots: int = Field(default=64, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, config.slots)
        self.key = nn.Conv2d(query_dim, config.slots, 1, bias=False)


@register
class TokenLinear(LearnedMap):
    """Each channel's map of N tokens against expansion·N learned maps: a linear layer over tokens.

    The scores of a channel fill `expansion` maps, next to each other: (B, C'·expansion, H, W).
    `open`: weights start near 0 and biases at 1, so that a gate made of the scores starts open (gMLP).
    Source: MLP-Mixer, arXiv 2105.01601; gMLP, arXiv 2105.08050.
    """

    name = "token_linear"
    fixed_size = True

    class Config(OperationConfig):
        expansion: int = Field(default=1, gt=0)
        open: bool = False

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, query_dim * config.expansion)
        self.tokens = site.height * site.width
        self.expansion = config.expansion
        maps = config.expansion * self.tokens
        weight = trunc_normal_(torch.empty(maps, self.tokens), std=1e-6 if config.open else 0.02)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.full((maps,), float(config.open)))

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.numel()

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        check_tokens("query_key 'token_linear'", q, self.tokens)
        scores = F.linear(q.flatten(2), self.weight, self.bias)  # (B, C', expansion·N)
        return scores.reshape(q.shape[0], q.shape[1] * self.expansion, q.shape[2], q.shape[3])
