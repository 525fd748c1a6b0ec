"""Operations on several variables of a series: channels (B, M·D, 1, N) are D of each of M variables, one after another.

Source: FFNet's released forecasting code (github.com/ysj9909/FFNet), after ModernTCN (ICLR 2024).
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..layers import affine, fold_norm, spatial_conv
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, Query, QueryKey, Site, register
from ._common import Kernel, Ratio


class VariablesConfig(OperationConfig):
    """`variables` of the series; `dropout` of what leaves the operation."""

    variables: int = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def _swapped(x: Tensor, first: int) -> Tensor:
    """(B, first·second, H, W) → (B, second·first, H, W)."""
    return x.unflatten(1, (first, -1)).transpose(1, 2).flatten(1, 2)


def _channels_each(config: VariablesConfig, channels: int, name: str) -> int:
    each, left = divmod(channels, config.variables)
    if left:
        raise ValueError(f"{name!r}: {channels} channels do not divide into {config.variables} variables")
    return each


@register
class VariableMLP(Query):
    """An MLP over the variables, for each channel apart, whose second layer mixes the channels of each variable."""

    name = "variable_mlp"

    class Config(VariablesConfig):
        expansion: int = Field(default=2, gt=0)
        hidden_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.variables, each = config.variables, _channels_each(config, site.dim, self.name)
        hidden = config.expansion * site.dim
        self.fc1 = nn.Conv2d(site.dim, hidden, 1, groups=each)
        self.between = nn.Sequential(nn.Dropout(config.hidden_dropout), nn.GELU())
        self.fc2 = nn.Conv2d(hidden, site.dim, 1, groups=self.variables)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.BatchNorm2d(site.dim)

    def forward(self, x: Tensor) -> Tensor:
        each = x.shape[1] // self.variables
        y = self.between(self.fc1(_swapped(x, self.variables)))  # (B, D·2M, 1, N)
        return self.norm(self.dropout(self.fc2(_swapped(y, each))))

    def fuse(self) -> "VariableMLP":
        if isinstance(self.norm, nn.BatchNorm2d):
            self.fc2, self.norm = fold_norm(self.fc2, self.norm), nn.Identity()  # type: ignore[assignment]
        return self


@register
class VariableDepthwise(Query):
    """Depthwise convolutions of two sizes with BatchNorm, summed, then a BatchNorm that all variables share."""

    name = "variable_depthwise"

    class Config(VariablesConfig):
        kernel_size: Kernel = 51
        small_kernel: Kernel | None = 5

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.variables = config.variables
        self.proj = spatial_conv(site.dim, site.dim, config.kernel_size, norm=True, small_kernel=config.small_kernel)
        self.norm = nn.BatchNorm2d(_channels_each(config, site.dim, self.name))

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(x).unflatten(1, (self.variables, -1))
        return self.norm(y.flatten(0, 1)).unflatten(0, (-1, self.variables)).flatten(1, 2)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        conv = self.proj.fuse()  # type: ignore[operator]
        scale, shift = (each.repeat(self.variables) for each in affine(self.norm))
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias.mul_(scale).add_(shift)
        return conv


@register
class VariableLinear(QueryKey):
    """Each variable's tokens against learned keys of its own, `expansion` times as many as its channels."""

    name = "variable_linear"
    makes = Layout.MAP
    source = "static"

    class Config(VariablesConfig):
        expansion: Ratio = 2.0

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        keys = config.variables * max(1, round(config.expansion * _channels_each(config, query_dim, self.name)))
        self.coefficients = Coefficients(Layout.MAP, keys)
        self.key = nn.Conv2d(query_dim, keys, 1, groups=config.variables)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        return self.dropout(self.key(q))


@register
class VariableSum(CoefficientValue):
    """Learned values summed by the coefficients of all variables, for each channel apart."""

    name = "variable_sum"
    takes = Layout.MAP
    source = "static"

    Config = VariablesConfig

    def __init__(self, config: VariablesConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.variables, each = config.variables, _channels_each(config, site.dim, self.name)
        self.each = each
        self.value = nn.Conv2d(coefficients.channels, site.dim, 1, groups=each)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Any:
        y = self.value(_swapped(coefficients, self.variables))  # (B, D·M, 1, N)
        return self.dropout(_swapped(y, self.each))
