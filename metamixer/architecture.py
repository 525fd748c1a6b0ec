"""Configurations of the backbone: its stages, and the parts around its mixers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from .config import Config, ConfigError, parse
from .initialise import Init
from .mixer import MetaMixerConfig, resolve_mixer
from .operation import OperationConfig
from .ops._common import Kernel

Mixer = MetaMixerConfig | OperationConfig


def _mixer_or_one_per_block(value: Any) -> Mixer | tuple[Mixer, ...]:
    if isinstance(value, list | tuple):
        return tuple(resolve_mixer(item) for item in value)
    return resolve_mixer(value)


Mixers = Annotated[
    SerializeAsAny[MetaMixerConfig | OperationConfig | tuple[SerializeAsAny[Mixer], ...]],
    BeforeValidator(_mixer_or_one_per_block),
]


@dataclass(frozen=True)
class Asked:
    """What is asked of a network besides its configuration.

    Attributes:
        num_classes: numbers of an answer: a score for each class, channels of a picture, steps of a forecast.
        in_chans: channels of the input, or the variables of a series.
        img_size: height and width of the input; mixers tied to a number of tokens depend on it.
        global_pool: as in timm; without any ("") a backbone answers for every cell.
        drop_path_rate: stochastic depth of the last block.
        seed: what all initial values follow from; torch's own generator if None.
        init: the spread of initial weights.
    """

    num_classes: int
    in_chans: int
    img_size: tuple[int, int]
    global_pool: str = "avg"
    drop_path_rate: float = 0.0
    seed: int | None = None
    init: Init = "ffnet"


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


class BlockConfig(Config):
    """What a block has beside its mixers.

    `norm` puts a normalisation in front of every mixer; FFNet has none there (BatchNorm sits in its convs).
    `squeeze_excite` adds one (ratio 0.25) after the token mixer of every second block.
    """

    norm: Literal["none", "batch", "layer", "rms"] = "none"
    layer_scale: Annotated[float, Field(gt=0)] | None = None
    squeeze_excite: bool = False


class BackboneConfig(BlockConfig):
    """A network of one or more stages; the defaults are FFNet's.

    Stem: `conv` is two 3×3 convolutions by way of `stem_width` channels, of stride 1, 2 or 4 (for images of 28-64 px,
    1 or 2 keep the maps large enough for the kernels). `deep` has two more, as FFNet for segmentation. `patch` is one
    convolution over patches of `stem_stride` pixels a side that don't overlap: at 1 a linear map of each pixel.
    `position` adds an encoding of the place after the stem: `learned`, which starts with a spread of `position_sd`,
    or the sines and cosines of ViT's 2-D encoding (`sincos`). It ties the network to the size of its images.
    `downsample` between stages: FFNet's by its parameters, `conv` (FFNet's for segmentation: a 3×3 convolution of
    stride 2 to twice the width, GELU, a 1×1 one), `patch_merging` (a 2×2 convolution of stride 2), or `none`.
    """

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    stem: Literal["conv", "deep", "patch"] = "conv"
    stem_width: int = Field(default=64, gt=0)
    stem_stride: int = Field(default=4, gt=0)
    position: Literal["none", "learned", "sincos"] = "none"
    position_sd: float = Field(default=0.02, gt=0)
    downsample: DownsampleConfig | Literal["conv", "patch_merging", "none"] = DownsampleConfig()

    @model_validator(mode="after")
    def _fits(self) -> "BackboneConfig":
        if self.stem != "patch" and self.stem_stride not in (1, 2, 4):
            raise ConfigError(f"stem_stride {self.stem_stride}: the stem {self.stem!r} has 1, 2 or 4")
        if self.position == "sincos" and self.stages[0].width % 4:
            raise ConfigError(f"position 'sincos' needs a multiple of 4 channels, got {self.stages[0].width}")
        widths = [stage.width for stage in self.stages]
        if self.downsample == "none" and len(set(widths)) > 1:
            raise ConfigError(f"widths {widths}: without downsampling all stages have one width")
        for narrow, wide in pairwise(widths):
            if isinstance(self.downsample, DownsampleConfig) and wide % narrow:
                raise ConfigError(
                    f"widths {widths}: downsampling is depthwise, so each width must be a multiple of the one before"
                )
        return self

    @property
    def reduction(self) -> int:
        """What the height of the maps is divided by from stage to stage."""
        return 1 if self.downsample == "none" else 2

    def map_sizes(self, image_size: int) -> tuple[int, ...]:
        """Height of the maps in each stage, for square images.

        Raises ConfigError: patches do not fill the image or a map.
        """
        sizes = [_divided(image_size, self.stem_stride, self.stem != "patch", "the image")]
        for _ in self.stages[1:]:
            sizes.append(_divided(sizes[-1], self.reduction, self.downsample != "patch_merging", "a map"))
        return tuple(sizes)


def _divided(size: int, by: int, padded: bool, what: str) -> int:
    if not padded and size % by:
        raise ConfigError(f"{what} is {size} wide, which patches of {by} do not fill")
    return -(-size // by)


def isotropic(
    depth: int, width: int, token_mixer: Any, channel_mixer: Any = "ffn", patch: int = 1, **rest: Any
) -> BackboneConfig:
    """A network that mixes tokens in its token mixers alone: patches, a position encoding, equal blocks.

    After the isotropic ConvNeXt and ViT (arXiv 2201.03545, 2010.11929), without class token. `patch` pixels a side
    become one cell.
    """
    stage = {"depth": depth, "width": width, "token_mixer": token_mixer, "channel_mixer": channel_mixer}
    surroundings = {"stem": "patch", "stem_stride": patch, "position": "learned", "norm": "batch"}
    return parse(BackboneConfig, {"stages": [stage], **surroundings, **rest})


def hybrid(config: BackboneConfig, token_mixer: Any, stages: Sequence[int], every: int = 1) -> BackboneConfig:
    """`config` with another token mixer in these stages: in each block, or in the last one of every `every` blocks.

    The second version of arXiv 2406.02021 names such networks of FFNified attention and self-attention.
    """
    values = config.to_dict()
    for index in stages:
        stage, own = values["stages"][index], config.stages[index]
        blocks = range(own.depth)
        stage["token_mixer"] = [token_mixer if (i + 1) % every == 0 else own.mixers(i)[0] for i in blocks]
    return parse(BackboneConfig, values)
