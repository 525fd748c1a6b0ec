"""Coefficient-value interactions with values from X, summed by the coefficients of pairs → Y (B, C, H, W)."""

from typing import Literal

import torch
from pydantic import Field
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import later
from ..counters import register_cost
from ..layers import ConvNorm, spatial_conv
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, Site, register
from ._common import Function, Kernel, ProjectedConfig, Ratio, ending, linear, projection, split_heads, time_steps

Gate = Literal["none", "identity", "silu", "sigmoid"]


class ValuesConfig(ProjectedConfig):
    """What is done to values, and to their sums before the output projection.

    Values are a linear layer of X, or X itself (`linear`), with a depthwise convolution (`kernel_size`) and a function
    behind it. To their sums: `head_norm` divides each head by its root mean square, times learned numbers and
    this one; `local_kernel` adds a depthwise convolution of the values (LePE, arXiv 2107.00652), whose kernel with
    `local_from_input` is made of the mean of X (InLine, arXiv 2412.06590); `layer_norm` normalises each token; `gate`
    multiplies by a function of a linear layer of X (gated attention, arXiv 2505.06708).
    """

    linear: bool = later(True)
    kernel_size: Kernel | None = later(None)
    activation: Function = later("identity")
    head_norm: float | None = later(None, gt=0)
    local_kernel: Kernel | None = later(None)
    local_from_input: bool = later(False)
    layer_norm: bool = later(False)
    gate: Gate = later("none")


