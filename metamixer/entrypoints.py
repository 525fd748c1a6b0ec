"""FFNet's entry points in timm: `timm.create_model("ffnet_1")`, with the settings of the released weights.

Imports nothing of this package but when a network is made: `metamixer/__init__.py` loads it as soon as timm is there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

if TYPE_CHECKING:
    from .backbone import Backbone


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> Backbone:
    # timm is registered in while it is imported, perhaps by the very modules that are needed here
    from torch.serialization import safe_globals

    from .backbone import Backbone
    from .ffnet import CONFIGS, checkpoint_filter_fn

    with safe_globals([argparse.Namespace]):  # released checkpoints hold their training arguments beside the weights
        return build_model_with_cfg(
            Backbone,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "flatten_sequential": True},
            config=CONFIGS[variant],
            **kwargs,
        )


def _cfg(weights: str = "", **kwargs: Any) -> dict[str, Any]:
    url = f"https://github.com/ysj9909/FFNet/releases/download/v1.0/{weights}.pth.tar" if weights else ""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 256, 256),
        "pool_size": (8, 8),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "paper_ids": "arXiv:2406.02021",
        "origin_url": "https://github.com/ysj9909/FFNet",
        **kwargs,
    }


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "ffnet_1.in1k": _cfg("ffnet_1"),
        "ffnet_1.dist_in1k": _cfg("ffnet_1_distillation"),
        "ffnet_2.in1k": _cfg("ffnet_2"),
        "ffnet_2.dist_in1k": _cfg("ffnet_2_distillation"),
        "ffnet_3.in1k": _cfg("ffnet_3", crop_pct=0.95),
        "ffnet_3.dist_in1k": _cfg("ffnet_3_distillation", crop_pct=0.95),
        "ffnet_3.in1k_384": _cfg("ffnet_3_384", **_AT_384),
        "ffnet_4.in1k_384": _cfg("ffnet_4_384", **_AT_384),
        "ffnet_mini.untrained": _cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0),
    }
)


@register_model
def ffnet_1(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """FFNet-1: 13.7 M parameters, 2.9 G multiply-adds, 81.3 % top-1 (82.1 % distilled) at 256 px."""
    return _create("ffnet_1", pretrained, **kwargs)


@register_model
def ffnet_2(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """FFNet-2: 26.9 M parameters, 6.0 G multiply-adds, 82.9 % top-1 (83.7 % distilled) at 256 px."""
    return _create("ffnet_2", pretrained, **kwargs)


@register_model
def ffnet_3(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """FFNet-3: 48.3 M parameters, 10.1 G multiply-adds, 83.9 % top-1 (84.5 % distilled) at 256 px."""
    return _create("ffnet_3", pretrained, **kwargs)


@register_model
def ffnet_4(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """FFNet-4: 79.2 M parameters, 43.1 G multiply-adds, 85.3 % top-1 at 384 px."""
    return _create("ffnet_4", pretrained, **kwargs)


@register_model
def ffnet_mini(pretrained: bool = False, **kwargs: Any) -> Backbone:
    """A small FFNet for images of 28-64 px: widths 32 to 256, stem stride 1."""
    return _create("ffnet_mini", pretrained, **kwargs)
