"""Named data, recipes and whole runs: what grids start from, and the published runs of FFNet.

    python launch.py recipes                  # the table of RECIPES
    python launch.py train ffnet_1 --set data.root=/data/imagenet

Every entry of `RECIPES` is FFNet-1's published run with some keys changed. Source: arXiv 2406.02021 and its
released training scripts, unless an entry says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .architecture import isotropic
from .config import ConfigError, digest, override, parse, unknown
from .dense.forecast import ffnet_forecast
from .dense.segmentation import SegmenterConfig
from .dense.superresolution import ffnet_sr
from .ffnet import CONFIGS, ffnet
from .presets import BASELINES, PRESETS
from .tasks import TASKS
from .training.data_config import DataConfig
from .training.folder import RunFolder
from .training.recipe import Recipe
from .training.run_config import RunConfig

# scikit-learn's scanned digits, enlarged from 8 to 12 px: real images that need no download
DIGITS = DataConfig(
    name="digits", num_classes=10, channels=1, image_size=12, mean=(0.305,), std=(0.34,), val_samples=100
)

# Fashion-MNIST (arXiv 1708.07747): 10,000 of its training images, so that a run takes minutes, and 1,000
# held out for choices; the test split is its own 10,000
FASHION_MNIST = override(
    DIGITS,
    {"name": "fashion-mnist", "image_size": 28, "mean": (0.286,), "std": (0.353,)}
    | {"train_samples": 10_000, "val_samples": 1000},
)

# ImageNet-1K as a folder of train/CLASS/*.jpeg and validation/CLASS/*.jpeg, or as tar files. The published runs
# train on all of it; data.val_samples holds images out for choices made while training.
IMAGENET = DataConfig(
    name="folder",
    num_classes=1000,
    channels=3,
    image_size=256,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    eval_crop=0.9,
)

# FFNet's common recipe, 8 × 128 images a step, with FFNet-1's mixup and drop path
FFNET_1 = Recipe(mixup_alpha=0.2, drop_path_rate=0.1, micro_batch=128, precision="float16")

# A short schedule, weak augmentation, an EMA as short as the run: for ablations that take minutes
SMALL = Recipe(
    epochs=5,
    warmup_epochs=1,
    cooldown_epochs=0,
    batch_size=64,
    lr=3e-3,
    warmup_lr=1e-5,
    crop_scale=(0.6, 1.0),
    rand_augment=None,
    erase_prob=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    ema_decay=0.98,
)
# and what a grid of many runs, or of slow ones, changes in that: too short for an average of the weights
SCREENING = {"data.train_samples": 5000, "recipe.epochs": 4, "recipe.ema_decay": None}

# A mirrored digit is no digit. With a tenth of the steps the EMA is shorter again, so that the average of BatchNorm's
# statistics forgets its start.
SMALL_DIGITS = override(SMALL, {"flip_prob": 0.0, "lr": 4e-3, "ema_decay": 0.8})

# Probes: 200 steps of 32 new samples each, learning rates that fall from the second tenth on
PROBE = override(
    SMALL,
    {"epochs": 10, "batch_size": 32, "lr": 1e-2, "init": "fan_in", "ema_decay": None}
    | {"crop_scale": (1.0, 1.0), "flip_prob": 0.0, "label_smoothing": 0.0},
)

SMALL_BACKBONE = ffnet((1, 2, 1), (32, 64, 128), (3, 3, 3), (3, 3, 3), stem_width=32, norm="batch")

PAPER = "arXiv 2406.02021"
BASE = RunConfig(model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=FFNET_1, seed=42)


@dataclass(frozen=True)
class NamedRun:
    """A run under a name.

    Attributes:
        about: what it trains.
        expected: the first metric on test samples (top-1), as published or measured.
        changes: what differs from `BASE`, by dotted key.
        source: where the recipe and the expected figure come from.
        needs: keys that point to another named run unless a user sets them: the run's name, and the file of its
            folder, or "" for the folder.
    """

    about: str
    expected: str
    changes: Mapping[str, Any]
    source: str = "this project"
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def named_run(name: str, overrides: Mapping[str, Any] | None = None, runs: Path = Path("runs")) -> RunConfig:
    """The configuration of a named run.

    Args:
        overrides: changes by dotted key, as `metamixer.override` takes them.
        runs: folder of the runs, where those lie that this one builds on.

    Raises ConfigError: no such name, a change that does not fit, or a run that it builds on is missing.
    """
    if name not in RECIPES:
        if name in TASKS:
            kin = next(other for other in RECIPES if other in TASKS and TASKS[other].networks == TASKS[name].networks)
            hint = f"it is a task: change that of a recipe, launch.py train {kin} --set data.task={name}"
            raise ConfigError(f"no recipe {name!r}; {hint}")
        if name in (*PRESETS, *BASELINES):
            raise ConfigError(f"no recipe {name!r}; it is a mixer: launch.py probe {name} trains it")
        raise unknown("recipe", name, RECIPES)
    recipe, overrides = RECIPES[name], overrides or {}
    changes = dict(recipe.changes)
    for key, (needed, file) in recipe.needs.items():
        if any(key == given or key.startswith(f"{given}.") for given in overrides):
            continue
        folder = runs / digest(named_run(needed, runs=runs))
        if (RunFolder(folder).result() or {}).get("state") != "done":
            raise ConfigError(
                f"recipe {name!r} builds on recipe {needed!r}, which has no finished run in {runs}: train it "
                f"(launch.py train {needed}) or give --set {key}={'FILE' if file else 'FOLDER'}"
            )
        changes[key] = str(folder / file)
    return override(override(BASE, changes), dict(overrides))


def configured_run(name: str, overrides: Mapping[str, Any], runs: Path) -> RunConfig:
    """A named run, or the one in a `config.json`, with some keys changed.

    Raises ConfigError: no such name or file, or one that does not make a run.
    """
    if name.endswith(".py"):
        raise ConfigError(f"{name} is a grid: use `launch.py run {name}`")
    if not name.endswith(".json"):
        return named_run(name, overrides, runs)
    path = Path(name)
    return override(RunFolder(path.parent).config(path.name), dict(overrides))


def _network(name: str, drop_path: float, mixup: float, **more: Any) -> dict[str, Any]:
    eval_crop = 0.9 if name in ("ffnet_1", "ffnet_2") else 0.95
    changes = {"model": CONFIGS[name], "data.eval_crop": eval_crop}
    return {**changes, "recipe.drop_path_rate": drop_path, "recipe.mixup_alpha": mixup, **more}


# RegNetY-16GF with DeiT's weights (arXiv 2012.12877), which timm knows by this name; with the checkpoint as a file,
# set recipe.distillation.weights.source
TEACHER = {"recipe.distillation": {"teacher": "regnety_160.deit_in1k"}}

# 8 × 64 images a step; the EMA starts anew from the weights
FINE_TUNE = {
    "data.image_size": 384,
    "data.eval_crop": 1.0,
    "recipe.batch_size": 512,
    "recipe.micro_batch": 64,
    "recipe.schedule": "constant",
    "recipe.lr": 5e-6,
    "recipe.epochs": 30,
    "recipe.warmup_epochs": 0,
    "recipe.cooldown_epochs": 0,
    "recipe.weight_decay": 1e-8,
}

# The published recipe on Fashion-MNIST, in minutes on a CPU: width, depth and image size of a small network, a tenth
# of the epochs, one GPU's share of the batch, an EMA over as few steps as the shorter run asks for, no autocast.
# Augmentation, mixing, smoothing, learning rates, decay and drop path stay the published ones.
SCALED = {
    "model": override(CONFIGS["ffnet_mini"], {"stem_stride": 2}),
    "data": FASHION_MNIST,
    "recipe.epochs": 30,
    "recipe.warmup_epochs": 1,
    "recipe.cooldown_epochs": 2,
    "recipe.batch_size": 128,
    "recipe.ema_decay": 0.99,
    "recipe.precision": "float32",
}


def _published(
    name: str, expected: str, drop_path: float, mixup: float, about: str = "at 256 px", needs: Any = None, **more: Any
) -> NamedRun:
    changes = _network(name, drop_path, mixup, **more)
    return NamedRun(f"{name.replace('ffnet_', 'FFNet-')} {about}", expected, changes, PAPER, needs or {})


def _small(about: str, expected: str, drop_path: float, mixup: float, needs: Any = None, **more: Any) -> NamedRun:
    return NamedRun(about, expected, {**_network("ffnet_1", drop_path, mixup), **SCALED, **more}, needs=needs or {})


FROM_REGNET = "at 256 px, distilled from RegNetY-16GF"
UNPUBLISHED = "at 256 px: this recipe was not published; the common one with the network's default drop path"
FROM_256 = "fine-tuned at 384 px; its weights at 256 px were not published: train ffnet_4 or set initial.source"
RELEASED = {"initial": {"source": "ffnet_3.in1k"}}
RECIPES: dict[str, NamedRun] = {
    "ffnet_1": _published("ffnet_1", "81.3 %", 0.1, 0.2),
    "ffnet_2": _published("ffnet_2", "82.9 %", 0.15, 0.2),
    "ffnet_3": _published("ffnet_3", "83.9 %", 0.35, 0.8),
    "ffnet_4": _published("ffnet_4", "not published", 0.4, 0.8, UNPUBLISHED),
    "ffnet_1_distilled": _published("ffnet_1", "82.1 %", 0.02, 0.8, FROM_REGNET, **TEACHER),
    "ffnet_2_distilled": _published("ffnet_2", "83.7 %", 0.08, 0.8, FROM_REGNET, **TEACHER),
    "ffnet_3_distilled": _published("ffnet_3", "84.5 %", 0.2, 0.8, FROM_REGNET, **TEACHER),
    "ffnet_3_384": _published(
        "ffnet_3", "84.5 %", 0.4, 0.8, "fine-tuned at 384 px from the released weights", **FINE_TUNE, **RELEASED
    ),
    "ffnet_4_384": _published(
        "ffnet_4", "85.3 %", 0.5, 0.8, FROM_256, {"initial.source": ("ffnet_4", "last.pt")}, **FINE_TUNE
    ),
    "recall": NamedRun(
        "attention in an isotropic network, 6×6 cells: each key is asked for its value",
        "100 % measured",
        {
            "model": isotropic(2, 32, "attention"),
            "data": {"task": "recall", "train_samples": 20 * 32, "val_samples": 100, "test_samples": 500},
            "recipe": PROBE,
        },
    ),
    "garments": NamedRun(
        "garments on textured ground, 48 px: the class of each pixel, by a small FFNet under a plain decoder",
        "18 to 20 % mIoU measured",
        {
            "model": parse(SegmenterConfig, {"backbone": SMALL_BACKBONE, "decoder": {"name": "fpn", "width": 32}}),
            "data": {
                "task": {"name": "garments", "size": 48},
                "train_samples": 50 * 32,
                "val_samples": 250,
                "test_samples": 1000,
            },
            "recipe": override(PROBE, {"epochs": 8, "lr": 3e-3}),
        },
    ),
    "photographs": NamedRun(
        "photographs at twice their size, by a small FFNetSR",
        "32.8 dB measured, bicubic 32.5",
        {
            "model": ffnet_sr(depth=4, width=32),
            "data": {"task": "photographs", "train_samples": 50 * 16, "val_samples": 1},
            "recipe": override(PROBE, {"epochs": 6, "batch_size": 16, "lr": 3e-3, "weight_decay": 0.0}),
        },
    ),
    "series": NamedRun(
        "four days of Beijing's air and weather from the four before, by FFNet's forecaster",
        "MSE 0.54 measured, seasonal naive 0.90",
        {
            "model": ffnet_forecast(variables=7, dim=16),
            "data": {
                "task": {"name": "series", "interpolate": True},
                "train_samples": 50 * 32,
                "val_samples": 1000,
            },
            "recipe": override(PROBE, {"epochs": 6, "lr": 2e-3, "weight_decay": 0.0}),
        },
    ),
    "small": _small("ffnet_1's recipe scaled down to Fashion-MNIST", "83.2 % measured", 0.1, 0.2),
    "small_teacher": _small(
        "a wider network on all training images, by the same recipe with fewer epochs",
        "85.9 % measured",
        0.1,
        0.2,
        **{f"model.stages.{i}.width": width for i, width in enumerate((48, 96, 192, 384))},
        **{"data.train_samples": None, "recipe.epochs": 8, "recipe.cooldown_epochs": 1},
    ),
    "small_distilled": _small(
        "ffnet_1_distilled's recipe scaled down to Fashion-MNIST; the teacher is small_teacher",
        "84.2 % measured",
        0.02,
        0.8,
        {"recipe.distillation.teacher": ("small_teacher", "")},
    ),
    # a tenth of the epochs, so ten times the published learning rate
    "small_finetuned": _small(
        "small fine-tuned at 1.5 times its resolution",
        "79.9 % measured",
        0.1,
        0.2,
        {"initial.source": ("small", "last.pt")},
        **FINE_TUNE | {"data.image_size": 42, "recipe.batch_size": 64, "recipe.lr": 5e-5, "recipe.epochs": 3},
    ),
}
