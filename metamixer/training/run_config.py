"""What a run is: a network, data, a recipe and a seed, all resolved before anything starts."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializeAsAny

from ..architecture import BackboneConfig
from ..backbone import Backbone
from ..config import Config, ConfigError
from ..plugins import load_module, source_digest
from .data_config import DataConfig
from .recipe import Recipe, Weights


class UserModule(Config):
    """A module of the user's own that registers operations: a file's path or a dotted name, and its digest."""

    source: str
    digest: str

    @classmethod
    def of(cls, source: str) -> "UserModule":
        return cls(source=source, digest=source_digest(source))


def _import(modules: tuple[UserModule, ...]) -> tuple[UserModule, ...]:
    for module in modules:
        if source_digest(module.source) != module.digest:
            raise ConfigError(f"{module.source} has changed since the run was planned; plan it again")
        load_module(module.source)
    return modules


class RunConfig(Config):
    """One training run; `metamixer.digest` of it is the run's identity.

    `modules` are imported before anything else is read, so that the network may name their operations; what they
    hold is part of the identity, where they lie is not. `initial` weights are for fine-tuning: the optimizer and the
    moving average start anew from them. `threads` are those of each process on a CPU, which the last digits depend on.
    """

    modules: Annotated[tuple[UserModule, ...], AfterValidator(_import)] = ()
    model: SerializeAsAny[BackboneConfig]
    data: DataConfig
    recipe: Recipe
    seed: int = Field(default=0, ge=0)
    initial: Weights | None = None
    threads: int = Field(default=1, ge=1)

    def identity(self) -> dict[str, Any]:
        values = self.to_dict()
        values["modules"] = [module["digest"] for module in values["modules"]]
        values["data"] = self.data.identity()
        if self.initial is not None:
            values["initial"] = self.initial.identity()
        if self.recipe.distillation is not None:
            values["recipe"]["distillation"] = self.recipe.distillation.identity()
        return values

    def build(self, **changes: Any) -> Backbone:
        """The network, as this run trains it."""
        arguments: dict[str, Any] = {
            "num_classes": self.data.num_classes,
            "in_chans": self.data.channels,
            "img_size": self.data.image_size,
            "drop_path_rate": self.recipe.drop_path_rate,
            "seed": self.seed,
            **changes,
        }
        return Backbone(self.model, **arguments)

    def warnings(self) -> list[str]:
        """What a run can do but its author may not mean: kernels larger than their maps, an average that lags."""
        found = []
        decay = self.recipe.ema_decay
        if decay is not None and self.data.train_samples is not None and self.initial is None:
            steps = self.data.train_samples // self.recipe.batch_size * self.recipe.total_epochs
            if decay**steps > 1e-6:
                found.append(
                    f"after {steps} steps an EMA of {decay} still holds {decay**steps:.0e} of its start, which "
                    "BatchNorm's small variances do not forgive: lower recipe.ema_decay or set it to null"
                )
        for i, (stage, size) in enumerate(
            zip(self.model.stages, self.model.map_sizes(self.data.image_size), strict=True)
        ):
            kernels = {k for mixer in _mixers(stage) for k in _kernels(mixer.to_dict())}
            if kernels and min(max(kernels), 2 * size - 1) < max(kernels):
                found.append(
                    f"stage {i + 1}: a {max(kernels)}×{max(kernels)} kernel on a map {size} wide acts as "
                    f"{2 * size - 1}×{2 * size - 1}"
                )
        return found


def _mixers(stage: Any) -> list[Any]:
    return [mixer for block in range(stage.depth) for mixer in stage.mixers(block)]


def _kernels(node: Any) -> list[int]:
    if isinstance(node, dict):
        own = [node["kernel_size"]] if isinstance(node.get("kernel_size"), int) else []
        return own + [k for value in node.values() for k in _kernels(value)]
    return []
