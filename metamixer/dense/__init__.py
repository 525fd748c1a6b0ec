"""Networks around mixers that answer with a map or a series, by the key `network` of their configurations.

The key `timm` makes a network of timm, and without both it is a backbone. A network's class takes its configuration
and what is `Asked`; `build_network` gives it its initial values.
"""

from typing import Any

from torch import nn

from ..architecture import Asked, BackboneConfig
from ..backbone import Backbone
from ..config import Config, ConfigError
from ..initialise import Construction, initialise
from ..layers import keep_rows
from ..timm_models import TimmConfig, build_timm
from .forecast import DLinear, DLinearConfig, Forecaster, ForecasterConfig
from .segmentation import Segmenter, SegmenterConfig
from .superresolution import SuperResolver, SuperResolverConfig

Network = BackboneConfig | SegmenterConfig | SuperResolverConfig | ForecasterConfig | DLinearConfig | TimmConfig

_NETWORKS: dict[str, tuple[type[Config], type[nn.Module]]] = {
    "segmenter": (SegmenterConfig, Segmenter),
    "super_resolver": (SuperResolverConfig, SuperResolver),
    "forecaster": (ForecasterConfig, Forecaster),
    "dlinear": (DLinearConfig, DLinear),
}


def config_class(values: Any) -> type[Config]:
    """The class that a network's configuration is read as: by its key `network`, else the backbone's.

    Raises ConfigError: no such network.
    """
    if isinstance(values, dict) and "timm" in values:
        return TimmConfig
    name = values.get("network") if isinstance(values, dict) else None
    if name is None:
        return BackboneConfig
    if name not in _NETWORKS:
        raise ConfigError(f"no network {name!r}; there are {', '.join(_NETWORKS)}, and without the key a backbone")
    return _NETWORKS[name][0]


def build_network(config: Network, asked: Asked) -> nn.Module:
    """The network of a configuration. Raises ConfigError: its parts do not fit each other, or what is asked."""
    if isinstance(config, BackboneConfig):
        return Backbone(config, **vars(asked))
    if isinstance(config, TimmConfig):
        return build_timm(config, asked)
    with Construction() as construction:
        model = dict(_NETWORKS.values())[type(config)](config, asked)
        if asked.img_size[0] == 1:
            keep_rows(model, construction)
    initialise(model, construction, asked.seed, asked.init)
    return model
