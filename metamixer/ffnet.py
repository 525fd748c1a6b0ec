"""FFNet-1 to FFNet-4 as configurations of the backbone, and their entry points in timm.

Importing this module registers them: `timm.create_model("ffnet_1")`, with the settings of the released weights.
Source: arXiv 2406.02021 and its released weights (github.com/ysj9909/FFNet, release v1.0).
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor
from torch.serialization import safe_globals

from .architecture import BackboneConfig, StageConfig, hybrid
from .backbone import Backbone
from .config import override, parse

Op = dict[str, Any]


def ffnified_attention(kernel_size: int) -> dict[str, Op]:
    """FFNet's token mixer. Only the 7×7 convolution has BatchNorm and a parallel 3×3 branch, as released."""
    conv = {"name": "depthwise", "kernel_size": kernel_size, **_released_norm(kernel_size, otherwise=False)}
    return {
        "query": {"name": "linear", "norm": True},
        "query_key": conv,
        "activation": {"name": "gelu"},
        "coefficient_value": conv,
    }


def convnext_ffn(kernel_size: int, expansion: float = 3.0) -> dict[str, Op]:
    """FFNet's channel mixer: a ConvNeXt block with an FFN. Only 7×7 has a parallel 3×3 branch, as released."""
    return {
        "query": {"name": "depthwise", "kernel_size": kernel_size, **_released_norm(kernel_size, otherwise=True)},
        "query_key": {"name": "linear", "expansion": expansion},
        "activation": {"name": "gelu"},
        "coefficient_value": {"name": "linear"},
    }


def _released_norm(kernel_size: int, otherwise: bool) -> Op:
    return {"norm": True, "small_kernel": 3} if kernel_size == 7 else {"norm": otherwise}


def ffnet(
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    token_kernels: tuple[int, ...] = (3, 3, 7, 7),
    channel_kernels: tuple[int, ...] = (7, 7, 7, 7),
    **rest: Any,
) -> BackboneConfig:
    """Configuration of an FFNet from its depths, widths and kernel sizes per stage."""
    stages = [
        StageConfig(depth=d, width=w, token_mixer=ffnified_attention(t), channel_mixer=convnext_ffn(c))  # type: ignore[arg-type]
        for d, w, t, c in zip(depths, widths, token_kernels, channel_kernels, strict=True)
    ]
    return parse(BackboneConfig, {"stages": stages, **rest})


CONFIGS = {
    "ffnet_1": ffnet((2, 2, 8, 2), (80, 160, 320, 640), channel_kernels=(3, 3, 3, 3)),
    "ffnet_2": ffnet((3, 3, 15, 3), (88, 176, 352, 704)),
    "ffnet_3": ffnet((4, 4, 22, 5), (96, 192, 384, 768), layer_scale=1e-6),
    "ffnet_4": ffnet((4, 4, 27, 3), (128, 256, 512, 1024), layer_scale=1e-6),
    # For images of 28-64 px: with stem stride 1 the maps of a 32 px image are 32, 16, 8, 4 wide, so that
    # even a 7×7 kernel in the last stage sees more than its centre.
    "ffnet_mini": ffnet((1, 1, 3, 1), (32, 64, 128, 256), stem_width=32, stem_stride=1),
}
# Self-attention in the last two stages, in all blocks or in every second one; with a norm in front, which it wants.
_NORMED = override(CONFIGS["ffnet_1"], {"norm": "batch"})
CONFIGS["ffnet_1_hybrid_stages"] = hybrid(_NORMED, "attention", stages=(2, 3))
CONFIGS["ffnet_1_hybrid_blocks"] = hybrid(_NORMED, "attention", stages=(2, 3), every=2)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """Released names → this project's; a state dict that already has the latter passes unchanged."""
    if "state_dict" in state_dict:
        state_dict = state_dict["state_dict"]  # type: ignore[assignment]
    if "patch_embed.0.c.weight" not in state_dict:
        return state_dict
    return {released_name(name): value for name, value in state_dict.items()}


def released_name(name: str) -> str:
    """This project's name of a tensor in a released checkpoint."""
    rules = (
        (r"^patch_embed\.", "stem."),
        (r"^head\.", "head.fc."),
        (r"^(stages\.[123])\.0\.proj\.0\.", r"\1.downsample.0."),
        (r"^(stages\.[123])\.0\.proj\.1\.conv\.bn\.", r"\1.downsample.1.norm."),
        (r"^(stages\.[123])\.0\.proj\.1\.conv\.c\.", r"\1.downsample.1.conv."),
        # stages after the first count their downsampling as entry 0
        (r"^(stages\.0)\.(\d+)\.(?=token|channel)", r"\1.blocks.\2."),
        (r"^(stages\.[123])\.(\d+)\.(?=token|channel)", lambda m: f"{m[1]}.blocks.{int(m[2]) - 1}."),
        (r"\.token_mixer\.0\.layer_scale$", ".token_scale.scale"),
        (r"\.channel_mixer\.layer_scale$", ".channel_scale.scale"),
        (r"\.token_mixer\.0\.main\.fc\.", ".token_mixer.query.proj."),
        (r"\.token_mixer\.0\.main\.conv1\.", ".token_mixer.query_key.key."),
        (r"\.token_mixer\.0\.main\.conv2\.", ".token_mixer.coefficient_value.value."),
        (r"\.channel_mixer\.main\.conv\.", ".channel_mixer.query.proj."),
        (r"\.channel_mixer\.main\.fc1\.", ".channel_mixer.query_key.key."),
        (r"\.channel_mixer\.main\.fc2\.", ".channel_mixer.coefficient_value.value."),
        # a reparameterised depthwise convolution: `conv` is the large branch, `conv1` the small one
        (r"\.conv\.(c|bn)\.", r".large.\1."),
        (r"\.conv1\.(c|bn)\.", r".small.\1."),
        (r"\.c\.", ".conv."),
        (r"\.bn\.", ".norm."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
    return name


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> Backbone:
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
