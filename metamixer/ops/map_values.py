"""Coefficient-value interactions of maps with learned values → Y (B, C, H, W); gates are in `gate.py`."""

import torch
from pydantic import model_validator
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNorm
from ..operation import Coefficients, CoefficientValue, Layout, OperationConfig, Site, register
from ._common import DepthwiseConfig, ProjectedConfig, check_tokens, depthwise, projection


@register
class Depthwise(CoefficientValue):
    """Coefficients spread by learned K×K values, V_W ∈ R^(d×k²): a depthwise convolution (FFNet)."""

    name = "depthwise"
    takes = Layout.MAP
    source = "static"

    Config = DepthwiseConfig

    def __init__(self, config: DepthwiseConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.channels != site.dim:
            raise ValueError(
                f"coefficient_value 'depthwise' keeps the channels: it gets {coefficients.channels} "
                f"coefficients and the block has {site.dim}; set the query_key's expansion to 1"
            )
        self.value = depthwise(site.dim, config)

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
        bias: bool = True

        @model_validator(mode="after")
        def _norm_has_a_bias(self) -> "Linear.Config":
            if self.norm and not self.bias:
                raise ValueError("bias=false is for norm=false: a BatchNorm has its own bias")
            return self

    def __init__(self, config: Config, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        channels = coefficients.channels
        self.value = ConvNorm(channels, site.dim) if config.norm else nn.Conv2d(channels, site.dim, 1, bias=config.bias)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.value(coefficients)


@register
class LinearSkip(CoefficientValue):
    """Learned values summed by the coefficients, plus the query, then an output projection.

    Source: SwiftFormer's additive attention, arXiv 2303.15446.
    """

    name = "linear_skip"
    takes = Layout.MAP
    source = "static"

    Config = ProjectedConfig

    def __init__(self, config: ProjectedConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        self.value = nn.Conv2d(coefficients.channels, query_dim, 1)
        self.proj = projection(self.name, config.projection, query_dim, site.dim)

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return self.proj(self.value(coefficients) + q)


@register
class TokenLinear(CoefficientValue):
    """Learned maps summed by the coefficients of each channel: a linear layer over tokens (MLP-Mixer).

    A channel's coefficients are e·N, in e maps next to each other, as query_key 'token_linear' makes them.
    Source: arXiv 2105.01601.
    """

    name = "token_linear"
    takes = Layout.MAP
    source = "static"
    fixed_size = True

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__(config, site, coefficients, query_dim)
        if coefficients.channels % site.dim:
            raise ValueError(
                f"coefficient_value 'token_linear' needs as many maps for each of {site.dim} channels, got "
                f"{coefficients.channels} coefficients; set the query_key's expansion to a whole number"
            )
        self.tokens = site.height * site.width
        self.maps = coefficients.channels // site.dim
        self.weight = nn.Parameter(trunc_normal_(torch.empty(self.tokens, self.maps * self.tokens), std=0.02))
        self.bias = nn.Parameter(torch.zeros(self.tokens))

    def state_size(self, coefficients: Tensor, x: Tensor, q: Tensor) -> int:
        return coefficients[0].numel()

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        check_tokens("coefficient_value 'token_linear'", x, self.tokens)
        flat = coefficients.reshape(x.shape[0], x.shape[1], self.maps * self.tokens)
        return F.linear(flat, self.weight, self.bias).reshape(x.shape)
