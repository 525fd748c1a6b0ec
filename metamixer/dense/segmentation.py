"""Segmentation: any backbone under a decoder by configuration; FFNet_seg.

Source: FFNet's released segmentation code (github.com/ysj9909/FFNet).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import timm
from pydantic import SerializeAsAny, field_validator
from timm.layers import Format, LayerNorm2d
from torch import Tensor, nn

from ..architecture import Asked, BackboneConfig
from ..backbone import Backbone
from ..config import Config, ConfigError, parse
from ..initialise import seeded
from ..operation import Site
from ..timm_models import of_size
from .decoders import FPN, Decoder, FFNetDecoder, FFNetDecoderConfig, UPer, UPerConfig, resized


class SegmenterConfig(Config):
    """A backbone under a decoder.

    `backbone` is this project's, or the name of a timm model that gives features. `feature_norm` puts a LayerNorm on
    each of its maps, as in FFNet's detectors and UPerNets.
    """

    network: Literal["segmenter"] = "segmenter"
    backbone: SerializeAsAny[BackboneConfig] | str
    decoder: SerializeAsAny[Decoder]
    feature_norm: bool = False

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: BackboneConfig | str) -> BackboneConfig | str:
        if isinstance(backbone, str) and not timm.is_model(backbone):
            raise ConfigError(f"no timm model {backbone!r}")
        return backbone


class Segmenter(nn.Module):
    """Images (B, in_chans, H, W) → logits (B, num_classes, H, W).

    Raises ConfigError: no such timm model, or a decoder that needs more maps than the backbone has.
    """

    def __init__(self, config: SegmenterConfig, asked: Asked) -> None:
        super().__init__()
        self.num_classes = asked.num_classes
        if isinstance(config.backbone, str):
            self.backbone = _of_timm(config.backbone, asked)
            channels, reductions = self.backbone.feature_info.channels(), self.backbone.feature_info.reduction()
        else:
            self.backbone = Backbone(config.backbone, **vars(replace(asked, num_classes=0, global_pool="")))
            self.backbone.prune_intermediate_layers(len(config.backbone.stages), prune_norm=True)
            channels = [stage.width for stage in config.backbone.stages]
            reductions = [info["reduction"] for info in self.backbone.feature_info]
        self.channels_last = getattr(self.backbone, "output_fmt", None) == Format.NHWC  # a Swin's maps
        self.norms = nn.ModuleList(LayerNorm2d(each) for each in channels if config.feature_norm)
        decoder = config.decoder
        if isinstance(decoder, FFNetDecoderConfig):
            if len(channels) < 2:
                raise ConfigError("decoder 'ffnet' leaves the finest map out and needs two at least")
            high, wide = (-(-side // reductions[1]) for side in asked.img_size)
            site = Site(decoder.blocks.width, high, wide, "decoder.blocks", asked.seed)
            self.decoder: Any = FFNetDecoder(channels[1:], decoder, site)
        elif isinstance(decoder, UPerConfig):
            self.decoder = UPer(channels, decoder.width, decoder.pools)
        else:
            self.decoder = FPN(channels, decoder.width)
        self.dropout = nn.Dropout2d(decoder.dropout)
        self.classifier = nn.Conv2d(self.decoder.out_dim, asked.num_classes, 1)

    def get_classifier(self) -> nn.Module:
        """The last layer, named as timm's networks name theirs."""
        return self.classifier

    def features(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps, finest first."""
        if isinstance(self.backbone, Backbone):
            maps: Any = self.backbone.forward_intermediates(x, intermediates_only=True)
        else:
            maps = [each.permute(0, 3, 1, 2) if self.channels_last else each for each in self.backbone(x)]
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)] if self.norms else list(maps)

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.classifier(self.dropout(self.decoder(self.features(x)))), x)


def _of_timm(name: str, asked: Asked) -> Any:
    arguments: dict[str, Any] = {"features_only": True, "in_chans": asked.in_chans}
    arguments |= {"drop_path_rate": asked.drop_path_rate} if asked.drop_path_rate else {}
    try:
        with seeded(asked.seed, "backbone"):
            return of_size(name, asked.img_size, **arguments)
    except (RuntimeError, TypeError, AttributeError) as error:
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
