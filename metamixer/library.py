"""The names that `metamixer` offers as a library and that need torch."""

# ruff: noqa: F401

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
