"""The configuration of a data set: which images, their splits, size and statistics."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..config import Config, ConfigError
from . import image_folder

Positive = Annotated[float, Field(gt=0)]


def _data_name(name: str) -> str:
    prefix, slash, _ = name.lower().partition("/")
    if slash and prefix in ("wds", "tfds", "hfids"):  # timm's readers that give images in their own order only
        raise ValueError(
            f"data {name!r} can only be read from front to back, but a run's batches are chosen by seed, epoch "
            "and index: use data.name=folder with folders or tar files of one folder a class, or hfds/NAME"
        )
    if name.lower() in ("torch/folder", "torch/image_folder"):
        raise ValueError(f"data {name!r}: use data.name=folder")
    # of any other name timm would look at `root` alone, and open that as a folder of images
    if name not in ("digits", "fashion-mnist", "folder") and (not slash or prefix not in ("torch", "hfds")):
        raise ValueError(
            f"no data set {name!r}; there are digits, fashion-mnist, folder, and what timm opens as torch/NAME or "
            "hfds/NAME, most of it with data.root"
        )
    return name


def _manifest(values: dict[str, Any]) -> str | None:
    root = values.get("root")
    return image_folder.manifest(root) if values.get("name") == "folder" and root is not None else None


class DataConfig(Config):
    """Images and their splits.

    `name` is `digits`, `fashion-mnist`, `folder` (`root` holds `train/CLASS/*` and `validation/CLASS/*`) or
    what `timm.data.create_dataset` opens as `torch/NAME` or `hfds/NAME`, e.g. `torch/cifar10`. Training images
    beyond `train_samples` are left out; `val_samples` of them are held out for choices made while training, which the
    test split (the data set's own evaluation images) must not decide. A folder may hold tar files in place of class
    folders.

    A broken image stops a run with its name. With `skip_broken` it is recorded by name instead: evaluation leaves it
    out, in training the next whole image takes its place, whichever process meets it.

    `manifest` is filled in from the images in `root` and is, in its place, part of a run's identity: a digest of their
    names, sizes and classes. It is null where there is no such folder on this machine, and for other data sets, which
    their name identifies.
    """

    name: Annotated[str, AfterValidator(_data_name)]
    root: str | None = None
    manifest: str | None = Field(default_factory=_manifest)
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

    def identity(self) -> dict[str, Any]:
        by_root = self.name == "folder" and self.manifest is None
        return {**self.to_dict(), "root": self.root if by_root else None}
