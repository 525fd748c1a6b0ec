"""The backbone: stem, position encoding, stages of blocks with a token and a channel mixer each, head.

Block: `x + [scale ·] token_mixer(x)`, then `x + [scale ·] channel_mixer(x)`, each with stochastic depth.
Source: FFNet, arXiv 2406.02021; the layout of the class follows timm's conventions, so that features,
intermediates, pruning, tracing and scripting work as for timm's own models.
"""

from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm2d,
    RmsNorm2d,
    SqueezeExcite,
    build_sincos2d_pos_embed,
    calculate_drop_path_rates,
    trunc_normal_,
)
from timm.layers.helpers import get_device_dtype
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint, checkpoint_seq
from torch import Tensor, nn

from .architecture import BackboneConfig, BlockConfig, DownsampleConfig, StageConfig
from .initialise import Construction, Init, initialise, seeded
from .layers import ConvNorm, LayerScale, NormConvSkip, keep_rows, spatial_conv
from .mixer import build_mixer
from .operation import Site


class Position(nn.Module):
    """Adds to each place of a map (B, C, H, W) its encoding: learned, or ViT's sines and cosines (arXiv 2105.01883)."""

    def __init__(self, config: BackboneConfig, site: Site) -> None:
        super().__init__()
        if config.position == "learned":
            encoding = torch.empty(1, site.dim, site.height, site.width)
            self.encoding = nn.Parameter(trunc_normal_(encoding, std=config.position_sd))
        else:
            places = build_sincos2d_pos_embed([site.height, site.width], site.dim)  # (N, C)
            self.register_buffer("encoding", places.T.reshape(1, site.dim, site.height, site.width).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        message = "the position encoding is of another map size; build the network for this image size"
        torch._assert(x.shape[2] == self.encoding.shape[2], message)
        torch._assert(x.shape[3] == self.encoding.shape[3], message)
        return x + self.encoding


class Block(nn.Module):
    """Token mixer, then channel mixer, each on a residual branch; `after` each sum there may be an activation."""

    def __init__(
        self,
        config: BlockConfig,
        stage: StageConfig,
        index: int,
        site: Site,
        drop_path: float = 0.0,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        token, channel = stage.mixers(index)
        self.token_norm = _norm(config.norm, site.dim)
        self.token_mixer = build_mixer(token, site.within("token_mixer"))
        squeeze = config.squeeze_excite and index % 2 == 0
        self.squeeze_excite = SqueezeExcite(site.dim, rd_ratio=0.25) if squeeze else nn.Identity()
        self.token_scale = LayerScale(site.dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.channel_norm = _norm(config.norm, site.dim)
        self.channel_mixer = build_mixer(channel, site.within("channel_mixer"))
        self.channel_scale = LayerScale(site.dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.after = after or nn.Identity()

    def token_branch(self, x: Tensor) -> Tensor:
        return self.token_scale(self.squeeze_excite(self.token_mixer(self.token_norm(x))))

    def channel_branch(self, x: Tensor) -> Tensor:
        return self.channel_scale(self.channel_mixer(self.channel_norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(x + self.drop_path(self.token_branch(x)))
        return self.after(x + self.drop_path(self.channel_branch(x)))


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
        global_pool: as in timm; without any ("") the head answers for every cell: (B, num_classes, H', W').
        img_size: training resolution in pixels; only mixers tied to a number of tokens depend on it.
        drop_path_rate: stochastic depth of the last block, growing linearly over all blocks from 0.
        seed: what all initial values follow from (`initialise.py`); torch's own generator if None.
        init: the spread of initial weights.

    Raises ValueError: operations whose sizes do not fit each other.
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
        seed: int | None = None,
        init: Init = "ffnet",
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        with torch.device(device) if device is not None else nullcontext(), Construction() as construction:
            self._build(config, size, drop_path_rate, seed)
            if size[0] == 1:
                keep_rows(self, construction)
            self.head = ClassifierHead(
                self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, use_conv=not global_pool
            )
        initialise(self, construction, seed, init)
        self.to(dtype=dtype)

    def _build(
        self, config: BackboneConfig, img_size: tuple[int, int], drop_path_rate: float, seed: int | None
    ) -> None:
        widths = [stage.width for stage in config.stages]
        self.stem = _stem(config, self.in_chans)
        rates = calculate_drop_path_rates(drop_path_rate, [stage.depth for stage in config.stages], stagewise=True)
        heights, maps_wide = (config.map_sizes(size) for size in img_size)
        first = Site(widths[0], heights[0], maps_wide[0])
        with seeded(seed, "position"):
            self.position = Position(config, first) if config.position != "none" else nn.Identity()
        stages = []
        self.feature_info = []
        for i, stage in enumerate(config.stages):
            downsample = _downsample(config.downsample, widths[i - 1], widths[i]) if i else nn.Identity()
            site = Site(stage.width, heights[i], maps_wide[i], f"stages.{i}.blocks", seed)
            blocks = [Block(config, stage, j, site.within(str(j)), rates[i][j]) for j in range(stage.depth)]
            stages.append(Stage(downsample, blocks))
            reduction = config.stem_stride * config.reduction**i
            self.feature_info.append({"num_chs": stage.width, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = _norm(config.norm if config.norm != "none" else "batch", self.num_features)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"position.encoding"} if self.config.position == "learned" else set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem|^position",
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
        x = self.position(self.stem(x))
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
        return self.norm(self.stages(self.position(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stem(config: BackboneConfig, in_chans: int) -> nn.Module:
    width, stride = config.stages[0].width, config.stem_stride
    if config.stem == "patch":
        return nn.Conv2d(in_chans, width, stride, stride)
    strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
    first = ConvNorm(in_chans, config.stem_width, 3, strides[0])
    if config.stem == "conv":
        return nn.Sequential(first, nn.GELU(), ConvNorm(config.stem_width, width, 3, strides[1]))
    second, third = ConvNorm(config.stem_width, config.stem_width, 3), ConvNorm(config.stem_width, width, 3)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), third, ConvNorm(width, width, 3, strides[1]))


def _downsample(config: DownsampleConfig | str, in_dim: int, out_dim: int) -> nn.Module:
    if config == "none":
        return nn.Identity()
    if config == "conv":
        return nn.Sequential(ConvNorm(in_dim, 2 * out_dim, 3, 2), nn.GELU(), ConvNorm(2 * out_dim, out_dim))
    if not isinstance(config, DownsampleConfig):
        return nn.Conv2d(in_dim, out_dim, 2, 2)
    return nn.Sequential(
        spatial_conv(in_dim, out_dim, config.kernel_size, 2, norm=True, small_kernel=config.small_kernel),
        NormConvSkip(out_dim, config.skip),
    )


def _norm(kind: str, dim: int) -> nn.Module:
    kinds = {"none": nn.Identity, "batch": nn.BatchNorm2d, "layer": LayerNorm2d, "rms": RmsNorm2d}
    return kinds[kind](dim)
