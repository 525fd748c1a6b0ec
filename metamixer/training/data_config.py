"""The configuration of a run's data: which images, their splits, size and statistics, or which task's samples."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from ..config import Config, ConfigError
from ..tasks import Head, Task, TaskConfig, build_task, resolve_task
from . import image_folder
from .images import ImageClasses
from .recipe import Recipe

Positive = Annotated[float, Field(gt=0)]


def _data_name(name: str) -> str:
    prefix, slash, rest = name.lower().partition("/")
    if slash and prefix in ("wds", "tfds", "hfids"):  # timm's readers that give images in their own order only
        raise ValueError(
            f"data {name!r} can only be read from front to back, but a run picks its images by seed, epoch and index: "
            "use data.name=folder with folders or tar files of one folder a class, or hfds/NAME"
        )
    # of any other name timm would look at `root` alone, and open that as a folder of images
    of_timm = prefix in ("torch", "hfds") and rest not in ("", "folder", "image_folder")
    if name in ("digits", "fashion-mnist", "folder") or of_timm:
        return name
    raise ValueError(
        f"no data set {name!r}; there are digits, fashion-mnist, folder, and what timm opens as torch/NAME or "
        "hfds/NAME, most of it with data.root"
    )


def _sides(value: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(isinstance(side, int) and side >= 8 for side in sides):
        raise ValueError(f"one side of at least 8 pixels, or height and width, got {value!r}")
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else (sides[0], sides[1])


def _manifest(values: dict[str, Any]) -> str | None:
    root = values.get("root")
    return image_folder.manifest(root) if values.get("name") == "folder" and root is not None else None


class DataConfig(Config):
    """Images and their splits.

    `image_size` is the side of the images, or their height and width. `name` is `digits`, `fashion-mnist`, `folder`
    (`root` holds `train/CLASS/*` and `validation/CLASS/*`) or what `timm.data.create_dataset` opens as `torch/NAME` or
    `hfds/NAME`, e.g. `torch/cifar10`. Training images beyond `train_samples` are left out; `val_samples` of them are
    held out for choices made while training, which the test split (the data set's own evaluation images) must not
    decide. A folder may hold tar files in place of class folders.

    A broken image stops a run with its name. With `skip_broken` it is recorded by name instead: evaluation leaves it
    out, in training the next whole image takes its place, whichever process meets it.

    `manifest` is filled in from the images in `root` and is, in its place, part of a run's identity: a digest of their
    names, sizes and classes. It is null where there is no such folder on this machine, and for other data sets, which
    their name identifies.
    """

    head: ClassVar[Head] = "pooled"
    test_samples: ClassVar[None] = None  # all

    name: Annotated[str, AfterValidator(_data_name)]
    root: str | None = None
    manifest: str | None = Field(default_factory=_manifest)
    num_classes: int = Field(gt=1, le=2**15)  # predictions and a teacher's answers are kept as int16
    channels: Literal[1, 3]
    image_size: Annotated[int | tuple[int, int], BeforeValidator(_sides)]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    eval_crop: float = Field(default=1.0, gt=0, le=2)  # above 1 a border is added, as VOLO's has it
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

    @cached_property
    def built(self) -> Task:
        return self.task_for(None)

    def task_for(self, recipe: Recipe | None) -> Task:
        """The task, its training samples augmented by a recipe."""
        return ImageClasses(self, recipe)

    @property
    def about(self) -> str:
        """The data in a few words."""
        size = "×".join(map(str, dict.fromkeys(self.input_size[1:])))
        return f"{self.name} {self.root or ''}".strip() + f" at {size} px, crop {self.eval_crop:g}"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return self.channels, *sides

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().hashed(values)
        return values if self.name == "folder" and self.manifest is None else {**values, "root": None}


class TaskData(Config):
    """Samples of a task, e.g. of a probe, in the place of a data set.

    `train_samples` are those of an epoch. `val_samples` and `test_samples` are the same for every seed. Without
    `train_samples` or `test_samples` they are all that the task has, if it reads files.
    """

    task: Annotated[SerializeAsAny[TaskConfig], BeforeValidator(resolve_task)]
    train_samples: int | None = Field(default=None, gt=0)
    val_samples: int = Field(default=0, ge=0)
    test_samples: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _have_an_end(self) -> "TaskData":
        for split in ("train", "test"):
            if not self.built.on_disk and getattr(self, f"{split}_samples") is None:
                raise ConfigError(f"{split}_samples: task {self.task.name!r} makes them without end; say how many")
        return self

    @cached_property
    def built(self) -> Task:
        return build_task(self.task)

    def task_for(self, recipe: Recipe | None) -> Task:
        return self.built

    @property
    def about(self) -> str:
        """The task and its parameters that are not at their default."""
        fields, values = type(self.task).model_fields, self.task.to_dict().items()
        given = [(key, value) for key, value in values if key not in ("name", "manifest")]
        changed = [f"{key} {value}" for key, value in given if getattr(self.task, key) != fields[key].default]
        return f"task {self.task.name}" + (f" ({', '.join(changed)})" if changed else "")

    @property
    def manifest(self) -> str | None:
        """A digest of the files that the task reads; None where it reads none."""
        return getattr(self.task, "manifest", None)

    @property
    def head(self) -> Head:
        return self.built.head

    @property
    def num_classes(self) -> int:
        return self.built.num_classes

    @property
    def channels(self) -> int:
        return self.built.in_chans

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        return self.built.in_chans, *self.built.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        return self.built.mean or (0.0,) * self.channels

    @property
    def std(self) -> tuple[float, ...]:
        return self.built.std or (1.0,) * self.channels


AnyData = DataConfig | TaskData
