"""What several operations share: parameter types, endings of projections, heads and windows."""

from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNorm, spatial_conv
from ..operation import OperationConfig


def _odd(value: int) -> int:
    if value < 1 or value % 2 == 0:
        raise ValueError(f"a kernel size is an odd number from 1, got {value}")
    return value


Kernel = Annotated[int, AfterValidator(_odd)]
Ratio = Annotated[float, Field(gt=0)]
Function = Literal["identity", "relu", "gelu", "silu"]
Normalize = Literal["none", "channels", "tokens", "layer"]


class DepthwiseConfig(OperationConfig):
    """K×K depthwise convolution: kernel size, normalisation and parallel branches are independent."""

    kernel_size: Kernel = 7
    norm: bool = False
    small_kernel: Kernel | Literal["strips"] | None = None

    @model_validator(mode="after")
    def _branch_is_smaller(self) -> Any:
        if isinstance(self.small_kernel, int) and self.small_kernel >= self.kernel_size:
            raise ValueError(f"small_kernel {self.small_kernel} must be smaller than kernel_size {self.kernel_size}")
        return self


def depthwise(dim: int, config: DepthwiseConfig) -> nn.Module:
    """The convolution that a `DepthwiseConfig` asks for."""
    return spatial_conv(dim, dim, config.kernel_size, norm=config.norm, small_kernel=config.small_kernel)


class ProjectionConfig(OperationConfig):
    """What follows a projection to queries or keys: a function of each number, then a normalisation.

    `normalize`: "channels" divides each token by its L2 norm, "tokens" each channel by its L2 norm over the
    map, "layer" is a LayerNorm over the channels of each token.
    """

    activation: Function = "identity"
    normalize: Normalize = "none"


class ProjectedConfig(OperationConfig):
    """An output projection, to be left out where the channels already fit."""

    projection: bool = True


def ending(activation: Function, normalize: Normalize, dim: int) -> nn.Module:
    """The modules that a `ProjectionConfig` asks for."""
    functions = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
    modules = [functions[activation]()] if activation != "identity" else []
    if normalize == "layer":
        modules.append(LayerNorm2d(dim))
    elif normalize != "none":
        modules.append(UnitNorm(over_tokens=normalize == "tokens"))
    return nn.Sequential(*modules) if modules else nn.Identity()


def projection(name: str, wanted: bool, in_dim: int, out_dim: int, norm: bool = False) -> nn.Module:
    """The output projection of a coefficient-value interaction, if wanted; a ValueError if it is needed."""
    if wanted:
        return ConvNorm(in_dim, out_dim) if norm else nn.Conv2d(in_dim, out_dim, 1)
    if in_dim != out_dim:
        raise ValueError(f"coefficient_value {name!r}: {in_dim} channels to {out_dim} need projection=true")
    return nn.Identity()


class UnitNorm(nn.Module):
    """(B, C, H, W) with each token, or each channel's whole map, of L2 norm 1."""

    def __init__(self, over_tokens: bool) -> None:
        super().__init__()
        self.axis = 2 if over_tokens else 1

    def state_size(self, x: Tensor) -> int:
        return x.shape[1] if self.axis == 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(2), dim=self.axis).reshape(x.shape)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, heads·d, H, W) → (B, heads, d, N)."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, x.shape[2] * x.shape[3])


def check_tokens(operation: str, x: Tensor, tokens: int) -> None:
    """Refuse a map of another size than an operation's site; an assertion, since fx can trace that."""
    torch._assert(
        x.shape[2] * x.shape[3] == tokens,
        f"{operation} is built for maps of {tokens} tokens; build the network for this image size",
    )


def windows(x: Tensor, kernel_size: int) -> list[Tensor]:
    """k² views of x (B, C, H, W): at each position the neighbour at one offset, zero outside the map.

    Offsets run over rows, then columns. Shifted views cost no memory beside the padded map, unlike an unfold.
    """
    height, width = x.shape[2], x.shape[3]
    radius = kernel_size // 2
    x = F.pad(x, [radius, radius, radius, radius])
    views = []
    for i in range(kernel_size):
        rows = x.narrow(2, i, height)  # traces to a fraction of the nodes that slices do
        for j in range(kernel_size):
            views.append(rows.narrow(3, j, width))
    return views


def outside(like: Tensor, kernel_size: int) -> Tensor:
    """(1, 1, k², H, W): whether a neighbour lies off the map; H, W as in `like` (B, C, H, W)."""
    return torch.stack(windows(torch.ones_like(like[:1, :1]), kernel_size), 2) == 0
