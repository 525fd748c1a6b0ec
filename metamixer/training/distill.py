"""Knowledge distillation as in DeiT (arXiv 2012.12877): a frozen teacher on the student's augmented images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError
from ..networks import timm_model
from . import checkpoint, weights
from .data_config import AnyData
from .folder import RunFolder
from .recipe import Distillation, is_timm_model


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

    Raises ConfigError: no such teacher, or one that does not fit the data.
    """

    def __init__(
        self, distillation: Distillation, data: AnyData, device: torch.device, classes: list[str] | None = None
    ) -> None:
        self.hard = distillation.kind == "hard"
        of_timm = is_timm_model(distillation.teacher)
        self.model, mean, std = (_of_timm if of_timm else _of_a_run)(distillation, data, classes)
        # timm's networks differ in which layout they like on a GPU; this project's are fast in channels-last
        self.layout = torch.contiguous_format if of_timm and device.type == "cuda" else torch.channels_last
        self.model.requires_grad_(False).eval().to(device, memory_format=self.layout)  # type: ignore[call-overload]
        mine, my_std, theirs, their_std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.mean, data.std, mean, std)
        )
        self.scale, self.offset = my_std / their_std, (mine - theirs) / their_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        images = images * self.scale + self.offset
        logits = self.model(images.contiguous(memory_format=self.layout)).float()
        return logits.argmax(1) if self.hard else logits


_Normalised = tuple[Any, tuple[float, ...], tuple[float, ...]]  # a network, and the mean and std of its images


def _of_timm(distillation: Distillation, data: AnyData, classes: list[str] | None) -> _Normalised:
    name, file = distillation.teacher, distillation.weights
    model: Any = weights.pretrained(name) if file is None else timm_model(name, weights.read(file), file.source)
    settings = model.pretrained_cfg
    if model.num_classes != data.num_classes:
        raise ConfigError(
            f"teacher {name!r} knows {model.num_classes} classes, data.num_classes is {data.num_classes}: use another "
            "teacher, or weights of it for these classes (recipe.distillation.weights.source)"
        )
    channels, *size = settings["input_size"]
    if channels != data.channels:
        raise ConfigError(f"teacher {name!r} takes {channels} channels, data.channels is {data.channels}")
    if settings.get("fixed_input_size") and tuple(size) != data.input_size[1:]:
        raise ConfigError(
            f"teacher {name!r} takes images of {size[-1]} px only, data.image_size is {data.input_size[2]}"
        )
    return model, settings["mean"], settings["std"]


def _of_a_run(distillation: Distillation, data: AnyData, classes: list[str] | None) -> _Normalised:
    name = distillation.teacher
    config = RunFolder(name).config()
    assert distillation.weights is not None
    state = weights.read(distillation.weights, classes)
    weights.check_classes(state, f"{weights.HEAD}bias", data.num_classes, distillation.weights.source)
    of_theirs, of_ours = config.data.to_dict(), data.to_dict()
    for key in ("channels", "image_size"):
        theirs, ours = of_theirs.get(key), of_ours.get(key)
        if theirs != ours:
            raise ConfigError(f"teacher {name!r} was trained with data.{key} {theirs}, this run has {ours}")
    model = config.build(num_classes=data.num_classes)
    checkpoint.load_weights(model, state, distillation.weights.source)
    return model, config.data.mean, config.data.std
