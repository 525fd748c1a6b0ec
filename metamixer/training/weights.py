"""Weights from elsewhere: what a fine-tuning starts from, and a teacher's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from ..config import ConfigError
from ..ffnet import checkpoint_filter_fn
from . import checkpoint
from .recipe import Weights, file_digest
from .run_config import RunConfig

_RAW = ("model", "state_dict")
_AVERAGE = ("ema", "state_dict_ema", "model_ema")


def read(weights: Weights) -> dict[str, Tensor]:
    """The state dict that `weights` names, under the names of this project if it is a released FFNet.

    Raises:
        ConfigError: no such file, another one than was planned, a damaged one, one without weights.
    """
    source = weights.source
    if weights.digest is None:
        return pretrained(source).state_dict()
    found = file_digest(source)
    if found != weights.digest:
        raise ConfigError(
            f"weights {source!r} have changed since the run was planned (digest {found}, planned {weights.digest}): "
            "plan it again"
        )
    content: Any
    if source.endswith(".safetensors"):
        content = _safetensors(source)
    else:
        # released checkpoints hold their training arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = checkpoint.read(source)
    keys = _AVERAGE if weights.average else _RAW
    held = content if isinstance(content, dict) else {}
    state = next((held[key] for key in keys if held.get(key) is not None), None)
    if state is None and weights.average:
        raise ConfigError(f"weights {source!r}: no average in it (none of {', '.join(_AVERAGE)}); set average to false")
    state = held if state is None else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"weights {source!r}: no weights in it, neither on top nor under {' or '.join(_RAW)}")
    state = clean_state_dict(state)
    return checkpoint_filter_fn(state, None)  # type: ignore[arg-type]


def pretrained(name: str, **arguments: Any) -> nn.Module:
    """A timm model with its pretrained weights.

    Raises:
        ConfigError: it has none, or they can't be fetched.
    """
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # whatever the network, the hub's client or timm raise
        text = (str(error).splitlines() or [""])[0][:120]
        raise ConfigError(f"timm model {name!r}: cannot load its weights ({type(error).__name__}: {text})") from None


def start_from(model: nn.Module, config: RunConfig) -> None:
    """Copy a run's initial weights into its network.

    Raises:
        ConfigError: they do not fit; the line says what differs.
    """
    assert config.initial is not None
    state, source = read(config.initial), config.initial.source
    own = model.state_dict()
    check_classes(state, "head.fc.bias", config.data.num_classes, source)
    tied = [name for name in own if name in state and state[name].shape != own[name].shape]
    if tied and own.keys() == state.keys():
        size = config.data.image_size
        other = config.build(img_size=2 * size, device="meta").state_dict()
        if all(other[name].shape != own[name].shape for name in tied):
            raise ConfigError(
                f"weights {source!r}: {tied[0]!r} is tied to the image size; shape {tuple(state[tied[0]].shape)} "
                f"is not that of {size} px, {tuple(own[tied[0]].shape)}: keep data.image_size of the weights"
            )
    checkpoint.load_weights(model, state, source)


def check_classes(state: dict[str, Tensor], bias: str, num_classes: int, source: str) -> None:
    """Refuse weights for another number of classes; `bias` names the classifier's.

    Raises:
        ConfigError: they are.
    """
    if bias in state and (theirs := len(state[bias])) != num_classes:
        raise ConfigError(
            f"weights {source!r} are for {theirs} classes, data.num_classes is {num_classes}: set "
            f"data.num_classes={theirs}, or take other weights"
        )


def _safetensors(source: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(Path(source))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{source}: not a whole checkpoint ({str(error)[:120]}); use another one") from None
