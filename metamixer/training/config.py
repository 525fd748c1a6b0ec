"""What a run is: a network, data, a recipe and a seed, all resolved before anything starts."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from ..backbone import Backbone, BackboneConfig
from ..config import Config, ConfigError
from ..modules import load_module, source_digest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[Positive, Positive]


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"a batch is even (mixup pairs its images), got {value}")
    return value


class DataConfig(Config):
    """Images and their splits.

    `name` is `digits`, `fashion-mnist`, `folder` (`root` holds `train/CLASS/*` and `validation/CLASS/*`) or
    whatever `timm.data.create_dataset` opens, e.g. `torch/cifar10`. Training images beyond `train_samples`
    are left out; `val_samples` of them are held out for choices made while training, which the test split
    (the data set's own evaluation images) must not decide.
    """

    name: str
    root: str | None = None
    num_classes: int = Field(gt=1)
    channels: Literal[1, 3]
    image_size: int = Field(ge=8)
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    eval_crop: float = Field(default=1.0, gt=0, le=1)
    train_samples: int | None = Field(default=None, gt=0)
    val_samples: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _statistics_per_channel(self) -> "DataConfig":
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} need one number for each of {self.channels} channels"
            )
        return self


class Recipe(Config):
    """How a network is trained; the defaults are FFNet's common recipe (arXiv 2406.02021, released scripts).

    `batch_size` is the global one. `epochs` is the length of the cosine; `cooldown_epochs` at `min_lr` come on
    top. `ema` is the decay of the weights' moving average, which is then what a run reports; null turns it
    off. `layer_scale_decay` says whether weight decay acts on layer scale, as it does in the released code.
    Colour jitter acts only where `rand_augment` is null, as in timm.
    """

    epochs: int = Field(default=300, gt=0)
    warmup_epochs: int = Field(default=5, ge=0)
    cooldown_epochs: int = Field(default=20, ge=0)
    batch_size: Annotated[int, Field(gt=1), AfterValidator(_even)] = 1024
    lr: Positive = 1e-3
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    layer_scale_decay: bool = True
    drop_path: Share = 0.0
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip: Share = 0.5
    color_jitter: float = Field(default=0.4, ge=0)
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erase: Share = 0.25
    mixup: float = Field(default=0.8, ge=0)
    cutmix: float = Field(default=1.0, ge=0)
    mix_probability: Share = 1.0
    mix_switch: Share = 0.5
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.9995
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr {self.min_lr} must not exceed lr {self.lr}")
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ConfigError(f"{key} {low, high}: the first number is the smaller one")
        return self

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs


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
    hold is part of the identity, where they lie is not.
    """

    modules: Annotated[tuple[UserModule, ...], AfterValidator(_import)] = ()
    model: SerializeAsAny[BackboneConfig]
    data: DataConfig
    recipe: Recipe
    seed: int = Field(default=0, ge=0)

    def identity(self) -> dict[str, Any]:
        values = self.to_dict()
        return {**values, "modules": [module["digest"] for module in values["modules"]]}

    def build(self, **changes: Any) -> Backbone:
        """The network, as this run trains it."""
        arguments: dict[str, Any] = {
            "num_classes": self.data.num_classes,
            "in_chans": self.data.channels,
            "img_size": self.data.image_size,
            "drop_path_rate": self.recipe.drop_path,
            **changes,
        }
        return Backbone(self.model, **arguments)

    def warnings(self) -> list[str]:
        """What a run can do but its author may not mean: kernels larger than the maps that they see."""
        found = []
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
