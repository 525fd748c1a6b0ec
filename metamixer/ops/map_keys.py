"""Query-key interactions that make a map: Q (B, C', H, W) and keys, mostly learned → scores (B, C'', H, W)."""

import torch
from pydantic import Field
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import later
from ..layers import spatial_conv
from ..operation import Coefficients, Layout, OperationConfig, QueryKey, Site, register
from ._common import (
    DepthwiseConfig,
    Kernel,
    ProjectionConfig,
    Ratio,
    check_tokens,
    depthwise,
    depthwise_without_bias,
    ending,
    linear,
)


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
        self.ending = ending(query_dim, config.activation, config.normalize, config.kernel_size)
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
class Focal(LearnedMap):
    """Context of growing reach: a chain of depthwise convolutions with GELU, and the mean over the map.

    A gate of each link and token, from X, weighs the sum; a 1×1 convolution joins the channels. Kernels grow by 2.
    Source: FocalNet, arXiv 2203.11926.
    """

    name = "focal"

    class Config(OperationConfig):
        kernel_size: Kernel = 3
        levels: int = Field(default=2, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        sizes = range(config.kernel_size, config.kernel_size + 2 * config.levels, 2)
        self.links = nn.ModuleList(depthwise_without_bias(query_dim, size) for size in sizes)
        self.act = nn.GELU()
        self.gate = nn.Conv2d(site.dim, config.levels + 1, 1)
        self.key = nn.Conv2d(query_dim, query_dim, 1)

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.shape[1]  # the mean

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        gates = self.gate(x)
        context = torch.zeros_like(q)
        for level, link in enumerate(self.links):
            q = self.act(link(q))
            context = context + q * gates[:, level : level + 1]
        overall = self.act(q.mean((2, 3), keepdim=True))
        return self.key(context + overall * gates[:, -1:])


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
        self.key = linear(query_dim, keys, config.norm)


@register
class Memory(LearnedMap):
    """Each token against a number of learned keys that is free of the width.

    With `kernel_size`, a depthwise convolution spreads the scores. Source: external attention, arXiv 2105.02358; with
    the convolution EfficientViM, arXiv 2411.15241.
    """

    name = "memory"

    class Config(OperationConfig):
        slots: int = Field(default=64, gt=0)
        kernel_size: Kernel | None = later(None)

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, config.slots)
        self.key = nn.Conv2d(query_dim, config.slots, 1, bias=False)
        self.spread = depthwise_without_bias(config.slots, config.kernel_size) if config.kernel_size else nn.Identity()

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.spread(self.key(q))


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
        return q[0].numel()

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        check_tokens("query_key 'token_linear'", q, self.tokens)
        scores = F.linear(q.flatten(2), self.weight, self.bias)  # (B, C', expansion·N)
        return scores.reshape(q.shape[0], q.shape[1] * self.expansion, q.shape[2], q.shape[3])
