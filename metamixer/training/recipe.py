"""How a network is trained: optimisation, augmentation, and the teacher that it learns from."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, Field, model_validator
from timm.models import get_pretrained_cfg

from .. import ffnet  # noqa: F401 (registers FFNet in timm)
from ..config import Config, ConfigError, hash_of_file, later
from ..initialise import Init

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[Positive, Positive]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Weights(Config):
    """Weights to start from or to learn from.

    `source` is a checkpoint's file, a released one or a run's, or the name of a timm model with pretrained weights.
    `digest` is filled in from a file's content and is, in the file's place, part of a run's identity. `average` takes
    the moving average that the file holds beside the weights.
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

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().hashed(values)
        return values if self.digest is None else {**values, "source": None}


def is_timm_model(name: str) -> bool:
    """Whether timm knows this name, its tag too: `ffnet_1.in1k` is a model, `ffnet_1.pth.tar` is a file."""
    try:
        return timm.is_model(name) and ("." not in name or get_pretrained_cfg(name) is not None)
    except RuntimeError:  # no such tag
        return False


def file_digest(path: str) -> str:
    """16 hexadecimal digits of a file's content. Raises ConfigError: no such file."""
    try:
        return hash_of_file(Path(path))
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

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().hashed(values)
        if self.weights is not None and not is_timm_model(self.teacher):
            values["teacher"] = None  # its weights identify a run
        return values


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"a batch is even (mixup pairs its images), got {value}")
    return value


def _rand_augment(text: str) -> str:
    # timm passes over what it does not know
    first, *sections = text.split("-")
    known = r"(?:(m|n)\d+|(p)(?:0?\.\d+|0|1)|(mstd)\d+(?:\.\d+)?|(inc)[01])"
    found = [re.fullmatch(known, section) for section in sections]
    keys = [next(filter(None, match.groups())) for match in found if match]
    if first != "rand" or len(set(keys)) < len(sections):
        raise ValueError(f'rand_augment must look like "rand-m9-mstd0.5-inc1" (m, mstd, inc, n, p), got {text!r}')
    return text


class Recipe(Config):
    """How a network is trained; the defaults are FFNet's common recipe (arXiv 2406.02021, released scripts).

    `batch_size` is the global one. A step averages the gradients of batch_size / `micro_batch` forward passes
    (one if null). All that is random or depends on a batch (mixup, BatchNorm's statistics, stochastic depth)
    belongs to a pass, not to a process.

    `epochs` is the length of the cosine, after `warmup_epochs` that count among them; `cooldown_epochs` at
    `min_lr` come on top. The schedule `poly` falls along a line, as segmenters are trained. `constant` keeps `lr`
    after the warm-up and has no cool-down.
    `weight_decay_end` lets the weight decay follow a cosine too, from `weight_decay` to it. With `lr_batch` the
    three learning rates are meant for that batch and are scaled by batch_size / lr_batch.

    `betas` are Adam's. `layer_decay` multiplies the learning rate by itself from each layer to the one before, down
    from the head; a block is a layer. `head_lr_scale` is the factor of the head's learning rate, or the decoder's.

    `ema_decay` is the decay of the weights' moving average, which is then what a run reports; null turns it off.
    `layer_scale_decay` says whether weight decay acts on layer scale, as it does in the released code.
    `init` is the spread of initial weights: FFNet's, or by the number of a layer's inputs (`initialise`).
    `branch_ratio` scales them so that every token mixer's branch starts with this share of its input's standard
    deviation (`branches.equalize`); without it each mixer starts as its weights make it.

    Each pass is mixed by mixup with `mixup_prob`, by cutmix with `cutmix_prob`, or not at all. An alpha of 0 turns one
    of them off and leaves the other at its share. `color_jitter` acts beside `rand_augment` too.

    `batch_norm` says what several processes do with BatchNorm's running statistics: `average` them after each
    epoch, as published, or keep those of the first process (`local`). `synchronized` also computes each pass's
    own statistics over all processes.
    """

    epochs: int = Field(default=300, gt=0)
    warmup_epochs: int = Field(default=5, ge=0)
    cooldown_epochs: int = Field(default=20, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    batch_size: Annotated[int, Field(gt=1), AfterValidator(_even)] = 1024
    micro_batch: Annotated[int, Field(gt=1), AfterValidator(_even)] | None = None
    lr: Positive = 1e-3
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)
    lr_batch: Annotated[int, Field(gt=0)] | None = None
    weight_decay: float = Field(default=0.05, ge=0)
    weight_decay_end: Annotated[float, Field(ge=0)] | None = None
    betas: tuple[Beta, Beta] = later((0.9, 0.999))
    layer_decay: float = later(1.0, gt=0, le=1)
    head_lr_scale: Positive = later(1.0)
    layer_scale_decay: bool = True
    init: Init = "ffnet"
    branch_ratio: Positive | None = later(None)
    drop_path_rate: Share = 0.0
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip_prob: Share = 0.5
    color_jitter: float = Field(default=0.0, ge=0)
    rand_augment: Annotated[str, AfterValidator(_rand_augment)] | None = "rand-m9-mstd0.5-inc1"
    erase_prob: Share = 0.25
    mixup_alpha: float = Field(default=0.8, ge=0)
    mixup_prob: Share = 0.5
    cutmix_alpha: float = Field(default=1.0, ge=0)
    cutmix_prob: Share = 0.5
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9995
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_norm: Literal["local", "average", "synchronized"] = "average"
    compile: bool = False
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ConfigError(f"min_lr {self.min_lr} must not exceed lr {self.lr}")
        if self.schedule == "constant" and self.cooldown_epochs:
            raise ConfigError(f"schedule 'constant' takes cooldown_epochs 0, got {self.cooldown_epochs}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ConfigError(f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}")
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ConfigError(f"{key} {low, high}: the first number is the smaller one")
        if self.crop_scale[1] > 1:
            raise ConfigError(f"crop_scale {self.crop_scale}: parts of the image's area, at most 1")
        if sum(self.mix_shares) > 1:
            raise ConfigError(f"mixup_prob {self.mixup_prob} and cutmix_prob {self.cutmix_prob}: together at most 1")
        return self

    @property
    def mix_shares(self) -> tuple[float, float]:
        """The parts of all passes that mixup and cutmix take."""
        mixup, cutmix = self.mixup_prob if self.mixup_alpha else 0.0, self.cutmix_prob if self.cutmix_alpha else 0.0
        return mixup, cutmix

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    @property
    def passes(self) -> int:
        """Forward passes in an optimizer step, over all processes."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    def share(self, processes: int) -> int:
        """Forward passes of a step in each of so many processes.

        Raises ConfigError: they can't be shared out evenly.
        """
        if self.passes % processes == 0:
            return self.passes // processes
        limit = min(self.micro_batch or self.batch_size, self.batch_size // processes)
        fitting = [n for n in range(limit, 1, -1) if n % 2 == 0 and self.batch_size % (n * processes) == 0]
        advice = f"recipe.micro_batch {fitting[0]} would do" if fitting else "take fewer processes"
        raise ConfigError(f"{self.passes} passes of a step can't be shared by {processes} processes; {advice}")

    @property
    def lr_scale(self) -> float:
        """The factor for the configured learning rates."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0
