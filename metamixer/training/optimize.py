"""What moves the weights: AdamW, its learning rate and weight decay as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

from ..config import ConfigError
from .recipe import Recipe

_HEADS = ("head", "decoder", "classifier", "fc")  # what stands behind a backbone, by its name in the network


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused AdamW; of its groups of parameters, those that weight decay acts on have a true `decays`.

    Spared are vectors, scalars and what a part of the network names in `no_weight_decay`.

    Raises ConfigError: the recipe asks for the head of a network that names none.
    """
    spared = {
        f"{place}.{name}".lstrip(".")
        for place, part in model.named_modules()
        for name in getattr(part, "no_weight_decay", set)()
    }
    if not recipe.layer_scale_decay:
        spared |= {name for name, _ in model.named_parameters() if "_scale." in name}
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)
    if recipe.layer_decay != 1 or recipe.head_lr_scale != 1:
        groups = _apart(groups, _lr_scales(model, recipe))
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
        group["weight_decay"] = recipe.weight_decay if group["decays"] else 0.0
    lr = recipe.lr * recipe.lr_scale
    return create_optimizer_v2(groups, opt="adamw", lr=lr, weight_decay=0.0, betas=recipe.betas, fused=True)


def _lr_scales(model: nn.Module, recipe: Recipe) -> dict[nn.Parameter, float]:
    """The factor of each weight's learning rate."""
    found = dict.fromkeys(model.parameters(), 1.0)
    if recipe.layer_decay != 1:
        part: Any = getattr(model, "backbone", model)
        layers = group_parameters(part, part.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        last = max(layers.values()) + (part is not model)  # a decoder is one more layer
        for name, parameter in part.named_parameters():
            found[parameter] = recipe.layer_decay ** (last - layers[name])
    if recipe.head_lr_scale != 1:
        head = [parameter for name, parameter in model.named_parameters() if name.split(".")[0] in _HEADS]
        if not head:
            raise ConfigError(f"recipe.head_lr_scale: the network has none of {', '.join(_HEADS)}; set it to 1")
        for parameter in head:
            found[parameter] *= recipe.head_lr_scale
    return found


def _apart(groups: list[dict[str, Any]], scales: dict[nn.Parameter, float]) -> list[dict[str, Any]]:
    """Groups of parameters, each divided by the factor of the learning rate, which timm's schedules read."""
    found = []
    for group in groups:
        for scale in sorted({scales[each] for each in group["params"]}):
            part = [each for each in group["params"] if scales[each] == scale]
            found.append({**group, "params": part, "lr_scale": scale})
    return found


class Schedule:
    """Learning rate and weight decay of an optimizer as functions of the step alone.

    Args:
        steps: optimizer steps in an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> None:
        self.optimizer, self.recipe, self.steps = optimizer, recipe, steps
        self.lr, _ = create_scheduler_v2(
            optimizer,
            # timm has no constant schedule: steps of decay rate 1; that of `poly` is its power
            sched="step" if recipe.schedule == "constant" else recipe.schedule,
            decay_rate=1.0,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            cooldown_epochs=recipe.cooldown_epochs,
            warmup_lr=recipe.warmup_lr * recipe.lr_scale,
            min_lr=recipe.min_lr * recipe.lr_scale,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )

    def set(self, step: int) -> None:
        """Prepare the optimizer for step number `step`, from 0."""
        self.lr.step_update(step)
        for group in self.optimizer.param_groups:
            if group["decays"]:
                group["weight_decay"] = self.weight_decay(step)

    def weight_decay(self, step: int) -> float:
        """Of what decays: a cosine over `epochs` where the recipe asks for one, then its end."""
        start, end = self.recipe.weight_decay, self.recipe.weight_decay_end
        if end is None:
            return start
        done = min(step / (self.recipe.epochs * self.steps), 1.0)
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def batch_norm_statistics(*models: nn.Module | None) -> list[torch.Tensor]:
    """The running means and variances of networks, in order."""
    return [
        buffer
        for model in models
        if model is not None
        for name, buffer in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
