"""Checkpoints, ours and others', on the evaluation images of a data set: each kind of weights is a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from ..config import override
from ..networks import class_count, held_by, timm_model
from . import checkpoint, weights
from .data import Data
from .data_config import AnyData, DataConfig
from .distributed import joined
from .evaluate import evaluate
from .images import ImageClasses

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

    Raises ConfigError: no such checkpoint, a damaged one, one of another network, or data that can't be used.
    """
    held = held_by(source, network)
    run, name, transform = held.run, held.timm_name, None
    if run is None or isinstance(run.data, DataConfig):
        changes = {"manifest": None, **changes}  # of a training's images, which need not be there
    tested: AnyData
    if run is not None:
        run = override(run, {f"data.{key}": value for key, value in changes.items()})
        tested = run.data
    else:
        classes = class_count(name, next(iter(held.states.values())))
        changes = changes if classes is None else {"num_classes": classes, **changes}
        tested, transform = _own_images(name, data, changes)
    with joined(device) as (world, own):
        task = ImageClasses(tested, None, held.classes, transform) if isinstance(tested, DataConfig) else None
        images = Data(tested, None, workers=workers, device=own, task=task)
        rows = {}
        for kind, state in held.states.items():
            if run is not None:
                model = run.build()
                checkpoint.load_weights(model, state, source)
            else:
                bias = f"{get_pretrained_cfg(name).classifier}.bias"
                weights.check_classes(state, bias, tested.num_classes, source)
                model = timm_model(name, state, source, num_classes=tested.num_classes, in_chans=tested.channels)
            batches = images.evaluation("test", world.rank, world.size)
            rows[kind], _ = evaluate(model.to(own).eval(), images.task, batches, own, world)
        broken = {name: why for part in world.gather(images.broken) for name, why in part.items()}
    return rows, tested, broken


def _own_images(name: str, data: DataConfig, changes: Mapping[str, Any]) -> tuple[DataConfig, Any]:
    """Data with the size, statistics and crop that timm says a model is evaluated with, and timm's transform for it."""
    settings = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict(), use_test_size=True)
    channels, *size = settings["input_size"]
    own = {
        "channels": channels,
        "image_size": size,
        "mean": settings["mean"],
        "std": settings["std"],
        "eval_crop": settings["crop_pct"],
    }
    data = override(data, {**own, **changes})
    if "image_size" in changes:
        size = data.input_size[1:]
    settings.update(input_size=(data.channels, *size), mean=data.mean, std=data.std, crop_pct=data.eval_crop)
    return data, create_transform(**settings)
