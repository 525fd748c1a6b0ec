"""Checkpoints, ours and others', on the evaluation images of a data set: each kind of weights is a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from ..config import ConfigError, override
from ..ffnet import default_cfgs
from . import checkpoint, weights
from .data import Data
from .data_config import DataConfig
from .distributed import joined
from .evaluate import evaluate
from .folder import RunFolder
from .recipe import Weights, is_timm_model
from .run_config import RunConfig

Rows = dict[str, dict[str, Any]]


def score(
    source: str,
    data: DataConfig,
    changes: Mapping[str, Any],
    network: str | None = None,
    device: str = "auto",
    workers: int = 0,
) -> tuple[Rows, DataConfig, dict[str, str]]:
    """Evaluate all weights that `source` holds; several processes (`distributed`) share the images out.

    Args:
        source: a run's folder, one of its checkpoints, another checkpoint of a timm network, or a timm name.
        data: the images of what is not a run; their size, statistics and crop are the network's own.
        changes: to the data's keys, above all others.
        network: timm name of the network that a checkpoint of unknown name belongs to.

    Returns:
        Scores by kind of weights: `raw`, `ema`, `best`; the data they are of; reasons by name of broken images.

    Raises:
        ConfigError: no such checkpoint, a damaged one, one of another network, or data that can't be used.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if Path(source).exists() and (folder / "config.json").is_file():
        if network is not None:
            raise ConfigError(f"--model {network}: {folder} is a run, which has its own network")
        run = override(RunFolder(folder).config(), {f"data.{key}": value for key, value in changes.items()})
        models = _of_a_run(Path(source), run)
        data = run.data
    else:
        name = network or _network_of(source)
        data = override(data, {**_own_settings(name), **changes})
        models = _of_timm(source, name, data)
    with joined(device) as (world, own):
        images = Data(data, None, workers=workers)
        rows = {}
        for kind, model in models.items():
            model = model.to(own).eval()
            rows[kind], _, _ = evaluate(model, images.evaluation("test", world.rank, world.size), own, world)
        broken = {name: why for part in world.gather(images.broken) for name, why in part.items()}
    return rows, data, broken


def _of_a_run(source: Path, run: RunConfig) -> dict[str, nn.Module]:
    """The weights in a run's checkpoint; of a folder, those in its newest and its best one."""
    files = [source] if source.is_file() else [source / name for name in (checkpoint.LAST, checkpoint.BEST)]
    models: dict[str, nn.Module] = {}
    for path in files:
        if path.name == checkpoint.BEST and not path.exists():
            continue  # a run without a validation split
        state = checkpoint.read(path)
        kinds = {"best": "model"} if path.name == checkpoint.BEST else {"raw": "model", "ema": "ema"}
        for kind, key in kinds.items():
            if state.get(key) is not None:
                models[kind] = run.build()
                checkpoint.load_weights(models[kind], state[key], str(path))
    return models


def _network_of(source: str) -> str:
    """The timm name of a source: itself, or that of the published file of this name."""
    if is_timm_model(source):
        return source
    if not Path(source).is_file():
        raise ConfigError(f"{source!r}: neither a run's folder, nor a checkpoint, nor a timm model's name")
    for name, cfg in _published().items():
        if cfg.url and Path(cfg.url).name == Path(source).name:
            return name
    raise ConfigError(f"{source}: which network is it of? give --model NAME, e.g. --model ffnet_1")


def _published() -> dict[str, Any]:
    return {f"{network}.{tag}": cfg for network, tagged in default_cfgs.items() for tag, cfg in tagged.cfgs.items()}


def _own_settings(name: str) -> dict[str, Any]:
    if not is_timm_model(name):
        near = timm.list_models(f"{name.split('_')[0]}*")[:3]
        raise ConfigError(f"no timm model {name!r}" + (f"; there are {', '.join(near)}, ..." if near else ""))
    cfg = get_pretrained_cfg(name)
    settings = resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg else None, use_test_size=True)
    if settings["interpolation"] != "bicubic":
        raise ConfigError(
            f"timm model {name!r} wants images resized by {settings['interpolation']}; here it is bicubic"
        )
    return {
        "channels": settings["input_size"][0],
        "image_size": settings["input_size"][-1],
        "mean": settings["mean"],
        "std": settings["std"],
        "eval_crop": settings["crop_pct"],
    }


def _of_timm(source: str, name: str, data: DataConfig) -> dict[str, nn.Module]:
    states: dict[str, Any] = {}
    if source == name:
        states["raw"] = weights.read(Weights(source=name))
    else:
        problem: ConfigError | None = None
        for kind, average in (("raw", False), ("ema", True)):
            try:
                states[kind] = weights.read(Weights(source=source, average=average))
            except ConfigError as error:
                problem = problem or error
        if problem is not None and not states:
            raise problem
    classifier = get_pretrained_cfg(name).classifier
    models: dict[str, nn.Module] = {}
    for kind, state in states.items():
        weights.check_classes(state, f"{classifier}.bias", data.num_classes, source)
        arguments: dict[str, Any] = {"num_classes": data.num_classes, "in_chans": data.channels}
        if name.partition(".")[0] in default_cfgs:
            models[kind] = timm.create_model(name, **arguments)
            checkpoint.load_weights(models[kind], state, source)
        else:  # other networks' checkpoints may need timm to rename what is in them
            overlay = {"state_dict": state, "num_classes": data.num_classes}
            models[kind] = weights.pretrained(name, pretrained_cfg_overlay=overlay, **arguments)
    return models
