"""Knowledge distillation as in DeiT (arXiv 2012.12877): a frozen teacher on the student's augmented images."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from . import checkpoint, weights
from .data_config import DataConfig
from .distributed import World
from .folder import RunFolder
from .recipe import Distillation, is_timm_model
from .run_config import RunConfig

# what of a recipe makes the images that the teacher sees, and in which order
_SEEN = (
    *("batch_size", "micro_batch", "crop_scale", "crop_ratio", "flip_prob", "color_jitter", "rand_augment"),
    *("erase_prob", "mixup_alpha", "mixup_prob", "cutmix_alpha", "cutmix_prob", "precision"),
)


def distillation_loss(student: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """The distillation part of the loss, from the student's logits (B, C), float32.

    `taught` is int64 (B,), the teacher's classes (hard), or float32 (B, C), its logits (soft): then
    T² · KL at temperature T, summed over batch and classes and divided by their product.
    """
    if not taught.is_floating_point():
        return F.cross_entropy(student, taught)
    log_student = F.log_softmax(student / temperature, 1)
    log_teacher = F.log_softmax(taught / temperature, 1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence / student.numel()


class Teacher:
    """A frozen network in eval mode, from (B, C, S, S) normalised for the student to what `distillation_loss` takes.

    Raises:
        ConfigError: no such teacher, or one that does not fit the data.
    """

    def __init__(
        self, distillation: Distillation, data: DataConfig, device: torch.device, classes: list[str] | None = None
    ) -> None:
        self.hard = distillation.kind == "hard"
        of_timm = is_timm_model(distillation.teacher)
        self.model, mean, std = (_of_timm if of_timm else _of_a_run)(distillation, data, classes)
        # timm's networks differ in which layout they like on a GPU; this project's are fast in channels-last
        self.layout = torch.contiguous_format if of_timm and device.type == "cuda" else torch.channels_last
        self.model.requires_grad_(False).eval().to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.renormalise: tuple[Tensor, Tensor] | None = None
        if (tuple(mean), tuple(std)) != (data.mean, data.std):
            mine, my_std, theirs, their_std = (
                torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.mean, data.std, mean, std)
            )
            self.renormalise = my_std / their_std, (mine - theirs) / their_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if self.renormalise is not None:
            scale, offset = self.renormalise
            images = images * scale + offset
        logits = self.model(images.contiguous(memory_format=self.layout)).float()
        return logits.argmax(1) if self.hard else logits


_Normalised = tuple[Any, tuple[float, ...], tuple[float, ...]]  # a network, and the mean and std of its images


def _of_timm(distillation: Distillation, data: DataConfig, classes: list[str] | None) -> _Normalised:
    name, file = distillation.teacher, distillation.weights
    overlay: dict[str, Any] = {}
    if file is not None:
        state, classifier = weights.read(file), timm.get_pretrained_cfg(name).classifier
        weights.check_classes(state, f"{classifier}.bias", data.num_classes, file.source)
        settings = {"state_dict": state, "num_classes": data.num_classes}
        overlay = {"num_classes": data.num_classes, "pretrained_cfg_overlay": settings}
    model: Any = weights.pretrained(name, **overlay)
    settings = model.pretrained_cfg
    if model.num_classes != data.num_classes:
        raise ConfigError(
            f"teacher {name!r} knows {model.num_classes} classes, data.num_classes is {data.num_classes}: take another "
            "teacher, or weights of it for these classes (recipe.distillation.weights.source)"
        )
    channels, size = settings["input_size"][0], settings["input_size"][-1]
    if channels != data.channels:
        raise ConfigError(f"teacher {name!r} takes {channels} channels, data.channels is {data.channels}")
    if settings.get("fixed_input_size") and size != data.image_size:
        raise ConfigError(f"teacher {name!r} takes images of {size} px only, data.image_size is {data.image_size}")
    return model, settings["mean"], settings["std"]


def _of_a_run(distillation: Distillation, data: DataConfig, classes: list[str] | None) -> _Normalised:
    name = distillation.teacher
    config = RunFolder(name).config()
    assert distillation.weights is not None
    state = weights.read(distillation.weights, classes)
    weights.check_classes(state, f"{weights.HEAD}bias", data.num_classes, distillation.weights.source)
    for key in ("channels", "image_size"):
        theirs, ours = getattr(config.data, key), getattr(data, key)
        if theirs != ours:
            raise ConfigError(f"teacher {name!r} was trained with data.{key} {theirs}, this run has {ours}")
    model = config.build(num_classes=data.num_classes)
    checkpoint.load_weights(model, state, distillation.weights.source)
    return model, config.data.mean, config.data.std


class TeacherCache:
    """A teacher's outputs on disk, an epoch in a file, for all runs that show it the same images.

    The images of a pass are a pure function of seed, data and augmentation, so their key and the pass's number
    identify what the teacher says. An image takes 2 bytes in an epoch (hard) or 4 for each class (soft). A run whose
    answers would take more than `LIMIT` bytes says so and does without a cache.
    """

    LIMIT = 4 * 2**30

    @staticmethod
    def size(config: RunConfig, steps: int) -> int:
        """Bytes of all answers to a distilled run of `steps` in an epoch."""
        recipe = config.recipe
        hard = recipe.distillation is not None and recipe.distillation.kind == "hard"
        an_image = 2 if hard else 4 * config.data.num_classes
        return recipe.total_epochs * steps * recipe.batch_size * an_image

    def __init__(self, root: Path | str, config: RunConfig, steps: int, world: World, device: torch.device) -> None:
        distillation = config.recipe.distillation
        assert distillation is not None
        recipe = config.recipe.to_dict()
        teacher = distillation.identity()
        key = {
            "seed": config.seed,
            "data": {k: v for k, v in config.data.identity().items() if k != "eval_crop"},
            "recipe": {k: recipe[k] for k in _SEEN},
            "teacher": [teacher["teacher"], teacher["weights"], distillation.kind],
            "made_by": [torch.__version__, timm.__version__, device.type],
        }
        name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder, self.world = Path(root) / name, world
        self.passes = steps * config.recipe.passes // world.size  # of this process, in an epoch
        self.epoch = -1
        self.stored: np.ndarray | None = None
        self.fresh: list[Tensor] = []

    def __call__(self, epoch: int, index: int, compute: Callable[[], Tensor], device: torch.device) -> Tensor:
        """What the teacher says in this process's pass `index` of an epoch; computed where it is not on disk."""
        if epoch != self.epoch:
            self.epoch, self.fresh, self.stored = epoch, [], self._read(epoch)
        if self.stored is not None:
            taught = torch.from_numpy(self.stored[index].copy()).to(device)
            return taught if taught.is_floating_point() else taught.long()
        taught = compute()
        if index == len(self.fresh):  # else the run went on from the middle of an epoch: no whole file comes of it
            self.fresh.append(taught.cpu() if taught.is_floating_point() else taught)
        if len(self.fresh) == self.passes:
            self._write(epoch)
        return taught

    def _path(self, epoch: int) -> Path:
        share = f"-{self.world.rank}of{self.world.size}" if self.world.size > 1 else ""
        return self.folder / f"{epoch}{share}.npy"

    def _read(self, epoch: int) -> np.ndarray | None:
        try:
            # not mapped: on a shared file system another machine may replace the file meanwhile
            stored = np.load(self._path(epoch))
        except (OSError, ValueError, EOFError):  # none, or a torn one: it is written again
            return None
        return stored if len(stored) == self.passes else None

    def _write(self, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # runs on several machines may write the same answers at a time
        aside = self.folder / f".{epoch}.{socket.gethostname()}.{os.getpid()}.npy"
        try:
            answers = torch.stack(self.fresh).cpu()
            np.save(aside, answers.numpy() if answers.is_floating_point() else answers.numpy().astype(np.int16))
            os.replace(aside, self._path(epoch))
        finally:
            aside.unlink(missing_ok=True)
        self.fresh = []
