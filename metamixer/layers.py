"""Convolutions that train as branches with normalisation and fold into one for inference.

Shapes are (B, C, H, W). `fuse()` is the hook of `timm.models.reparameterize_model`; it returns a fully fused
module. Source: FFNet, arXiv 2406.02021; folding as in RepVGG, arXiv 2101.03697.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .counters import register_cost


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; padded to keep the size at stride 1 (odd kernels)."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Conv2d:
        return fold_norm(self.conv, self.norm)


class BranchedConv(nn.Module):
    """A large and a smaller convolution of the same kind in parallel, summed; folds into the large one.

    Both kernels are odd, so the smaller one is zero-padded evenly to the larger when folding.
    """

    def __init__(self, large: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.large = large
        self.small = small

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    def fuse(self) -> nn.Conv2d:
        large, small = _fused(self.large), _fused(self.small)
        fused = _like(large)
        pad = (large.kernel_size[0] - small.kernel_size[0]) // 2
        weight = large.weight + nn.functional.pad(small.weight, [pad] * 4)
        assert large.bias is not None and small.bias is not None and fused.bias is not None
        fused.weight.data.copy_(weight.data)
        fused.bias.data.copy_(large.bias.data + small.bias.data)
        return fused


class NormConvSkip(nn.Module):
    """`x + conv1x1(BN(x))`, the channel mixing of FFNet's downsampling; folds into one 1×1 convolution."""

    def __init__(self, dim: int, skip: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x))
        return x + y if self.skip else y

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        scale, shift = affine(self.norm)
        weight = self.conv.weight * scale[None, :, None, None]
        fused = _like(self.conv)
        assert fused.bias is not None
        fused.bias.copy_(self.conv.weight[:, :, 0, 0] @ shift)
        if self.skip:
            weight = weight + torch.eye(weight.shape[0], device=weight.device, dtype=weight.dtype)[..., None, None]
        fused.weight.copy_(weight)
        return fused


class LayerScale(nn.Module):
    """One learned factor per channel, shape (C, 1, 1) as in the released FFNet (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim, 1, 1), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


register_cost(LayerScale, lambda scale, x: 0)  # it folds into the layer before it


def spatial_conv(
    in_dim: int,
    out_dim: int,
    kernel_size: int,
    stride: int = 1,
    *,
    norm: bool,
    small_kernel: int | None = None,
) -> nn.Module:
    """Depthwise K×K convolution (groups = in_dim), with or without BatchNorm and a parallel smaller branch.

    Normalisation, kernel size and branch are independent of each other; FFNet's "rep-dw 7" is
    `kernel_size=7, norm=True, small_kernel=3`, its other sizes are `norm=False` in the token mixer.
    """

    def branch(size: int) -> nn.Module:
        if norm:
            return ConvNorm(in_dim, out_dim, size, stride, groups=in_dim)
        return nn.Conv2d(in_dim, out_dim, size, stride, padding=size // 2, groups=in_dim)

    return branch(kernel_size) if small_kernel is None else BranchedConv(branch(kernel_size), branch(small_kernel))


@torch.no_grad()
def fold_norm(conv: Any, norm: Any) -> Any:
    """The convolution of a convolution and the BatchNorm behind it, by the norm's running statistics."""
    # torch's own folding insists on eval mode; folding is only ever meant for inference
    training = norm.training
    conv.eval(), norm.eval()
    fused = fuse_conv_bn_eval(conv, norm)
    conv.train(training), norm.train(training)
    return fused.requires_grad_(conv.weight.requires_grad)


def _fused(module: nn.Module) -> nn.Conv2d:
    return module.fuse() if isinstance(module, ConvNorm) else module  # type: ignore[return-value]


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape, with bias."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).train(conv.training)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode as `x * scale + shift`."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
