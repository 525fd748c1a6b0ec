"""MetaMixer and FFNet: build, train and deploy networks whose mixers are filled slot by slot.

`import metamixer` registers FFNet in timm: `timm.create_model("ffnet_1")`. Source: arXiv 2406.02021.
"""

from .backbone import Backbone, BackboneConfig, DownsampleConfig, StageConfig
from .config import Config, ConfigError, differences, digest, override, parse
from .ffnet import CONFIGS, checkpoint_filter_fn
from .mixer import MetaMixer, MetaMixerConfig, build_mixer, resolve_mixer
from .operation import (
    Activation,
    Baseline,
    Coefficients,
    CoefficientValue,
    Layout,
    OperationConfig,
    Query,
    QueryKey,
    Site,
    register,
)

__all__ = [
    "CONFIGS",
    "Activation",
    "Backbone",
    "BackboneConfig",
    "Baseline",
    "CoefficientValue",
    "Coefficients",
    "Config",
    "ConfigError",
    "DownsampleConfig",
    "Layout",
    "MetaMixer",
    "MetaMixerConfig",
    "OperationConfig",
    "Query",
    "QueryKey",
    "Site",
    "StageConfig",
    "build_mixer",
    "checkpoint_filter_fn",
    "differences",
    "digest",
    "override",
    "parse",
    "register",
    "resolve_mixer",
]
