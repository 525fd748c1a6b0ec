"""Super-resolution: blocks of mixers at one resolution, then pixel shuffle; FFNetSR.

Source: FFNet's released super-resolution code (github.com/ysj9909/FFNet).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..architecture import Asked, BlockConfig, StageConfig
from ..backbone import Block
from ..config import parse
from ..operation import Site


class SuperResolverConfig(BlockConfig):
    """`blocks` of mixers at the resolution of the input; the output is `scale` times as high and wide."""

    network: Literal["super_resolver"] = "super_resolver"
    blocks: StageConfig
    scale: int = Field(default=2, ge=2, le=4)


class SuperResolver(nn.Module):
    """Images (B, in_chans, H, W) → (B, in_chans, scale·H, scale·W): what is added to each pixel, repeated.

    `drop_path_rate` is that of every block.
    """

    def __init__(self, config: SuperResolverConfig, asked: Asked) -> None:
        super().__init__()
        self.num_classes, self.scale = asked.num_classes, config.scale
        stage, out = config.blocks, asked.in_chans * config.scale**2
        site = Site(stage.width, *asked.img_size, "blocks", asked.seed)
        self.stem = nn.Conv2d(asked.in_chans, stage.width, 3, padding=1)
        blocks = (Block(config, stage, i, site.within(str(i)), asked.drop_path_rate) for i in range(stage.depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(stage.width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.repeat_interleave(self.scale**2, 1)
        return F.pixel_shuffle(self.head(self.blocks(self.stem(x))) + repeated, self.scale)


def ffnet_sr(depth: int = 36, width: int = 96, token_mixer: Any = None, **rest: Any) -> SuperResolverConfig:
    """FFNetSR: 36 blocks (light) or 48, without norms; by default with FFNified attention of 3×3 convolutions."""
    conv = {"name": "depthwise", "kernel_size": 3}
    ffnified = {"query": "linear", "query_key": conv, "activation": "gelu", "coefficient_value": conv}
    ffn = {
        "query": conv,
        "query_key": {"name": "linear", "expansion": 2.0},
        "activation": "gelu",
        "coefficient_value": "linear",
    }
    blocks = {"depth": depth, "width": width, "token_mixer": token_mixer or ffnified, "channel_mixer": ffn}
    return parse(SuperResolverConfig, {"blocks": blocks, **rest})
