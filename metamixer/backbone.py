"""The four-stage backbone: stem, stages of blocks with a token and a channel mixer each, head.

Block: `x + [scale ·] token_mixer(x)`, then `x + [scale ·] channel_mixer(x)`, each with stochastic depth.
Source: FFNet, arXiv 2406.02021; the layout of the class follows timm's conventions, so that features,
intermediates, pruning, tracing and scripting work as for timm's own models.
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from timm.layers import ClassifierHead, DropPath, SqueezeExcite, calculate_drop_path_rates, trunc_normal_
from timm.layers.helpers import get_device_dtype
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint, checkpoint_seq
from torch import Tensor, nn

from .config import Config, ConfigError
from .layers import ConvNorm, LayerScale, NormConvSkip, spatial_conv
from .mixer import MetaMixerConfig, build_mixer, resolve_mixer
from .operation import OperationConfig, Site
from .ops._common import Kernel
from .rng import derive

Mixer = MetaMixerConfig | OperationConfig


def _mixer_or_one_per_block(value: Any) -> Mixer | tuple[Mixer, ...]:
    if isinstance(value, list | tuple):
        return tuple(resolve_mixer(item) for item in value)
    return resolve_mixer(value)


Mixers = Annotated[
    SerializeAsAny[MetaMixerConfig | OperationConfig | tuple[SerializeAsAny[Mixer], ...]],
    BeforeValidator(_mixer_or_one_per_block),
]


class StageConfig(Config):
    """Blocks of one width at one resolution; a mixer for all of them, or a list with one per block."""

    depth: int = Field(gt=0)
    width: int = Field(gt=0)
    token_mixer: Mixers
    channel_mixer: Mixers

    @model_validator(mode="after")
    def _one_mixer_per_block(self) -> "StageConfig":
        for key in ("token_mixer", "channel_mixer"):
            mixers = getattr(self, key)
            if isinstance(mixers, tuple) and len(mixers) != self.depth:
                raise ConfigError(f"{key} lists {len(mixers)} mixers for {self.depth} blocks")
        return self

    def mixers(self, block: int) -> tuple[Mixer, Mixer]:
        """Token and channel mixer of a block."""
        token, channel = self.token_mixer, self.channel_mixer
        return (
            token[block] if isinstance(token, tuple) else token,
            channel[block] if isinstance(channel, tuple) else channel,
        )


class DownsampleConfig(Config):
    """Between stages: a depthwise convolution of stride 2 that widens, then a 1×1 mixing of the channels."""

    kernel_size: Kernel = 7
    small_kernel: Kernel | None = 3
    skip: bool = True


class BackboneConfig(Config):
    """A four-stage network.

    `stem_stride` 4 is FFNet's; 1 or 2 keep the maps of small images (28-64 px) large enough for the kernels.
    `norm` puts a normalisation in front of every mixer; FFNet has none there (BatchNorm sits in its convs).
    `squeeze_excite` adds one (ratio 0.25) after the token mixer of every second block.
    """

    stages: tuple[StageConfig, StageConfig, StageConfig, StageConfig]
    stem_width: int = Field(default=64, gt=0)
    stem_stride: Literal[1, 2, 4] = 4
    downsample: DownsampleConfig = DownsampleConfig()
    norm: Literal["none", "batch"] = "none"
    layer_scale: Annotated[float, Field(gt=0)] | None = None
    squeeze_excite: bool = False

    @model_validator(mode="after")
    def _widths_divide(self) -> "BackboneConfig":
        widths = [stage.width for stage in self.stages]
        for narrow, wide in pairwise(widths):
            if wide % narrow:
                raise ConfigError(
                    f"widths {widths}: downsampling is depthwise, so each width must be a multiple of the one before"
                )
        return self

    def map_sizes(self, image_size: int) -> tuple[int, int, int, int]:
        """Height of the maps in the four stages, for square images."""
        size, sizes = image_size, []
        for _ in range({1: 0, 2: 1, 4: 2}[self.stem_stride]):
            size = -(-size // 2)
        for stage in range(4):
            size = -(-size // 2) if stage else size
            sizes.append(size)
        return tuple(sizes)  # type: ignore[return-value]


class Block(nn.Module):
    """Token mixer, then channel mixer, each on a residual branch."""

    def __init__(self, config: BackboneConfig, stage: StageConfig, index: int, site: Site, drop_path: float) -> None:
        super().__init__()
        token, channel = stage.mixers(index)
        self.token_norm = _norm(config.norm, site.dim)
        self.token_mixer = build_mixer(token, site)
        squeeze = config.squeeze_excite and index % 2 == 0
        self.squeeze_excite = SqueezeExcite(site.dim, rd_ratio=0.25) if squeeze else nn.Identity()
        self.token_scale = LayerScale(site.dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.channel_norm = _norm(config.norm, site.dim)
        self.channel_mixer = build_mixer(channel, site)
        self.channel_scale = LayerScale(site.dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.token_scale(self.squeeze_excite(self.token_mixer(self.token_norm(x)))))
        return x + self.drop_path(self.channel_scale(self.channel_mixer(self.channel_norm(x))))


class Stage(nn.Module):
    """Downsampling (none in the first stage), then blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[Block]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Backbone(nn.Module):
    """Image classifier with mixers by configuration; images (B, in_chans, H, W) → logits (B, num_classes).

    Args:
        config: the architecture.
        img_size: training resolution in pixels; only mixers tied to a number of tokens depend on it.
        drop_path_rate: stochastic depth of the last block, growing linearly over all blocks from 0.

    Raises:
        ValueError: operations whose sizes do not fit each other.
    """

    def __init__(
        self,
        config: BackboneConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 256,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        with torch.device(device) if device is not None else nullcontext():
            self._build(config, (img_size, img_size) if isinstance(img_size, int) else img_size, drop_path_rate)
            self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.to(dtype=dtype)
        self.init_weights()

    def _build(self, config: BackboneConfig, img_size: tuple[int, int], drop_path_rate: float) -> None:
        widths = [stage.width for stage in config.stages]
        strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[config.stem_stride]
        self.stem = nn.Sequential(
            ConvNorm(self.in_chans, config.stem_width, 3, strides[0]),
            nn.GELU(),
            ConvNorm(config.stem_width, widths[0], 3, strides[1]),
        )
        rates = calculate_drop_path_rates(drop_path_rate, [stage.depth for stage in config.stages], stagewise=True)
        heights, maps_wide = (config.map_sizes(size) for size in img_size)
        stages = []
        self.feature_info = []
        for i, stage in enumerate(config.stages):
            downsample = _downsample(config.downsample, widths[i - 1], widths[i]) if i else nn.Identity()
            site = Site(stage.width, heights[i], maps_wide[i])
            blocks = [Block(config, stage, j, site, rates[i][j]) for j in range(stage.depth)]
            stages.append(Stage(downsample, blocks))
            reduction = config.stem_stride * 2**i
            self.feature_info.append({"num_chs": stage.width, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = nn.BatchNorm2d(self.num_features)

    def init_weights(self, seed: int | None = None) -> None:
        """Truncated normal (std 0.02) for convolutions and linear layers, biases 0, norms 1 and 0.

        With a seed, each module draws from (seed, its name): networks then share the initial values of all
        that they have in common, whatever else differs.
        """
        if next(self.parameters()).is_meta:
            return
        with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.no_grad():
            for name, module in self.named_modules():
                if seed is not None:
                    torch.manual_seed(derive(seed, "init", name))
                if isinstance(module, nn.Conv2d | nn.Linear):
                    trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Final features and those of the chosen stages (all if None, the last n if an int), as (B, C, H, W)."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}: only 'NCHW' is there")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        stages = self.stages if torch.jit.is_scripting() or not stop_early else self.stages[: last + 1]
        intermediates = []
        for i, stage in enumerate(stages):
            x = checkpoint(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if i in take:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if last == len(self.stages) - 1 or not stop_early else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for the chosen stages; returns their indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or pruned:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _downsample(config: DownsampleConfig, in_dim: int, out_dim: int) -> nn.Module:
    return nn.Sequential(
        spatial_conv(in_dim, out_dim, config.kernel_size, 2, norm=True, small_kernel=config.small_kernel),
        NormConvSkip(out_dim, config.skip),
    )


def _norm(kind: str, dim: int) -> nn.Module:
    return nn.BatchNorm2d(dim) if kind == "batch" else nn.Identity()
