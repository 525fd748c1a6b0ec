"""Coefficient-value interactions that gate: coefficients times values of the same place and channel."""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ..layers import spatial_conv
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, Site, register
from ._common import Function, Kernel, ProjectedConfig, Ratio, depthwise_without_bias, ending, projection


@register
class Hadamard(CoefficientValue):
    """Coefficients times values of the same place and channel, then an output projection.

    Values come from X, or from Q where mixers compute both branches of a gate from one projection: a linear
    layer (or none: then Q or X itself), a depthwise convolution of size `kernel_size` (on the last
    `conv_ratio`·C channels only, or on all), a function. The projection may have BatchNorm and a depthwise
    convolution of size `projection_kernel` behind it.
    Source: gated linear units, arXiv 1612.08083; MambaOut, arXiv 2405.07992; StarNet, arXiv 2403.19967;
    Conv2Former, arXiv 2211.11943; VAN, arXiv 2202.09741.
    """

    name = "hadamard"
    takes = Layout.MAP
    source = "dynamic"

    class Config(ProjectedConfig):
        values_from: Literal["input", "query"] = "input"
        linear: bool = True
        kernel_size: Kernel | None = None
        conv_ratio: Ratio | None = None
        activation: Function = "identity"
        projection_norm: bool = False
        projection_kernel: Kernel | None = None

        @model_validator(mode="after")
        def _parts_exist(self) -> "Hadamard.Config":
            if self.conv_ratio is not None and self.kernel_size is None:
                raise ValueError("conv_ratio is for the convolution that kernel_size asks for; set both")
            if not self.projection and (self.projection_norm or self.projection_kernel is not None):
                raise ValueError("projection_norm and projection_kernel belong to a projection, which is off")
            return self

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        channels = coefficients.channels
        self.from_query = config.values_from == "query"
        source_dim = query_dim if self.from_query else site.dim
        if not config.linear and source_dim != channels:
            raise ValueError(
                f"coefficient_value 'hadamard': without linear, values have the {source_dim} channels of the "
                f"{config.values_from}, coefficients {channels}; set the query_key's expansion to 1"
            )
        self.value = nn.Conv2d(source_dim, channels, 1) if config.linear else nn.Identity()
        self.conv = _partial_conv(config.kernel_size, config.conv_ratio, channels, site.dim)
        self.ending = ending(channels, config.activation)
        self.proj = projection(self.name, config.projection, channels, site.dim, config.projection_norm)
        if config.projection_kernel is not None:
            conv = spatial_conv(site.dim, site.dim, config.projection_kernel, norm=False)
            self.proj = nn.Sequential(self.proj, conv)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        v = self.ending(self.conv(self.value(q if self.from_query else x)))
        return self.proj(coefficients * v)


@register
class MultiOrder(CoefficientValue):
    """Coefficients times SiLU of context at three ranges, from Q, then an output projection.

    All channels pass a depthwise 5×5; then 3/8 of them a 5×5 with dilation 2 and 4/8 a 7×7 with dilation 3; a
    1×1 convolution joins them. Source: MogaNet, arXiv 2211.03295.
    """

    name = "multi_order"
    takes = Layout.MAP
    source = "dynamic"

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        channels = coefficients.channels
        if query_dim != channels or channels < 8:
            raise ValueError(
                f"coefficient_value 'multi_order': coefficients ({channels} channels) are those of the query "
                f"({query_dim}), at least 8; set the query_key's expansion to 1"
            )
        middle, far = channels * 3 // 8, channels // 2
        self.split = [channels - middle - far, middle, far]
        self.near = spatial_conv(channels, channels, 5, norm=False)
        self.middle = nn.Conv2d(middle, middle, 5, padding=4, dilation=2, groups=middle)
        self.far = nn.Conv2d(far, far, 7, padding=9, dilation=3, groups=far)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.act = nn.SiLU()
        self.proj = projection(self.name, config.projection, channels, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        near, middle, far = self.near(q).split(self.split, dim=1)
        v = self.mix(torch.cat([near, self.middle(middle), self.far(far)], dim=1))
        return self.proj(coefficients * self.act(v))


@register
class NestedHadamard(CoefficientValue):
    """Two gates in a row: the first third of the coefficients times Linear(X), a linear layer, times the rest.

    Source: HorNet's recursive gated convolution of order 2, arXiv 2207.14284.
    """

    name = "nested_hadamard"
    takes = Layout.MAP
    source = "dynamic"

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        few = max(1, coefficients.channels // 3)
        many = coefficients.channels - few
        self.split = [few, many]
        self.value = nn.Conv2d(site.dim, few, 1)
        self.widen = nn.Conv2d(few, many, 1)
        self.proj = projection(self.name, config.projection, many, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        first, second = coefficients.split(self.split, dim=1)
        return self.proj(self.widen(first * self.value(x)) * second)


@register
class HiddenStates(CoefficientValue):
    """A few states of the whole map, each a weighted sum of the tokens, mixed by a gate; the coefficients read them.

    A token's weight in a state is a product of a number and of a softmax over the tokens, both from X. The states
    pass h → Linear(h₁ ⊙ (SiLU(h₂) + D)) with h₁, h₂ = Linear(h). Source: HSM-SSD of EfficientViM, arXiv 2411.15241,
    without its A, which the softmax cancels.
    """

    name = "hidden_states"
    takes = Layout.MAP
    source = "dynamic"

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        states = coefficients.channels
        self.weights = nn.Sequential(
            nn.Conv2d(site.dim, 2 * states, 1, bias=False), depthwise_without_bias(2 * states, 3)
        )
        self.value = nn.Conv2d(site.dim, 2 * site.dim, 1, bias=False)
        self.direct = nn.Parameter(torch.ones(()))
        self.proj = nn.Conv2d(site.dim, site.dim, 1, bias=False)
        self.act = nn.SiLU()

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return coefficients.shape[1] * (x.shape[1] + 1)  # the states, and the sums of their softmax

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        number, share = self.weights(x).flatten(2).chunk(2, 1)  # (B, states, N) each
        states = x.flatten(2) @ (number * share.softmax(-1)).transpose(-2, -1)  # (B, C, states)
        h, z = self.value(states.unsqueeze(-1)).chunk(2, 1)
        states = self.proj(h * (self.act(z) + self.direct)).squeeze(-1)
        return (states @ coefficients.flatten(2)).reshape(x.shape)


class _PartialConv(nn.Module):
    """Depthwise convolution of the last channels; the others pass."""

    def __init__(self, kernel_size: int, passing: int, channels: int) -> None:
        super().__init__()
        self.split = [passing, channels]
        self.conv = spatial_conv(channels, channels, kernel_size, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        passing, convolved = x.split(self.split, dim=1)
        return torch.cat([passing, self.conv(convolved)], dim=1)


def _partial_conv(kernel_size: int | None, ratio: float | None, channels: int, dim: int) -> nn.Module:
    if kernel_size is None:
        return nn.Identity()
    convolved = channels if ratio is None else max(1, round(ratio * dim))
    if convolved > channels:
        raise ValueError(
            f"coefficient_value 'hadamard': conv_ratio {ratio} of {dim} channels is more than the {channels} "
            "values; lower it or raise the query_key's expansion"
        )
    if convolved == channels:
        return spatial_conv(channels, channels, kernel_size, norm=False)
    return _PartialConv(kernel_size, channels - convolved, convolved)
