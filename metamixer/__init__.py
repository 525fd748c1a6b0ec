"""MetaMixer and FFNet: build, train and deploy networks whose mixers are filled slot by slot.

`import metamixer` registers FFNet in timm: `timm.create_model("ffnet_1")`. Source: arXiv 2406.02021.

torch and timm are imported when they are first needed: whoever only reads configurations and runs waits for neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from .config import Config, ConfigError, differences, digest, override, parse

if TYPE_CHECKING:
    from .backbone import Backbone, BackboneConfig, DownsampleConfig, StageConfig
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

_HOME = {
    **dict.fromkeys(("Backbone", "BackboneConfig", "DownsampleConfig", "StageConfig"), "backbone"),
    **dict.fromkeys(("CONFIGS", "checkpoint_filter_fn"), "ffnet"),
    **dict.fromkeys(("MetaMixer", "MetaMixerConfig", "build_mixer", "resolve_mixer"), "mixer"),
}  # of the others: operation


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".mixer", __name__)  # the catalogue registers its operations before any of the user's own
    return getattr(importlib.import_module(f".{_HOME.get(name, 'operation')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# at once where timm is imported already
register_post_import_hook(lambda _: importlib.import_module(".entrypoints", __name__), "timm")
