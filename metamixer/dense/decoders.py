"""Decoders of segmentation: maps of several scales, finest first → one map.

Sources: UPerNet, arXiv 1807.10221; FFNet's released segmentation code (github.com/ysj9909/FFNet); the plain one is the
top-down path of FPN, arXiv 1612.03144.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..architecture import BlockConfig, StageConfig
from ..backbone import Block
from ..config import Config
from ..layers import ConvNorm
from ..operation import Site

Dropout = Annotated[float, Field(ge=0, lt=1)]


class FPNConfig(Config):
    """1×1 convolutions to one width, sums from coarse to fine, a 3×3 convolution."""

    name: Literal["fpn"] = "fpn"
    width: int = Field(default=128, gt=0)
    dropout: Dropout = 0.1


class UPerConfig(Config):
    """FPN with pyramid pooling on the coarsest map; `pools` are the sides of its pooled maps."""

    name: Literal["uper"] = "uper"
    width: int = Field(default=512, gt=0)
    pools: tuple[Annotated[int, Field(gt=0)], ...] = (1, 2, 3, 6)
    dropout: Dropout = 0.1


class FFNetDecoderConfig(BlockConfig):
    """All maps but the finest, side by side at the resolution of the first of them, then blocks of mixers.

    `blocks` work at their own width. `expansion` widens before the classifier. `activation_after_sum` is GELU after
    each residual sum. Core ML takes `bilinear` alone.
    """

    name: Literal["ffnet"] = "ffnet"
    blocks: StageConfig
    expansion: int = Field(default=4, gt=0)
    activation_after_sum: bool = True
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    drop_path_rate: Dropout = 0.0
    dropout: Dropout = 0.1


Decoder = Annotated[FPNConfig | UPerConfig | FFNetDecoderConfig, Field(discriminator="name")]


class FPN(nn.Module):
    """Maps of several scales, finest first → one map (B, width, H, W) of the finest scale."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNorm(each, width) for each in channels)
        self.smooth = ConvNorm(width, width, 3)
        self.out_dim = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        lateral = [conv(each) for conv, each in zip(self.laterals, maps, strict=True)]
        x = lateral[-1]
        for finer in lateral[-2::-1]:
            x = finer + resized(x, finer)
        return F.gelu(self.smooth(x))


class UPer(nn.Module):
    """The same by UPerNet's decoder, with ReLU."""

    def __init__(self, channels: list[int], width: int, pools: tuple[int, ...]) -> None:
        super().__init__()
        coarse = channels[-1]
        self.pools = pools
        self.pooled = nn.ModuleList(_conv_relu(coarse, width) for _ in pools)
        self.bottleneck = _conv_relu(coarse + len(pools) * width, width, 3)
        self.laterals = nn.ModuleList(_conv_relu(each, width) for each in channels[:-1])
        self.smooth = nn.ModuleList(_conv_relu(width, width, 3) for _ in channels[:-1])
        self.fuse_maps = _conv_relu(len(channels) * width, width, 3)
        self.out_dim = width

    def forward(self, maps: list[Tensor]) -> Tensor:
        coarse = maps[-1]
        pooled = [
            resized(conv(F.adaptive_avg_pool2d(coarse, side)), coarse)
            for side, conv in zip(self.pools, self.pooled, strict=True)
        ]
        found = [self.bottleneck(torch.cat([coarse, *pooled], 1))]
        for conv, finer in zip(reversed(self.laterals), maps[-2::-1], strict=True):  # type: ignore[call-overload]
            lateral = conv(finer)
            found.insert(0, lateral + resized(found[0], lateral))
        smooth = [conv(each) for conv, each in zip(self.smooth, found, strict=False)]
        return self.fuse_maps(torch.cat([resized(each, found[0]) for each in (*smooth, found[-1])], 1))


class FFNetDecoder(nn.Module):
    """The same by FFNet_seg's decoder, from the second finest map on."""

    def __init__(self, channels: list[int], config: FFNetDecoderConfig, site: Site) -> None:
        super().__init__()
        width = config.blocks.width
        self.squeeze = nn.Sequential(ConvNorm(sum(channels), sum(channels)), nn.GELU(), ConvNorm(sum(channels), width))
        after = nn.GELU() if config.activation_after_sum else None
        self.blocks = nn.Sequential(
            *(
                Block(config, config.blocks, i, site.within(str(i)), config.drop_path_rate, after)
                for i in range(config.blocks.depth)
            )
        )
        self.out_dim, self.resize = config.expansion * width, config.resize
        self.widen = nn.Sequential(ConvNorm(width, self.out_dim), nn.GELU())

    def forward(self, maps: list[Tensor]) -> Tensor:
        finest = maps[1]
        x = torch.cat([finest, *(resized(each, finest, self.resize) for each in maps[2:])], 1)
        return self.widen(self.blocks(self.squeeze(x)))


def resized(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """`x` at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=False)


def _conv_relu(in_dim: int, out_dim: int, kernel_size: int = 1) -> nn.Sequential:
    return nn.Sequential(ConvNorm(in_dim, out_dim, kernel_size), nn.ReLU())
