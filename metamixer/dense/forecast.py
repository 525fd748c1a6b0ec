"""Forecasting: windows of several variables → their next values; FFNet's network, and DLinear beside it.

Sources: FFNet's released forecasting code (github.com/ysj9909/FFNet); RevIN, ICLR 2022; DLinear, arXiv 2205.13504.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..architecture import Asked, BlockConfig, StageConfig
from ..backbone import Block
from ..config import Config, ConfigError, parse
from ..operation import Site
from ..ops._common import Kernel


class ForecasterConfig(BlockConfig):
    """Patches of a series as tokens, `dim` channels of each variable, then `blocks` of mixers.

    The width of the blocks is that of all variables together, variables · `dim`. Mixers see a map one cell high.
    `head_dropout` acts on the forecast.
    """

    network: Literal["forecaster"] = "forecaster"
    blocks: StageConfig
    dim: int = Field(default=64, gt=0)
    patch: int = Field(default=4, gt=0)
    stride: int = Field(default=2, gt=0)
    head_dropout: float = Field(default=0.0, ge=0, lt=1)


class DLinearConfig(Config):
    """One linear map of a moving average over `kernel_size` steps, another of what is left, shared by all variables."""

    network: Literal["dlinear"] = "dlinear"
    kernel_size: Kernel = 25


class Forecaster(nn.Module):
    """Windows (B, in_chans, 1, look_back) → forecasts (B, in_chans, 1, num_classes) of as many variables.

    Each window is brought to mean 0 and spread 1, and its forecast back (RevIN without parameters). Its end is padded
    with its last value. `drop_path_rate` is that of every block.

    Raises ConfigError: the width of the blocks is not variables · dim, or a window is not one row high.
    """

    def __init__(self, config: ForecasterConfig, asked: Asked) -> None:
        super().__init__()
        self.num_classes = asked.num_classes
        dim, stage, (height, steps), variables = config.dim, config.blocks, asked.img_size, asked.in_chans
        if stage.width != variables * dim:
            raise ConfigError(f"blocks.width {stage.width}: {variables} variables of dim {dim} make {variables * dim}")
        if height != 1:
            raise ConfigError(f"a forecaster's window is 1×steps, not {height}×{steps}")
        self.dim, self.pad = dim, config.patch - config.stride
        tokens = (steps + self.pad - config.patch) // config.stride + 1
        site = Site(stage.width, 1, tokens, "blocks", asked.seed)
        self.stem = nn.Conv2d(1, dim, (1, config.patch), (1, config.stride))
        self.norm = nn.BatchNorm2d(dim)
        blocks = (Block(config, stage, i, site.within(str(i)), asked.drop_path_rate) for i in range(stage.depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(dim * tokens, asked.num_classes)
        self.dropout = nn.Dropout(config.head_dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = F.pad((x - mean) / spread, [0, self.pad, 0, 0], "replicate") if self.pad else (x - mean) / spread
        tokens = self.norm(self.stem(y.flatten(0, 1)[:, None]))  # (B·M, dim, 1, N)
        features = self.blocks(tokens.unflatten(0, x.shape[:2]).flatten(1, 2))  # (B, M·dim, 1, N)
        forecast = self.dropout(self.head(features.unflatten(1, (-1, self.dim)).flatten(2)))
        return forecast[:, :, None] * spread + mean


class DLinear(nn.Module):
    """The same by two linear maps."""

    def __init__(self, config: DLinearConfig, asked: Asked) -> None:
        super().__init__()
        self.num_classes, self.pad = asked.num_classes, config.kernel_size // 2
        self.trend, self.season = (nn.Linear(asked.img_size[1], asked.num_classes) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, [self.pad, self.pad, 0, 0], "replicate")
        trend = F.avg_pool2d(padded, (1, 2 * self.pad + 1), 1)
        return self.trend(trend) + self.season(x - trend)


def ffnet_forecast(
    variables: int, expansion: float = 2.0, dropout: float = 0.7, kernel_size: int = 51, **rest: Any
) -> ForecasterConfig:
    """FFNet's forecaster: one block whose query mixes the variables, kernels of 51 over at most 48 tokens."""
    dim = rest.get("dim", 64)
    conv = {"name": "depthwise", "kernel_size": kernel_size}
    of = {"variables": variables}
    token_mixer = {
        "query": {"name": "variable_mlp", **of, "hidden_dropout": 0.3, "dropout": 0.15},
        "query_key": conv,
        "activation": "gelu",
        "coefficient_value": conv,
    }
    channel_mixer = {
        "query": {"name": "variable_depthwise", **of},
        "query_key": {"name": "variable_linear", **of, "expansion": expansion, "dropout": dropout},
        "activation": "gelu",
        "coefficient_value": {"name": "variable_sum", **of, "dropout": 0.15},
    }
    mixers = {"token_mixer": token_mixer, "channel_mixer": channel_mixer}
    return parse(ForecasterConfig, {"blocks": {"depth": 1, "width": variables * dim, **mixers}, **rest})
