"""What a name on the command line stands for: a network, the size of its images, and how they are normalised."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from .config import ConfigError
from .mixer import build_mixer, resolve_mixer
from .operation import Site
from .presets import BASELINES, PRESETS
from .recipes import RECIPES, named_run
from .training import checkpoint, weights
from .training.folder import RunFolder
from .training.recipe import Weights
from .training.run_config import RunConfig

MIXER_DIM, MIXER_SIZE = 64, 28


@dataclass(frozen=True)
class Network:
    """A network in eval mode, not folded; images are (C, H, W), normalised by `mean` and `std`.

    `run` is the run that it belongs to, None for others. A mixer's `input_size` is that of its map.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    run: RunConfig | None = None


def find_network(name: str, resolution: int | None = None, trained: bool = False, source: str | None = None) -> Network:
    """The network that `name` stands for.

    Args:
        name: a timm model, a recipe, a run's folder, or a mixer (then one of 64 channels on a map 28 wide).
        resolution: width and height of the images (of a mixer: of its map); the network's own if None.
        trained: load what a run's folder has reported, the average of the weights or the last ones.
        source: weights of a timm model: a checkpoint's file, or "pretrained" for timm's own.

    Raises:
        ConfigError: no such name, a resolution that the network can't have, or weights that do not fit.
    """
    if resolution is not None and resolution < 8:
        raise ConfigError(f"resolution {resolution}: at least 8 px")
    if source is not None and not timm.is_model(name):
        raise ConfigError(f"weights {source!r}: {name!r} is no timm model; a run's folder has its own")
    if timm.is_model(name):
        return _of_timm(name, resolution, source)
    if name in RECIPES:
        return of_run(name, named_run(name), resolution)
    if name in PRESETS or name in BASELINES:
        size = resolution or MIXER_SIZE
        mixer = build_mixer(resolve_mixer(name), Site(MIXER_DIM, size, size))
        return Network(name, mixer.eval(), (MIXER_DIM, size, size))
    if (Path(name) / "config.json").is_file():
        folder = RunFolder(name)
        found = of_run(name, folder.config(), resolution)
        if trained:
            _load_reported(found.model, folder)
        return found
    known = [*timm.list_models("ffnet_*"), *RECIPES, *PRESETS, *BASELINES]
    near = difflib.get_close_matches(name, [*known, *timm.list_models()], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`launch.py recipes` lists the recipes"
    raise ConfigError(f"{name!r}: no timm model, recipe, mixer or run's folder of this name; {hint}")


def _of_timm(name: str, resolution: int | None, source: str | None) -> Network:
    arguments: dict[str, Any] = {} if resolution is None else {"img_size": resolution}
    model = _create(name, arguments)
    if source is not None:
        state = weights.read(Weights(source=name if source == "pretrained" else source))
        checkpoint.load_weights(model, state, source)
    cfg = model.pretrained_cfg
    channels, height, width = cfg["input_size"]
    size = (channels, resolution or height, resolution or width)
    if resolution is not None:
        _try(model.eval(), name, size)
    return Network(name, model.eval(), size, tuple(cfg["mean"]), tuple(cfg["std"]))


def _try(model: nn.Module, name: str, size: tuple[int, int, int]) -> None:
    """Refuse a size that shows only when the network runs: timm takes any where it does not ask for one."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, *size))
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"resolution {size[1]}: timm model {name!r} does not run on it: {reason}") from None


def _create(name: str, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **arguments)
    except TypeError:  # convolutional ones know no image size
        return timm.create_model(name)
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"timm model {name!r} with {arguments or 'no arguments'}: {reason}") from None


def of_run(name: str, run: RunConfig, resolution: int | None = None) -> Network:
    """A run's network, with its initial values."""
    channels, height, width = run.data.input_size
    height, width = (resolution, resolution) if resolution else (height, width)
    model = run.build(img_size=(height, width)).eval()
    return Network(name, model, (channels, height, width), run.data.mean, run.data.std, run)


def _load_reported(model: nn.Module, folder: RunFolder) -> None:
    result = folder.result() or {}
    if result.get("state") != "done":
        raise ConfigError(f"{folder.path}: the run has not finished, so it reports no weights")
    path = folder.path / checkpoint.LAST
    state = checkpoint.read(path)["ema" if result["weights"] == "ema" else "model"]
    checkpoint.load_weights(model, state, str(path))
