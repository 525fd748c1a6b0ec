"""What several operations share: parameter types, projections and what follows them, heads and windows."""

from math import log
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import later
from ..layers import ConvNorm, spatial_conv
from ..operation import OperationConfig


def _odd(value: int) -> int:
    if value < 1 or value % 2 == 0:
        raise ValueError(f"a kernel size is an odd number from 1, got {value}")
    return value


Kernel = Annotated[int, AfterValidator(_odd)]
Ratio = Annotated[float, Field(gt=0)]
Function = Literal["identity", "relu", "gelu", "silu", "elu_plus_one"]
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


def depthwise_without_bias(dim: int, kernel_size: int) -> nn.Conv2d:
    """A depthwise convolution that has weights alone."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)


class ProjectionConfig(OperationConfig):
    """What follows a projection to queries or keys: a depthwise convolution, a function, a normalisation.

    `normalize`: "channels" divides each token by its L2 norm, "tokens" each channel by its L2 norm over the
    map, "layer" is a LayerNorm over the channels of each token.
    """

    activation: Function = "identity"
    normalize: Normalize = "none"
    kernel_size: Kernel | None = later(None)


class ProjectedConfig(OperationConfig):
    """An output projection, to be left out where the channels already fit."""

    projection: bool = True


def ending(dim: int, activation: Function, normalize: Normalize = "none", kernel_size: int | None = None) -> nn.Module:
    """The modules that a `ProjectionConfig` asks for."""
    functions = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "elu_plus_one": EluPlusOne}
    modules = [spatial_conv(dim, dim, kernel_size, norm=False)] if kernel_size else []
    if activation != "identity":
        modules.append(functions[activation]())
    if normalize == "layer":
        modules.append(LayerNorm2d(dim))
    elif normalize != "none":
        modules.append(UnitNorm(over_tokens=normalize == "tokens"))
    return nn.Sequential(*modules) if modules else nn.Identity()


def linear(in_dim: int, out_dim: int, norm: bool, part: float | None = None) -> nn.Module:
    """A 1×1 convolution with bias, or with BatchNorm instead; with `part`, of the first part·in_dim channels."""
    if part is not None:
        first = FirstChannels(max(1, round(part * in_dim)))
        return nn.Sequential(first, linear(first.channels, out_dim, norm))
    return ConvNorm(in_dim, out_dim) if norm else nn.Conv2d(in_dim, out_dim, 1)


def projection(name: str, wanted: bool, in_dim: int, out_dim: int, norm: bool = False) -> nn.Module:
    """The output projection of a coefficient-value interaction, if wanted; a ValueError if it is needed."""
    if wanted:
        return linear(in_dim, out_dim, norm)
    if in_dim != out_dim:
        raise ValueError(f"coefficient_value {name!r}: {in_dim} channels to {out_dim} need projection=true")
    return nn.Identity()


def time_steps(in_dim: int, heads: int) -> nn.Conv2d:
    """A number for each token and head, whose softplus starts between 0.001 and 0.1 (Mamba-2, arXiv 2405.21060)."""
    layer = nn.Conv2d(in_dim, heads, 1)
    start = torch.empty(heads).uniform_(log(0.001), log(0.1)).exp()
    layer.bias = nn.Parameter(start.expm1().log())
    return layer


def at_least_single(x: Tensor) -> Tensor:
    """x with float32's precision or more. By the type, which fx does not know: its users wrap it."""
    return x if x.dtype == torch.float64 else x.float()


class EluPlusOne(nn.Module):
    """elu(x) + 1, a positive feature map (arXiv 2006.16236)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x.contiguous()) + 1  # in the format of the gradient, which comes from pairs of tokens


class FirstChannels(nn.Module):
    """The first channels of a map, normalised over channels and positions, without learned numbers.

    SHViT, arXiv 2401.16456; a linear layer with BatchNorm behind it makes up for the learned ones.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def state_size(self, x: Tensor) -> int:
        return 2  # mean and variance

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.narrow(1, 0, self.channels), 1)


class UnitNorm(nn.Module):
    """(B, C, H, W) with each token, or each channel's whole map, of L2 norm 1."""

    def __init__(self, over_tokens: bool) -> None:
        super().__init__()
        self.axis = 2 if over_tokens else 1

    def state_size(self, x: Tensor) -> int:
        return x.shape[1] if self.axis == 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(2), dim=self.axis).reshape(x.shape)


def heads_of(operation: str, channels: int, head_dim: int) -> int:
    """The number of heads of so many channels. Raises ValueError: some channels are left."""
    heads, left = divmod(channels, head_dim)
    if left:
        raise ValueError(
            f"{operation}: {channels} channels do not divide into heads of {head_dim}; change head_dim or the width"
        )
    return heads


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
