"""The names that `metamixer` offers as a library and that need torch."""

from .architecture import BackboneConfig, DownsampleConfig, StageConfig, isotropic
from .backbone import Backbone
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
    "isotropic",
    "register",
    "resolve_mixer",
]
