"""Baselines outside the four slots: mixers whose linear map ignores the query, or that mix nothing."""

from math import log2

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..counters import register_cost
from ..layers import ConvNorm, affine
from ..operation import Baseline, OperationConfig, Site, register
from ._common import DepthwiseConfig, Kernel, at_least_single, check_tokens, depthwise, depthwise_without_bias


@register
class Identity(Baseline):
    """No mixing at all."""

    name = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x


@register
class Pooling(Baseline):
    """Average of the k×k neighbourhood minus the input (PoolFormer, arXiv 2111.11418)."""

    name = "pooling"

    class Config(OperationConfig):
        kernel_size: Kernel = 3

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.pool = nn.AvgPool2d(config.kernel_size, stride=1, padding=config.kernel_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(_for_pool(x)) - x


def _for_pool(x: Tensor) -> Tensor:
    # CUDA's gradient of a padded pool is wrong for channels-last maps (pytorch/pytorch#188344)
    return x.contiguous() if x.is_cuda else x


torch.fx.wrap("_for_pool")  # by the device, which fx does not know


@register
class Depthwise(Baseline):
    """One K×K depthwise convolution."""

    name = "depthwise"

    Config = DepthwiseConfig

    def __init__(self, config: DepthwiseConfig, site: Site) -> None:
        super().__init__(config, site)
        self.conv = depthwise(site.dim, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@register
class RepMixer(Baseline):
    """Depthwise k×k, 1×1 and identity branches, each with BatchNorm, minus a BatchNorm of the input.

    Folds into one depthwise convolution. The block's skip and layer scale are those of the authors' mixer.
    Source: FastViT, arXiv 2303.14189.
    """

    name = "rep_mixer"

    class Config(OperationConfig):
        kernel_size: Kernel = 3

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.large = ConvNorm(site.dim, site.dim, config.kernel_size, groups=site.dim)
        self.small = ConvNorm(site.dim, site.dim, 1, groups=site.dim)
        self.identity = nn.BatchNorm2d(site.dim)
        self.subtracted = nn.BatchNorm2d(site.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x) + self.identity(x) - self.subtracted(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        fused, small = self.large.fuse(), self.small.fuse()
        assert fused.bias is not None and small.bias is not None
        centre = fused.kernel_size[0] // 2
        fused.weight[:, :, centre, centre] += small.weight[:, :, 0, 0]
        fused.bias += small.bias
        for norm, sign in ((self.identity, 1), (self.subtracted, -1)):
            scale, shift = affine(norm)
            fused.weight[:, 0, centre, centre] += sign * scale
            fused.bias += sign * shift
        return fused


@register
class RandomMixing(Baseline):
    """Tokens summed by a random matrix that is never trained; each row is a softmax of uniform numbers.

    Source: RandFormer, arXiv 2210.13452.
    """

    name = "random_mixing"
    fixed_size = True
    matrix: Tensor

    def __init__(self, config: OperationConfig, site: Site) -> None:
        super().__init__(config, site)
        self.tokens = site.height * site.width
        self.register_buffer("matrix", torch.rand(self.tokens, self.tokens).softmax(-1))

    def state_size(self, x: Tensor) -> int:
        return x[0].numel()

    def forward(self, x: Tensor) -> Tensor:
        check_tokens("baseline 'random_mixing'", x, self.tokens)
        return nn.functional.linear(x.flatten(2), self.matrix).reshape(x.shape)


class Spectrum(nn.Module):
    """Each channel's 2-D spectrum times a learned complex one."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(site.dim, site.height, site.width // 2 + 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        weight = torch.view_as_complex(self.weight.contiguous())  # training makes it channels-last
        spectrum = torch.fft.rfft2(at_least_single(x), norm="ortho") * weight
        return torch.fft.irfft2(spectrum, [height, width], norm="ortho").to(x.dtype)


torch.fx.wrap("at_least_single")


def _spectrum_cost(spectrum: Spectrum, x: Tensor) -> int:
    """Two real transforms of N log₂ N each, and a complex product, which is four, for each frequency."""
    return round(2 * x.numel() * log2(x.shape[2] * x.shape[3])) + 2 * spectrum.weight.numel() * x.shape[0]


register_cost(Spectrum, _spectrum_cost)


@register
class GlobalFilter(Baseline):
    """A learned filter as large as the map, in the frequency domain (GFNet, arXiv 2107.00645)."""

    name = "global_filter"
    fixed_size = True

    def __init__(self, config: OperationConfig, site: Site) -> None:
        super().__init__(config, site)
        self.tokens = site.height * site.width
        self.filter = Spectrum(site)

    def state_size(self, x: Tensor) -> int:
        return x[0].numel()

    def forward(self, x: Tensor) -> Tensor:
        check_tokens("baseline 'global_filter'", x, self.tokens)
        return self.filter(x)


@register
class RecursivePyramid(Baseline):
    """Depthwise convolutions from a small map to the large one: each adds what the smaller maps gave, enlarged.

    One depthwise convolution of stride 2 makes all smaller maps. Source: RecNeXt's recursive convolution,
    arXiv 2412.19628.
    """

    name = "recursive_pyramid"

    class Config(OperationConfig):
        kernel_size: Kernel = 5
        levels: int = Field(default=2, gt=0)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        dim, size = site.dim, config.kernel_size
        self.down = nn.Conv2d(dim, dim, size, stride=2, padding=size // 2, groups=dim, bias=False)
        self.convs = nn.ModuleList(depthwise_without_bias(dim, size) for _ in range(config.levels + 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for _ in range(len(self.convs) - 1):
            maps.append(self.down(maps[-1]))
        y = torch.zeros_like(maps[-1])
        for i, conv in enumerate(self.convs):
            y = conv(maps[-1 - i] + y)
            if i < len(self.convs) - 1:
                larger = maps[-2 - i]
                y = F.interpolate(y, size=[larger.shape[2], larger.shape[3]], mode="bilinear")
        return y
