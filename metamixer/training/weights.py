"""Weights from elsewhere: what a fine-tuning starts from, and a teacher's."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from ..config import ConfigError
from ..ffnet import checkpoint_filter_fn
from . import checkpoint
from .image_source import few
from .recipe import Weights, file_digest
from .run_config import RunConfig

log = logging.getLogger(__name__)

HEAD = "head.fc."
_RAW = ("model", "state_dict", "net")
_AVERAGE = ("ema", "state_dict_ema", "model_ema")


class UnknownClasses(ConfigError):
    """Weights that were trained on other classes."""


def read(weights: Weights, classes: list[str] | None = None) -> dict[str, Tensor]:
    """The state dict that `weights` names, under the names of this project if it is a released FFNet.

    A run's checkpoint names its classes: of its head, the rows of `classes` are taken, in their order.

    Raises ConfigError: no such file, another one than was planned, a damaged one, one without weights, or without one
    of the classes.
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
    # released checkpoints hold their training arguments beside the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = _safetensors(source) if source.endswith(".safetensors") else checkpoint.read(source)
    held: dict[str, Any] = content if isinstance(content, dict) else {}
    keys = _AVERAGE if weights.average else _RAW
    state = next((held[key] for key in keys if held.get(key) is not None), None if weights.average else held)
    if state is None:
        raise ConfigError(f"weights {source!r}: no average in it (none of {', '.join(_AVERAGE)}); set average to false")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"weights {source!r}: no weights in it, neither on top nor under {' or '.join(_RAW)}")
    state = clean_state_dict(state)
    for prefix in ("model.", "net."):  # PyTorch Lightning's, of the module's attribute
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"weights {source!r}: {name!r} is not finite (NaN or infinity); take other weights")
    state = checkpoint_filter_fn(state, None)  # type: ignore[arg-type]
    theirs = held.get("classes")
    if not theirs or not classes or theirs == classes:
        return state
    if unknown := [name for name in classes if name not in theirs]:
        raise UnknownClasses(f"weights {source!r} know no class {few(unknown)}, only {few(theirs)}")
    rows = [theirs.index(name) for name in classes]
    return {name: value[rows] if name.startswith(HEAD) else value for name, value in state.items()}


def pretrained(name: str, **arguments: Any) -> nn.Module:
    """A timm model with its pretrained weights. Raises ConfigError: it has none, or they can't be fetched."""
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # whatever the network, the hub's client or timm raise
        if isinstance(error, TypeError) and arguments.keys() - {"pretrained_cfg_overlay"}:
            raise  # the network does not know an argument
        text = (str(error).splitlines() or [""])[0][:120]
        raise ConfigError(f"timm model {name!r}: cannot load its weights ({type(error).__name__}: {text})") from None


def start_from(model: Any, config: RunConfig, classes: list[str] | None = None) -> None:
    """Copy a run's initial weights into its network; of a segmenter, those of a classifier into its backbone.

    A head for other classes, or none, leaves the network its new one; the first convolution is adapted to other
    channels as timm does. A warning says so.

    Raises ConfigError: they do not fit; the line says what differs.
    """
    assert config.initial is not None
    source, own = config.initial.source, model.state_dict()
    try:
        state = read(config.initial, classes)
    except UnknownClasses as error:
        log.warning("%s", error)
        state = {name: value for name, value in read(config.initial).items() if not name.startswith(HEAD)}
    if hasattr(model, "backbone") and not any(name.startswith("backbone.") for name in state):
        log.warning("weights %r are those of a backbone: the decoder starts anew", source)
        state = _into_backbone(state, own)
    lost = [name for name in own if name.endswith("running_mean") and name not in state]
    if lost and any(name.endswith(".bias") for name in state.keys() - own.keys()):
        raise ConfigError(
            f"weights {source!r} are folded, or another model's: {len(lost)} norms have no statistics there, and "
            "convolutions biases in their place; take the weights before folding"
        )
    if hasattr(model, "get_classifier"):
        head = next(name for name, module in model.named_modules() if module is model.get_classifier())
        theirs = state.get(f"{head}.weight")
        if theirs is None or len(theirs) != config.data.num_classes:
            found = "no head" if theirs is None else f"a head for {len(theirs)} classes"
            log.warning("weights %r have %s: that of %d classes starts anew", source, found, config.data.num_classes)
            state |= {name: value for name, value in own.items() if name.startswith(f"{head}.")}
    stem = first_convolution(model)
    if stem in state and state[stem].shape[1] != own[stem].shape[1]:
        channels = state[stem].shape[1]
        log.warning("weights %r are for %d channels: %r is adapted to %d", source, channels, stem, own[stem].shape[1])
        state[stem] = adapt_input_conv(own[stem].shape[1], state[stem], base_chans=channels)
    checkpoint.load_weights(model, state, source)


def _into_backbone(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights `own` of a segmenter, its backbone's from a classifier's."""
    # timm's networks that give features write some dots of a name as _, or have the whole network in `model`
    there = {name.replace(".", "_"): value for name, value in state.items()}
    given = {
        name: there.get(name.removeprefix("backbone.").removeprefix("model.").replace(".", "_"))
        for name in own
        if name.startswith("backbone.")
    }
    rest = {name: value for name, value in own.items() if name not in given}
    return rest | {name: value for name, value in given.items() if value is not None}


def first_convolution(model: nn.Module) -> str:
    """The name of the weight that takes the image's channels; empty if there is none."""
    return next((f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Conv2d)), "")


def check_classes(state: dict[str, Tensor], bias: str, num_classes: int, source: str) -> None:
    """Refuse weights for another number of classes, by a ConfigError; `bias` names the classifier's."""
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
