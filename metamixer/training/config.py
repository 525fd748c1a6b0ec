"""What a run is: a network, data, a recipe and a seed, all resolved before anything starts."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, Field, SerializeAsAny, model_validator
from timm.models import get_pretrained_cfg

from .. import ffnet  # noqa: F401 (registers FFNet in timm)
from ..backbone import Backbone, BackboneConfig
from ..config import Config, ConfigError
from ..modules import load_module, source_digest
from .randaugment import parse_rand_augment

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[Positive, Positive]


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"a batch is even (mixup pairs its images), got {value}")
    return value


def _rand_augment(text: str) -> str:
    parse_rand_augment(text)  # timm, which augments large images, would pass over what it does not know
    return text


def _data_name(name: str) -> str:
    prefix, slash, _ = name.lower().partition("/")
    if slash and prefix in ("wds", "tfds", "hfids"):  # timm's readers that give images in their own order only
        raise ValueError(
            f"data {name!r} can only be read from front to back, but a run's batches are chosen by seed, epoch "
            "and index: use data.name=folder with folders or tar files of one folder a class, or hfds/NAME"
        )
    # of any other name timm would look at `root` alone, and open that as a folder of images
    if name not in ("digits", "fashion-mnist", "folder") and (not slash or prefix not in ("torch", "hfds")):
        raise ValueError(
            f"no data set {name!r}; there are digits, fashion-mnist, folder, and what timm opens as torch/NAME or "
            "hfds/NAME, most of it with data.root"
        )
    return name


class DataConfig(Config):
    """Images and their splits.

    `name` is `digits`, `fashion-mnist`, `folder` (`root` holds `train/CLASS/*` and `validation/CLASS/*`) or
    what `timm.data.create_dataset` opens as `torch/NAME` or `hfds/NAME`, e.g. `torch/cifar10`. Training images
    beyond `train_samples` are left out; `val_samples` of them are held out for choices made while training, which the
    test split (the data set's own evaluation images) must not decide. A folder may hold tar files in place of class
    folders.

    A broken image stops a run with its name. With `skip_broken` it is recorded by name instead: evaluation leaves it
    out, in training the next whole image takes its place, whichever process meets it.
    """

    name: Annotated[str, AfterValidator(_data_name)]
    root: str | None = None
    num_classes: int = Field(gt=1, le=2**15)  # predictions and a teacher's answers are kept as int16
    channels: Literal[1, 3]
    image_size: int = Field(ge=8)
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    eval_crop: float = Field(default=1.0, gt=0, le=1)
    train_samples: int | None = Field(default=None, gt=0)
    val_samples: int = Field(default=0, ge=0)
    skip_broken: bool = False

    @model_validator(mode="after")
    def _statistics_per_channel(self) -> "DataConfig":
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} need one number for each of {self.channels} channels"
            )
        return self


class Weights(Config):
    """Weights to start from or to learn from.

    `source` is a file (a checkpoint with the weights themselves or under `model`, `state_dict` or
    `state_dict_ema`, such as a released one or a run's `last.pt`) or the name of a timm model with pretrained
    weights. `digest` is filled in from a file's content and is, in the file's place, part of a run's identity.
    `average` takes the moving average of the weights that the file holds beside them.
    """

    source: str
    digest: str | None = None
    average: bool = False

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("digest") is not None:
            return values
        source = values.get("source")
        if not isinstance(source, str) or is_timm_model(source):
            return values
        return {**values, "digest": file_digest(source)}

    @model_validator(mode="after")
    def _average_of_a_file(self) -> "Weights":
        if self.average and self.digest is None:
            raise ConfigError(f"average: {self.source!r} is a timm model, whose weights have no average beside them")
        return self

    def identity(self) -> dict[str, Any]:
        values = self.to_dict()
        return values if self.digest is None else {**values, "source": None}


def is_timm_model(name: str) -> bool:
    """Whether timm knows this name, its tag too: `ffnet_1.in1k` is a model, `ffnet_1.pth.tar` is a file."""
    try:
        return timm.is_model(name) and ("." not in name or get_pretrained_cfg(name) is not None)
    except RuntimeError:  # no such tag
        return False


def file_digest(path: str) -> str:
    """16 hexadecimal digits of a file's content.

    Raises:
        ConfigError: no such file.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        reason = "no such file, nor a timm model's name" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"weights {path!r}: {reason}") from None


class Distillation(Config):
    """A frozen teacher's part in the loss, (1 - alpha) · base + alpha · distillation (DeiT, arXiv 2012.12877).

    `teacher` is a timm model's name, with its pretrained weights or those in `weights`, or the folder of a
    finished run, whose reported weights it takes unless `weights` names another file of that folder.
    `hard` is the cross-entropy to the teacher's class, `soft` the Kullback-Leibler divergence at `temperature`.
    """

    teacher: str
    weights: Weights | None = None
    kind: Literal["hard", "soft"] = "hard"
    alpha: Share = 0.5
    temperature: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _weights_of_a_run(cls, values: Any) -> Any:
        teacher = values.get("teacher") if isinstance(values, dict) else None
        if not isinstance(teacher, str) or values.get("weights") is not None or is_timm_model(teacher):
            return values
        try:
            result = json.loads((Path(teacher) / "result.json").read_text())
        except (OSError, ValueError):
            result = {}
        if result.get("state") != "done":
            raise ConfigError(f"teacher {teacher!r}: neither a timm model's name nor the folder of a finished run")
        average = result["weights"] == "ema"
        return {**values, "weights": {"source": str(Path(teacher) / "last.pt"), "average": average}}

    @model_validator(mode="after")
    def _consistent(self) -> "Distillation":
        of_a_run = self.weights is not None and not is_timm_model(self.teacher)
        if of_a_run and self.weights and Path(self.weights.source).parent != Path(self.teacher):
            raise ConfigError(f"teacher {self.teacher!r} is a run, but weights {self.weights.source!r} are not its")
        if self.kind == "hard" and self.temperature != 1:
            raise ConfigError(f"hard distillation has no temperature: leave it 1, not {self.temperature}")
        return self

    def identity(self) -> dict[str, Any]:
        values = self.to_dict()
        if self.weights is not None:
            values["weights"] = self.weights.identity()
            values["teacher"] = self.teacher if is_timm_model(self.teacher) else None  # its weights identify a run
        return values


class Recipe(Config):
    """How a network is trained; the defaults are FFNet's common recipe (arXiv 2406.02021, released scripts).

    `batch_size` is the global one. A step averages the gradients of batch_size / `micro_batch` forward passes
    (one if null); all that is random or depends on a batch (mixup, BatchNorm's statistics, stochastic depth)
    belongs to a pass, so that the numbers do not depend on how many processes share a step's passes; only
    BatchNorm's running statistics do, see below. The published runs had 128 images in a pass.

    `epochs` is the length of the cosine, after `warmup_epochs` that count among them; `cooldown_epochs` at
    `min_lr` come on top. The schedule `constant` keeps `lr` after the warm-up and has no cool-down.
    `weight_decay_end` lets the weight decay follow a cosine too, from `weight_decay` to it. With `lr_batch` the
    three learning rates are meant for that batch and are scaled by batch_size / lr_batch.

    `ema` is the decay of the weights' moving average, which is then what a run reports; null turns it off. The
    released code reports the better of averaged and raw weights on the test images; here nothing is chosen on them.
    `layer_scale_decay` says whether weight decay acts on layer scale, as it does in the released code.
    Colour jitter acts only where `rand_augment` is null, as in timm.

    `batch_norm` says what several processes do with BatchNorm's running statistics: `average` them after each
    epoch, as published, or keep those of the first process (`local`). `synchronized` also computes each pass's
    own statistics over all processes, so that the numbers depend on how many there are.
    """

    epochs: int = Field(default=300, gt=0)
    warmup_epochs: int = Field(default=5, ge=0)
    cooldown_epochs: int = Field(default=20, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    batch_size: Annotated[int, Field(gt=1), AfterValidator(_even)] = 1024
    micro_batch: Annotated[int, Field(gt=1), AfterValidator(_even)] | None = None
    lr: Positive = 1e-3
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)
    lr_batch: Annotated[int, Field(gt=0)] | None = None
    weight_decay: float = Field(default=0.05, ge=0)
    weight_decay_end: Annotated[float, Field(ge=0)] | None = None
    layer_scale_decay: bool = True
    drop_path: Share = 0.0
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip: Share = 0.5
    color_jitter: float = Field(default=0.4, ge=0)
    rand_augment: Annotated[str, AfterValidator(_rand_augment)] | None = "rand-m9-mstd0.5-inc1"
    erase: Share = 0.25
    mixup: float = Field(default=0.8, ge=0)
    cutmix: float = Field(default=1.0, ge=0)
    mix_probability: Share = 1.0
    mix_switch: Share = 0.5
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.9995
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_norm: Literal["local", "average", "synchronized"] = "average"
    compile: bool = False
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        if self.schedule == "cosine" and self.min_lr > self.lr:
            raise ConfigError(f"min_lr {self.min_lr} must not exceed lr {self.lr}")
        if self.schedule == "constant" and self.cooldown_epochs:
            raise ConfigError(f"schedule 'constant' wants cooldown_epochs 0, got {self.cooldown_epochs}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ConfigError(f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}")
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ConfigError(f"{key} {low, high}: the first number is the smaller one")
        if self.crop_scale[1] > 1:
            raise ConfigError(f"crop_scale {self.crop_scale}: parts of the image's area, at most 1")
        return self

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    @property
    def passes(self) -> int:
        """Forward passes in an optimizer step, over all processes."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    @property
    def lr_scale(self) -> float:
        """What the configured learning rates are multiplied by."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0


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
    moving average start anew from them.
    """

    modules: Annotated[tuple[UserModule, ...], AfterValidator(_import)] = ()
    model: SerializeAsAny[BackboneConfig]
    data: DataConfig
    recipe: Recipe
    seed: int = Field(default=0, ge=0)
    initial: Weights | None = None

    def identity(self) -> dict[str, Any]:
        values = self.to_dict()
        values["modules"] = [module["digest"] for module in values["modules"]]
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
            "drop_path_rate": self.recipe.drop_path,
            **changes,
        }
        return Backbone(self.model, **arguments)

    def warnings(self) -> list[str]:
        """What a run can do but its author may not mean: kernels larger than their maps, an average that lags."""
        found = []
        if self.recipe.ema is not None and self.data.train_samples is not None and self.initial is None:
            steps = self.data.train_samples // self.recipe.batch_size * self.recipe.total_epochs
            if self.recipe.ema**steps > 1e-6:
                found.append(
                    f"after {steps} steps an EMA of {self.recipe.ema} still holds {self.recipe.ema**steps:.0e} of its "
                    "start, which BatchNorm's small variances do not forgive: lower recipe.ema or set it to null"
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
