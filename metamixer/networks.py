"""What a name stands for: a network, the size of its images, how they are normalised, and the weights that it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from .checks import find
from .config import ConfigError, from_text, unknown
from .ffnet import default_cfgs
from .mixer import MetaMixer, build_mixer
from .operation import REGISTRY, Baseline, Site
from .presets import BASELINES, PRESETS
from .recipes import RECIPES, named_run
from .tasks import TASKS
from .training import checkpoint, weights
from .training.folder import RunFolder
from .training.recipe import Weights, is_timm_model
from .training.run_config import RunConfig

MIXER_DIM, MIXER_SIZE = 64, (28, 28)
State = dict[str, Tensor]
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Network:
    """A network in eval mode, not folded; images are (C, H, W), normalised by `mean` and `std`.

    `run` is the run that it belongs to, None for others; `classes` are named where its checkpoint does. A mixer's
    `input_size` is that of its map.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    run: RunConfig | None = None
    classes: list[str] | None = None

    @property
    def is_mixer(self) -> bool:
        return isinstance(self.model, MetaMixer | Baseline)


@dataclass(frozen=True)
class Held:
    """The weights that a source holds, and the run or the timm model that they are of.

    `states` are by kind: `raw`, `ema`, or `best` of the validation. `classes` are named where a run's checkpoint does.
    """

    states: dict[str, State]
    run: RunConfig | None = None
    timm_name: str = ""
    classes: list[str] | None = None


def size_of(text: str | None) -> Size | None:
    """Height and width from a command line: `224`, or `224x320` for a rectangle. Raises ConfigError: neither."""
    sides = (text or "").replace("×", "x").split("x")
    if text is None:
        return None
    if len(sides) > 2 or not all(map(str.isdecimal, sides)) or max(map(int, sides)) < 8 or min(map(int, sides)) < 1:
        raise ConfigError(f"size {text!r}: a side of at least 8 pixels, e.g. 224, or height x width, e.g. 224x320")
    return int(sides[0]), int(sides[-1])


def find_network(
    name: str, size: Size | int | None = None, trained: bool = False, source: str | None = None
) -> Network:
    """The network that `name` stands for.

    Args:
        name: a timm model, a recipe, a run's folder, a checkpoint of either, or a mixer, an operation in one or their
            JSON (then one of 64 channels on a map of 28×28).
        size: height and width of the images (of a mixer: of its map), or both in one; the network's own if None.
        trained: load what a run's folder has reported, the average of the weights or the last ones.
        source: weights of a timm model: a checkpoint's file, or "pretrained" for timm's own.

    Raises ConfigError: no such name, a size that the network can't have, or weights that do not fit.
    """
    size = (size, size) if isinstance(size, int) else size
    if source is not None and not timm.is_model(name):
        raise ConfigError(f"weights {source!r}: {name!r} is not a timm model; a run's folder has its own weights")
    if timm.is_model(name):
        if source is None:
            return _of_timm(name, size)
        file = name if source == "pretrained" else source
        return _of_timm(name, size, weights.read(Weights(source=file)), source)
    if name in RECIPES:
        return of_run(name, named_run(name), size)
    if (Path(name) / "config.json").is_file():
        folder = RunFolder(name)
        found = of_run(name, folder.config(), size)
        if not trained:
            return found
        result = folder.result() or {}
        if result.get("state") != "done":
            raise ConfigError(f"{folder.path}: the run has not finished, so it reports no weights")
        return _loaded(found, held_by(str(folder.path / checkpoint.LAST)), result["weights"])
    if Path(name).is_file() and Path(name).suffix != ".json":
        held = held_by(name)
        kind, state = next(iter(held.states.items()))
        if held.run is None:
            return _of_timm(held.timm_name, size, state, name)
        return _loaded(of_run(name, held.run, size), held, kind)
    return _of_mixer(name, size or MIXER_SIZE)


def _loaded(network: Network, held: Held, kind: str) -> Network:
    checkpoint.load_weights(network.model, held.states[kind], f"{network.name} ({kind})")
    return replace(network, classes=held.classes)


def _of_mixer(name: str, size: Size) -> Network:
    value, operations = from_text(name), [known for slot in REGISTRY.values() for known in slot]
    if isinstance(value, str) and value.rpartition(".")[2] not in (*PRESETS, *BASELINES, *operations, *TASKS):
        known = [*timm.list_models("ffnet_*"), *RECIPES, *PRESETS, *BASELINES, *operations]
        kinds = "timm model, recipe, run's folder, checkpoint or mixer"
        raise unknown(kinds, name, [*known, *timm.list_models()], "`launch.py recipes` lists the recipes")
    mixer = build_mixer(find(value, MIXER_DIM).config, Site(MIXER_DIM, *size))
    return Network(name, mixer.eval(), (MIXER_DIM, *size))


def of_run(name: str, run: RunConfig, size: Size | None = None) -> Network:
    """A run's network, with its initial values."""
    channels, *own = run.data.input_size
    height, width = size or own
    model = run.build(img_size=(height, width)).eval()
    return Network(name, model, (channels, height, width), run.data.mean, run.data.std, run)


