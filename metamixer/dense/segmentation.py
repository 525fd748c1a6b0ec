"""Segmentation: any backbone under a decoder by configuration; FFNet_seg.

Sources: FFNet's released segmentation code (github.com/ysj9909/FFNet) for its backbone and decoder; UPerNet, arXiv
1807.10221; the plain decoder is the top-down path of FPN, arXiv 1612.03144.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import Field, SerializeAsAny
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..architecture import BackboneConfig, BlockConfig, StageConfig
from ..backbone import Backbone, Block
from ..config import Config, ConfigError, parse
from ..initialise import Construction, Init, initialise, seeded
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


class SegmenterConfig(Config):
    """A backbone under a decoder.

    `backbone` is this project's, or the name of a timm model that gives features. `feature_norm` puts a LayerNorm on
    each of its maps, as in FFNet's detectors and UPerNets.
    """

    network: Literal["segmenter"] = "segmenter"
    backbone: SerializeAsAny[BackboneConfig] | str
    decoder: SerializeAsAny[Decoder]
    feature_norm: bool = False


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


class Segmenter(nn.Module):
    """Images (B, in_chans, H, W) → logits (B, num_classes, H, W).

    Args:
        img_size: height and width in pixels; only mixers tied to a number of tokens depend on it.
        drop_path_rate: stochastic depth of the backbone's last block.
        seed: what all initial values follow from.

    Raises:
        ConfigError: no such timm model, or a decoder that needs more maps than the backbone has.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        num_classes: int,
        in_chans: int = 3,
        img_size: tuple[int, int] = (512, 512),
        drop_path_rate: float = 0.0,
        seed: int | None = None,
        init: Init = "ffnet",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        with Construction() as construction:
            if isinstance(config.backbone, str):
                with seeded(seed, "backbone"):
                    self.backbone = _of_timm(config.backbone, in_chans, drop_path_rate)
                channels, reductions = self.backbone.feature_info.channels(), self.backbone.feature_info.reduction()
            else:
                rest: dict[str, Any] = {"img_size": img_size, "drop_path_rate": drop_path_rate, "seed": seed}
                self.backbone = Backbone(config.backbone, 0, in_chans, "", init=init, **rest)
                self.backbone.prune_intermediate_layers(len(config.backbone.stages), prune_norm=True)
                channels = [stage.width for stage in config.backbone.stages]
                reductions = [info["reduction"] for info in self.backbone.feature_info]
            self.norms = nn.ModuleList(LayerNorm2d(each) for each in channels if config.feature_norm)
            decoder = config.decoder
            if isinstance(decoder, FFNetDecoderConfig):
                if len(channels) < 2:
                    raise ConfigError("decoder 'ffnet' leaves the finest map out and needs two at least")
                high, wide = (-(-side // reductions[1]) for side in img_size)
                site = Site(decoder.blocks.width, high, wide, "decoder.blocks", seed)
                self.decoder: Any = FFNetDecoder(channels[1:], decoder, site)
            elif isinstance(decoder, UPerConfig):
                self.decoder = UPer(channels, decoder.width, decoder.pools)
            else:
                self.decoder = FPN(channels, decoder.width)
            self.dropout = nn.Dropout2d(decoder.dropout)
            self.classifier = nn.Conv2d(self.decoder.out_dim, num_classes, 1)
        initialise(self, construction, seed, init)

    def features(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps, finest first."""
        ours = isinstance(self.backbone, Backbone)
        maps = self.backbone.forward_intermediates(x, intermediates_only=True) if ours else self.backbone(x)
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)] if self.norms else list(maps)

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.classifier(self.dropout(self.decoder(self.features(x)))), x)


def resized(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """`x` at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=False)


def _conv_relu(in_dim: int, out_dim: int, kernel_size: int = 1) -> nn.Sequential:
    return nn.Sequential(ConvNorm(in_dim, out_dim, kernel_size), nn.ReLU())


def _of_timm(name: str, in_chans: int, drop_path_rate: float) -> Any:
    try:
        rest = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        return timm.create_model(name, features_only=True, in_chans=in_chans, **rest)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"backbone {name!r}: no timm model that gives features ({error})") from None


def ffnet_seg(decoder_depth: int = 3, decoder_expansion: float = 4.0) -> SegmenterConfig:
    """FFNet_seg as released: for ADE20K, or for Cityscapes with 5 decoder blocks of expansion 1."""

    def mixers(kernel_size: int, channel_kernel: Any, expansion: float) -> dict[str, Any]:
        depthwise = {"name": "depthwise", "norm": True}
        conv = {**depthwise, "kernel_size": kernel_size, "small_kernel": "strips"}
        return {
            "token_mixer": {
                "query": {"name": "linear", "norm": True},
                "query_key": conv,
                "activation": "gelu",
                "coefficient_value": conv,
            },
            "channel_mixer": {
                "query": {**depthwise, **channel_kernel},
                "query_key": {"name": "linear", "expansion": expansion},
                "activation": "gelu",
                "coefficient_value": "linear",
            },
        }

    shapes = zip((3, 4, 18, 5), (96, 192, 384, 768), (3, 3, 9, 9), strict=True)
    backbone = {
        "stages": [{"depth": d, "width": w, **mixers(k, {"kernel_size": 3}, 4.0)} for d, w, k in shapes],
        "stem": "deep",
        "downsample": "conv",
        "layer_scale": 1e-5,
    }
    wide = {"kernel_size": 9, "small_kernel": "strips"}
    blocks = {"depth": decoder_depth, "width": 256, **mixers(9, wide, decoder_expansion)}
    return parse(SegmenterConfig, {"backbone": backbone, "decoder": {"name": "ffnet", "blocks": blocks}})
