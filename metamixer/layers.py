"""Convolutions that train as branches with normalisation and fold into one for inference.

Shapes are (B, C, H, W). `fuse()` is the hook of `timm.models.reparameterize_model`; it returns a fully fused
module. Source: FFNet, arXiv 2406.02021; folding as in RepVGG, arXiv 2101.03697.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .counters import register_cost
from .initialise import Construction


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; padded to keep the size at stride 1 (odd kernels)."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        high, wide = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (high // 2, wide // 2)
        self.conv = nn.Conv2d(in_dim, out_dim, (high, wide), stride, padding=padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Conv2d:
        return fold_norm(self.conv, self.norm)


class BranchedConv(nn.Module):
    """A large and a smaller convolution of the same kind in parallel, summed; folds into the large one.

    All kernels are odd, so the smaller one is zero-padded evenly to the larger when folding. The smaller one may be a
    `Sum` of several.
    """

    def __init__(self, large: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.large = large
        self.small = small

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        fused = _like(_fused(self.large))
        assert fused.bias is not None
        fused.weight.zero_(), fused.bias.zero_()
        for branch in (self.large, *(self.small if isinstance(self.small, Sum) else [self.small])):
            conv = _fused(branch)
            assert conv.bias is not None
            high, wide = ((a - b) // 2 for a, b in zip(fused.kernel_size, conv.kernel_size, strict=True))
            fused.weight += nn.functional.pad(conv.weight, [wide, wide, high, high])
            fused.bias += conv.bias
        return fused


class Sum(nn.ModuleList):
    """Modules side by side, summed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self[0](x)
        for branch in self[1:]:  # type: ignore[attr-defined]
            y = y + branch(x)
        return y


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
    small_kernel: int | Literal["strips"] | None = None,
) -> nn.Module:
    """Depthwise K×K convolution (groups = in_dim), with or without BatchNorm and parallel smaller branches.

    Normalisation, kernel size and branch are independent of each other; FFNet's "rep-dw 7" is
    `kernel_size=7, norm=True, small_kernel=3`, its other sizes are `norm=False` in the token mixer. The branches
    `strips` are those of FFNet for segmentation: 1×K, K×1 and, from K = 5 on, (K-4)×(K-4).
    """

    def branch(high: int, wide: int) -> nn.Module:
        if norm:
            return ConvNorm(in_dim, out_dim, (high, wide), stride, groups=in_dim)
        return nn.Conv2d(in_dim, out_dim, (high, wide), stride, padding=(high // 2, wide // 2), groups=in_dim)

    k = kernel_size
    if small_kernel is None:
        return branch(k, k)
    if small_kernel == "strips":
        near = [branch(k - 4, k - 4)] if k > 4 else []
        return BranchedConv(branch(k, k), Sum([*near, branch(1, k), branch(k, 1)]))
    return BranchedConv(branch(k, k), branch(small_kernel, small_kernel))


@torch.no_grad()
def keep_rows(model: nn.Module, construction: Construction) -> None:
    """Cut the kernels of convolutions on maps one cell high to the one row that meets no padding; the sums stay.

    What torch drew for a weight is left to `initialise`; another value keeps its row.
    """
    for name, conv in list(model.named_modules()):
        if type(conv) is not nn.Conv2d or conv.kernel_size[0] == 1 or isinstance(conv.padding, str):
            continue
        row, left = divmod(conv.padding[0], conv.dilation[0])
        if left or row >= conv.kernel_size[0]:
            continue
        shape = (conv.in_channels, conv.out_channels, (1, conv.kernel_size[1]), conv.stride, (0, conv.padding[1]))
        bias = conv.bias is not None
        flat = nn.Conv2d(*shape, dilation=conv.dilation, groups=conv.groups, bias=bias)  # type: ignore[arg-type]
        if not construction.left_to_torch(conv, "weight"):
            flat.weight.copy_(conv.weight[:, :, row : row + 1])
        if conv.bias is not None and not construction.left_to_torch(conv, "bias"):
            flat.bias.copy_(conv.bias)  # type: ignore[union-attr]
        model.set_submodule(name, flat)


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
