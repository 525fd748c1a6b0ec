"""Checkpoints, ours and others', on the evaluation images of a data set: each kind of weights is a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from ..config import ConfigError, override
from ..ffnet import default_cfgs
from . import checkpoint, weights
from .data import Data
from .data_config import AnyData, DataConfig, TaskData
from .distributed import joined
from .evaluate import evaluate
from .folder import RunFolder
from .recipe import Weights, is_timm_model
from .run_config import RunConfig
from .samples import Samples

Rows = dict[str, dict[str, Any]]


def score(
    source: str,
    data: DataConfig,
    changes: Mapping[str, Any],
    network: str | None = None,
    device: str = "auto",
    workers: int = 0,
) -> tuple[Rows, AnyData, dict[str, str]]:
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
    classes = transform = None
    tested: AnyData = data
    if Path(source).exists() and (folder / "config.json").is_file():
        if network is not None:
            raise ConfigError(f"--model {network}: {folder} is a run, which has its own network")
        run = RunFolder(folder).config()
        if isinstance(run.data, DataConfig):
            changes = {"manifest": None, **changes}  # of a training's images, which need not be there
        run = override(run, {f"data.{key}": value for key, value in changes.items()})
        models, classes = _of_a_run(Path(source), run)
        tested = run.data
    else:
        name = network or _network_of(source)
        if not is_timm_model(name):
            near = timm.list_models(f"{name.split('_')[0]}*")[:3]
            raise ConfigError(f"no timm model {name!r}" + (f"; there are {', '.join(near)}, ..." if near else ""))
        states = _states(source, name)
        bias = next(iter(states.values())).get(f"{get_pretrained_cfg(name).classifier}.bias")
        changes = {"manifest": None, **({} if bias is None else {"num_classes": len(bias)}), **changes}
        tested, transform = _own_images(name, data, changes)
        models = _of_timm(source, name, tested, states)
    with joined(device) as (world, own):
        images: Data | Samples
        if isinstance(tested, TaskData):
            images = Samples(tested, None, 0, own)
        else:
            images = Data(tested, None, workers=workers, classes=classes, transform=transform)
        rows = {}
        for kind, model in models.items():
            model = model.to(own).eval()
            rows[kind], _, _ = evaluate(model, images.evaluation("test", world.rank, world.size), own, world)
        broken = {name: why for part in world.gather(images.broken) for name, why in part.items()}
    return rows, tested, broken


def _of_a_run(source: Path, run: RunConfig) -> tuple[dict[str, nn.Module], list[str] | None]:
    """The weights in a run's checkpoint, or in a folder's newest and best one, and the names of their classes."""
    files = [source] if source.is_file() else [source / name for name in (checkpoint.LAST, checkpoint.BEST)]
    models: dict[str, nn.Module] = {}
    classes = None
    for path in files:
        if path.name == checkpoint.BEST and not path.exists():
            continue  # a run without a validation split
        state = checkpoint.read(path)
        classes = state.get("classes")
        kinds = {"best": "model"} if path.name == checkpoint.BEST else {"raw": "model", "ema": "ema"}
        for kind, key in kinds.items():
            if state.get(key) is not None:
                models[kind] = run.build()
                checkpoint.load_weights(models[kind], state[key], str(path))
    return models, classes


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


def _own_images(name: str, data: DataConfig, changes: Mapping[str, Any]) -> tuple[DataConfig, Any]:
    """Data with the size, statistics and crop that timm says a model is evaluated with, and timm's transform for it."""
    settings = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict(), use_test_size=True)
    channels, *size = settings["input_size"]
    own = {
        "channels": channels,
        "image_size": size[-1],
        "mean": settings["mean"],
        "std": settings["std"],
        "eval_crop": settings["crop_pct"],
    }
    data = override(data, {**own, **changes})
    if "image_size" in changes:
        size = [data.image_size, data.image_size]
    settings.update(input_size=(data.channels, *size), mean=data.mean, std=data.std, crop_pct=data.eval_crop)
    return data, create_transform(**settings)


def _states(source: str, name: str) -> dict[str, Any]:
    """The kinds of weights of a timm model or in a file of it."""
    if source == name:
        return {"raw": weights.read(Weights(source=name))}
    states: dict[str, Any] = {}
    problem: ConfigError | None = None
    for kind, average in (("raw", False), ("ema", True)):
        try:
            states[kind] = weights.read(Weights(source=source, average=average))
        except ConfigError as error:
            problem = problem or error
    if problem is not None and not states:
        raise problem
    return states


def _of_timm(source: str, name: str, data: DataConfig, states: Mapping[str, Any]) -> dict[str, nn.Module]:
    classifier = get_pretrained_cfg(name).classifier
    arguments: dict[str, Any] = {"num_classes": data.num_classes, "in_chans": data.channels}
    models: dict[str, nn.Module] = {}
    for kind, state in states.items():
        weights.check_classes(state, f"{classifier}.bias", data.num_classes, source)
        if name.partition(".")[0] in default_cfgs:
            models[kind] = timm.create_model(name, **arguments)
            checkpoint.load_weights(models[kind], state, source)
        else:  # other networks' checkpoints may need timm to rename what is in them
            overlay = {"state_dict": state, "num_classes": data.num_classes}
            models[kind] = weights.pretrained(name, pretrained_cfg_overlay=overlay, **arguments)
    return models