class Values(CoefficientValue):
    """Values from X, and an output projection."""

    source = "dynamic"

    Config = ValuesConfig

    def __init__(
        self,
        config: ValuesConfig,
        site: Site,
        coefficients: Coefficients,
        query_dim: int,
        channels: int | None = None,
    ) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.heads = coefficients.heads
        self.channels = channels = channels or coefficients.channels
        if not config.linear and site.dim != channels:
            raise ValueError(
                f"coefficient_value {self.name!r}: values without linear have the {site.dim} channels of the block, "
                f"and the coefficients ask for {channels}"
            )
        self.value = nn.Conv2d(site.dim, channels, 1) if config.linear else nn.Identity()
        self.ending = ending(channels, config.activation, kernel_size=config.kernel_size)
        self.norm = HeadNorm(channels // self.heads, config.head_norm) if config.head_norm else nn.Identity()
        size, made = config.local_kernel, config.local_from_input
        self.local = spatial_conv(channels, channels, size, norm=False) if size and not made else None
        self.kernel = InputKernel(site.dim, channels, self.heads, size) if size and made else None
        self.layer_norm = LayerNorm2d(channels) if config.layer_norm else nn.Identity()
        self.gate = output_gate(config.gate, site.dim, channels)
        self.proj = projection(self.name, config.projection, channels, site.dim)

    def values(self, x: Tensor) -> Tensor:
        """Values as a map, (B, C', H, W)."""
        return self.ending(self.value(x))

    def operand(self, v: Tensor, x: Tensor) -> Tensor:
        """What of the values is summed, (B, heads, d, N)."""
        return split_heads(v, self.heads)

    def merge(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Sums of values (B, heads, d, N) → Y, of the size of x."""
        y = self.skip(self.norm(y), v).reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        if self.local is not None:
            y = y + self.local(v)
        if self.kernel is not None:
            y = y + self.kernel(v, x)
        y = self.layer_norm(y)
        if self.gate is not None:
            y = y * self.gate(x)
        return self.proj(y)

    def skip(self, y: Tensor, v: Tensor) -> Tensor:
        """Sums of values (B, heads, d, N) with something of the token's own value, if an operation adds it."""
        return y


class PairValues(Values):
    """Values summed by coefficients of pairs of tokens (B, heads, N, N')."""

    takes = Layout.PAIRS

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return self.channels * coefficients.shape[-1]

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.values(x)
        return self.merge(self.operand(v, x) @ coefficients.transpose(-2, -1), v, x)


@register
class Matmul(PairValues):
    """Values of all tokens summed by the coefficients, V = Linear_V(X), then an output projection.

    Where keys are pooled, so is X before V. Source: arXiv 1706.03762; pooled: PVTv2, arXiv 2106.13797.
    """

    name = "matmul"

    def __init__(self, config: ValuesConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.pool and config.local_kernel:
            raise ValueError("coefficient_value 'matmul': pooled values have no local path; set local_kernel to null")
        self.pool = nn.AdaptiveAvgPool2d(coefficients.pool) if coefficients.pool else nn.Identity()

    def values(self, x: Tensor) -> Tensor:
        return self.ending(self.value(self.pool(x)))


@register
class AgentMatmul(Values):
    """Values of agents summed by the coefficients; an agent's value is its own attention over the values of X.

    Agents are the queries, pooled as the keys of the coefficients are (`pool` of 'scaled_dot').
    Source: agent attention, arXiv 2312.08874, without its position biases.
    """

    name = "agent_matmul"
    takes = Layout.PAIRS

    def __init__(self, config: ValuesConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.pool = nn.AdaptiveAvgPool2d(coefficients.pool) if coefficients.pool else nn.Identity()
        self.key = nn.Conv2d(site.dim, query_dim, 1)

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return coefficients.shape[-1] * (self.channels + self.heads)  # of each agent the value, and a softmax's sum

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        agents, k, v = split_heads(self.pool(q), self.heads), split_heads(self.key(x), self.heads), self.values(x)
        shares = (agents.transpose(-2, -1) * agents.shape[2] ** -0.5 @ k).softmax(-1)  # (B, heads, agents, N)
        found = self.operand(v, x) @ shares.transpose(-2, -1)  # (B, heads, d, agents)
        return self.merge(found @ coefficients.transpose(-2, -1), v, x)


@register
class StateSpace(PairValues):
    """Values weighed by their token, summed by the coefficients, plus D·V.

    Values have expansion·C channels, in heads of `head_dim`. A token's weight is -exp(a)·softplus(Linear(X)), with
    a and D one number for each head. The coefficients may have fewer heads, which several heads of values share.
    Source: the non-causal state-space duality of VSSD, arXiv 2407.18559.
    """

    name = "state_space"
    channel_counts = ("head_dim",)

    class Config(ValuesConfig):
        expansion: Ratio = 2.0
        head_dim: int = Field(default=64, gt=0)

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        channels = max(1, round(config.expansion * site.dim))
        super().__init__(config, site, coefficients, query_dim, channels)
        self.value_heads, left = divmod(channels, config.head_dim)
        if left or self.value_heads % self.heads:
            raise ValueError(
                f"coefficient_value 'state_space': {channels} channels in heads of {config.head_dim} do not divide "
                f"into the {self.heads} heads of the coefficients; change head_dim or the width"
            )
        self.step = time_steps(site.dim, self.value_heads)
        self.rate = nn.Parameter(torch.empty(self.value_heads, 1, 1).uniform_(1, 16).log())
        self.factor = nn.Parameter(torch.ones(self.value_heads, 1, 1))

    def operand(self, v: Tensor, x: Tensor) -> Tensor:
        weights = -self.rate.exp() * F.softplus(self.step(x))  # (B, value heads, H, W)
        weighed = split_heads(v, self.value_heads) * weights.flatten(2).unsqueeze(2)
        return split_heads(weighed.reshape(v.shape), self.heads)

    def skip(self, y: Tensor, v: Tensor) -> Tensor:
        return y + (split_heads(v, self.value_heads) * self.factor).reshape(y.shape)


@register
class PartMatmul(CoefficientValue):
    """Values of the first part·C channels summed by the coefficients; the other channels pass; then ReLU and 1×1.

    Source: single-head attention of SHViT, arXiv 2401.16456.
    """

    name = "part_matmul"
    takes = Layout.PAIRS
    source = "dynamic"

    class Config(OperationConfig):
        part: float = Field(default=0.25, gt=0, le=1)

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.heads = coefficients.heads
        channels = max(1, round(config.part * site.dim))
        if channels % self.heads:
            raise ValueError(
                f"coefficient_value 'part_matmul': {channels} channels do not divide into the {self.heads} heads of "
                "the coefficients; change part or the width"
            )
        self.split = [channels, site.dim - channels]
        self.value = linear(site.dim, channels, norm=True, part=config.part)
        self.proj = ConvNorm(site.dim, site.dim)

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return self.split[0] * coefficients.shape[-1]

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.merge(coefficients, self.value(x), x.split(self.split, dim=1)[1])

    def merge(self, coefficients: Tensor, v: Tensor, passing: Tensor) -> Tensor:
        """Values (B, part·C, H, W) summed by the coefficients, with the channels that pass beside them → Y."""
        y = coefficients @ split_heads(v, self.heads).transpose(-2, -1)  # (B, heads, N, d)
        y = y.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, v.shape[2:])  # channels-last, as X in training
        return self.proj(torch.cat([y, passing], dim=1).relu())


@register
class ChannelMatmul(Values):
    """Channels of the values summed by the coefficients, V = Linear_V(X), then an output projection.

    Source: XCiT, arXiv 2106.09681.
    """

    name = "channel_matmul"
    takes = Layout.CHANNELS

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.values(x)
        return self.merge(coefficients @ self.operand(v, x), v, x)


class HeadNorm(nn.Module):
    """Each head (B, heads, d, N) over its root mean square, times d learned numbers and a fixed one.

    Source: RMSNorm, arXiv 1910.07467.
    """

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 1))
        self.scale = scale

    def forward(self, y: Tensor) -> Tensor:
        return y * (y.square().mean(2, keepdim=True) + 1e-5).rsqrt() * (self.weight * self.scale)


register_cost(HeadNorm, lambda module, y: 0)  # as other norms


class InputKernel(nn.Module):
    """A depthwise convolution of v whose kernels two 1×1 layers make of the mean of x, head by head."""

    def __init__(self, in_dim: int, dim: int, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.make = nn.Sequential(
            nn.Conv2d(in_dim, dim, 1, groups=heads), nn.GELU(), nn.Conv2d(dim, dim * size**2, 1, groups=heads)
        )

    def state_size(self, v: Tensor, x: Tensor) -> int:
        return x.shape[1]  # the mean

    def forward(self, v: Tensor, x: Tensor) -> Tensor:
        batch, channels, height, width = v.shape
        kernels = self.make(x.mean((2, 3), keepdim=True)).reshape(batch * channels, 1, self.size, self.size)
        images = v.reshape(1, batch * channels, height, width)
        return F.conv2d(images, kernels, padding=self.size // 2, groups=batch * channels).reshape(v.shape)


def output_gate(function: Gate, in_dim: int, dim: int) -> nn.Module | None:
    """A function of a linear layer."""
    functions = {"identity": nn.Identity, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}
    return None if function == "none" else nn.Sequential(nn.Conv2d(in_dim, dim, 1), functions[function]())
