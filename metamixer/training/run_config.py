"""What a run is: a network, data, a recipe and a seed, all resolved before anything starts."""

import json
import re
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator
from torch import nn

from .. import plugins
from ..architecture import Asked, BackboneConfig
from ..branches import equalize
from ..config import Config, ConfigError
from ..dense import Network, build_network, config_class
from ..dense.segmentation import SegmenterConfig
from ..dense.superresolution import SuperResolverConfig
from ..tasks import Metric
from ..timm_models import TimmConfig
from .data_config import AnyData, DataConfig, TaskData
from .recipe import Recipe, Weights


class UserModule(Config):
    """A file of the user's own that a run uses: its name, and the digest of its code (`plugins`)."""

    name: str
    digest: str


def _images_or_task(value: Any) -> AnyData:
    if isinstance(value, DataConfig | TaskData):
        return value
    cls = TaskData if isinstance(value, dict) and "task" in value else DataConfig
    return cls.model_validate_json(json.dumps(value))


def _network(value: Any) -> Network:
    if isinstance(value, Network):
        return value
    return config_class(value).model_validate_json(json.dumps(value))  # type: ignore[return-value]


# what the recipe does with images and their labels, by the value that turns it off
OF_IMAGES = {
    "crop_scale": (1.0, 1.0),
    "flip_prob": 0.0,
    "color_jitter": 0.0,
    "rand_augment": None,
    "erase_prob": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "label_smoothing": 0.0,
    "distillation": None,
}


class RunConfig(Config):
    """One training run; `metamixer.digest` of it is the run's identity.

    `modules` are those of the loaded users' files that the run uses; they are found, not given. `initial` weights are
    for fine-tuning: the optimizer and the moving average start anew from them. `threads` are those of each process on a
    CPU, which the last digits depend on. `tensorboard` logs the metrics for TensorBoard too; no hash holds it.
    """

    modules: tuple[UserModule, ...] = ()
    model: Annotated[SerializeAsAny[Network], PlainValidator(_network)]
    # not by pydantic's union, whose errors would name both
    data: Annotated[SerializeAsAny[AnyData], PlainValidator(_images_or_task)]
    recipe: Recipe
    seed: int = Field(default=0, ge=0)
    initial: Weights | None = None
    threads: int = Field(default=1, ge=1)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _find_modules(self) -> "RunConfig":
        task = self.data.task.to_dict() if isinstance(self.data, TaskData) else None
        found = plugins.used([self.model.to_dict(), task]) if plugins.loaded() else []
        modules = tuple(UserModule(name=plugin.name, digest=plugin.digest) for plugin in found)
        object.__setattr__(self, "modules", modules)  # frozen
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> "RunConfig":
        name = getattr(self.model, "network", "backbone")
        networks = self.data.built.networks if isinstance(self.data, TaskData) else ("backbone",)
        if name not in networks:
            raise ConfigError(f"model.network {name!r}: {self.data.about} needs a {' or a '.join(networks)}")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> "RunConfig":
        if not isinstance(self.data, TaskData):
            return self
        for key, plain in OF_IMAGES.items():
            if getattr(self.recipe, key) != plain:
                raise ConfigError(
                    f"recipe.{key} {getattr(self.recipe, key)!r}: a task's samples are trained on as they are, "
                    f"set it to {json.dumps(plain)}"
                )
        task = self.data.built
        if isinstance(self.model, SuperResolverConfig):
            larger = tuple(self.model.scale * side for side in task.input_size)
            if larger != task.answer_size:
                asked, given = ("×".join(map(str, size)) for size in (task.answer_size, larger))
                raise ConfigError(
                    f"model.scale {self.model.scale}: task {task.name!r} asks {asked} pixels, the network gives {given}"
                )
        if task.head == "cells" and isinstance(self.model, BackboneConfig):
            height, width = (self.model.map_sizes(side)[-1] for side in task.input_size)
            if (height, width) != task.answer_size:
                asked = "×".join(map(str, task.answer_size))
                raise ConfigError(
                    f"task {task.name!r} asks {asked} cells, the network answers for {height}×{width}: change "
                    "model.stem_stride or model.downsample"
                )
        return self

    @model_validator(mode="after")
    def _layers_are_named(self) -> "RunConfig":
        layered = self.model.backbone if isinstance(self.model, SegmenterConfig) else self.model
        if self.recipe.layer_decay != 1 and not isinstance(layered, BackboneConfig | TimmConfig):
            raise ConfigError("recipe.layer_decay: this network does not name its layers; set it to 1")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured; the first metric decides."""
        return self.data.built.metrics

    @classmethod
    def parsing(cls, values: Any) -> AbstractContextManager[None]:
        """While a run is read, the registries hold its own version of each user's file."""
        return plugins.active([module["digest"] for module in values.get("modules", ())])

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().hashed(values)
        del values["tensorboard"]
        return {**values, "modules": [module.digest for module in self.modules]}

    def build(self, **changes: Any) -> nn.Module:
        """The network, as this run trains it."""
        channels, height, width = self.data.input_size
        asked = Asked(
            self.data.num_classes,
            channels,
            (height, width),
            "avg" if self.data.head == "pooled" else "",
            self.recipe.drop_path_rate,
            self.seed,
            self.recipe.init,
        )
        asked = replace(asked, **changes)
        with plugins.active([module.digest for module in self.modules]):
            model = build_network(self.model, asked)
        if self.recipe.branch_ratio is not None:
            equalize(model, self.recipe.branch_ratio, (channels, *asked.img_size))
        return model

    def warnings(self) -> list[str]:
        """Settings that run but may be mistakes: kernels larger than their maps, an average that lags."""
        found = []
        decay = self.recipe.ema_decay
        if decay is not None and self.data.train_samples is not None and self.initial is None:
            steps = self.data.train_samples // self.recipe.batch_size * self.recipe.total_epochs
            if decay**steps > 1e-6:
                found.append(
                    f"after {steps} steps an EMA of {decay} still holds {decay**steps:.0e} of its start, which "
                    "spoils BatchNorm's small variances: lower recipe.ema_decay or set it to null"
                )
        if isinstance(self.model, BackboneConfig):
            sizes = self.model.map_sizes(max(self.data.input_size[1:]))
            for number, (stage, size) in enumerate(zip(self.model.stages, sizes, strict=True), 1):
                # of each mixer, wherever a kernel stands in it
                largest = max(map(int, re.findall(r'"kernel_size":(\d+)', stage.model_dump_json())), default=0)
                if (whole := 2 * size - 1) < largest:
                    kernel, acts = (f"{side}×{side}" for side in (largest, whole))
                    found.append(f"stage {number}: a {kernel} kernel on a map {size} wide acts as {acts}")
        return found