def _of_timm(name: str, size: Size | None, state: State | None = None, source: str = "") -> Network:
    try:
        try:
            model = timm_model(name, state, source, **({} if size is None else {"img_size": size}))
        except TypeError:  # convolutional ones know no image size
            model = timm_model(name, state, source)
        cfg = model.pretrained_cfg
        channels, *own = cfg["input_size"]
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        if state is not None and (theirs := _channels(name, state)) not in (None, channels):
            channels, mean, std = theirs, (fmean(mean),) * theirs, (fmean(std),) * theirs
        height, width = size or own
        if size is not None:  # timm takes any where it does not ask for one
            with torch.no_grad():
                model.eval()(torch.zeros(1, channels, height, width))
    except (ValueError, AssertionError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        at = "" if size is None else f" at {size[0]}×{size[1]} px"
        raise ConfigError(f"timm model {name!r} does not run{at}: {' '.join(str(error).split())[:200]}") from None
    return Network(name, model.eval(), (channels, height, width), mean, std)


def timm_model(name: str, state: State | None = None, source: str = "", **arguments: Any) -> Any:
    """A timm model; with the weights of `source`, it has their classes and channels unless `arguments` say others.

    Raises ConfigError: the weights do not fit.
    """
    if state is None:
        return timm.create_model(name, **arguments)
    if (classes := class_count(name, state)) is not None:
        arguments = {"num_classes": classes, **arguments}
    if (channels := _channels(name, state)) is not None:
        arguments = {"in_chans": channels, **arguments}
    if name.partition(".")[0] in default_cfgs:
        model = timm.create_model(name, **arguments)
        checkpoint.load_weights(model, state, source)
        return model
    # other networks' checkpoints may need timm to rename what is in them
    overlay: dict[str, Any] = {"state_dict": state}
    if "num_classes" in arguments:
        overlay["num_classes"] = arguments["num_classes"]
    return weights.pretrained(name, pretrained_cfg_overlay=overlay, **arguments)


def class_count(name: str, state: State) -> int | None:
    """The classes of a timm model's weights; None if they have no head."""
    bias = state.get(f"{get_pretrained_cfg(name).classifier}.bias")
    return None if bias is None else len(bias)


def _channels(name: str, state: State) -> int | None:
    weight = state.get(f"{get_pretrained_cfg(name).first_conv}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def held_by(source: str, network: str | None = None) -> Held:
    """All weights of a run's folder, of one of its checkpoints, of another checkpoint, or of a timm name.

    Args:
        network: timm name of the network that a checkpoint of unknown name belongs to.

    Raises ConfigError: no such checkpoint, a damaged one, or one of a network that is not known.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / "config.json").is_file():
        if network is not None:
            raise ConfigError(f"--model {network}: {folder} is a run, which has its own network")
        return _held_by_a_run(path, RunFolder(folder).config())
    name = network or _network_of(source)
    if not is_timm_model(name):
        near = timm.list_models(f"{name.split('_')[0]}*")[:3]
        raise ConfigError(f"no timm model {name!r}" + (f"; there are {', '.join(near)}, ..." if near else ""))
    if source == name:
        return Held({"raw": weights.read(Weights(source=name))}, timm_name=name)
    states: dict[str, State] = {}
    problems = []
    for kind, average in (("raw", False), ("ema", True)):
        try:
            states[kind] = weights.read(Weights(source=source, average=average))
        except ConfigError as error:
            problems.append(error)
    if not states:
        raise problems[0]
    return Held(states, timm_name=name)


def _held_by_a_run(path: Path, run: RunConfig) -> Held:
    """The weights in a run's checkpoint; of a folder, those in its newest and its best one."""
    files = [path] if path.is_file() else [path / name for name in (checkpoint.LAST, checkpoint.BEST)]
    states: dict[str, State] = {}
    classes = None
    for file in files:
        if file.name == checkpoint.BEST and not file.exists():
            continue  # a run without a validation split
        content = checkpoint.read(file)
        classes = content.get("classes")
        kinds = {"best": "model"} if file.name == checkpoint.BEST else {"raw": "model", "ema": "ema"}
        states |= {kind: content[key] for kind, key in kinds.items() if content.get(key) is not None}
    return Held(states, run, classes=classes)


def _network_of(source: str) -> str:
    """The timm name of a source: itself, or that of the published file of this name."""
    if is_timm_model(source):
        return source
    if not Path(source).is_file():
        raise ConfigError(f"{source!r}: neither a run's folder, nor a checkpoint, nor a timm model's name")
    for network, tagged in default_cfgs.items():
        for tag, cfg in tagged.cfgs.items():
            if cfg.url and Path(cfg.url).name == Path(source).name:
                return f"{network}.{tag}"
    raise ConfigError(
        f"{source}: which network is this? `evaluate` takes --model NAME, e.g. --model ffnet_1; `export NAME` takes "
        "--weights FILE; `cost` and `bench` take NAME alone"
    )
