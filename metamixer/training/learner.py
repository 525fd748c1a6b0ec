"""What learns: a network with its average, its optimizer and its teacher, and one step of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError
from ..rng import derive
from . import checkpoint, weights
from .depthwise import split_depthwise
from .distill import Teacher, distillation_loss
from .distributed import ALONE, World
from .loader import Batch
from .optimize import Schedule, batch_norm_statistics, build_optimizer
from .run_config import RunConfig

log = logging.getLogger(__name__)

LOW_PRECISION = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Learner:
    """State and step of a run.

    Args:
        steps: optimizer steps in an epoch.
        state: a checkpoint's, from `state_dict`; else it begins with the run's initial weights or seed.
        classes: names of the data's classes, by which a teacher's and initial weights' are matched.

    Attributes:
        step: optimizer steps done, the position of the run.
        share: forward passes of a step in this process.

    Raises ConfigError: weights or a precision that do not fit, passes that the processes can't share, or no compiler.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        steps: int,
        world: World = ALONE,
        state: dict[str, Any] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.config, self.device, self.steps, self.world = config, device, steps, world
        recipe = config.recipe
        self.share = recipe.share(world.size)
        if recipe.batch_norm == "synchronized" and world.size > 1 and device.type != "cuda":
            raise ConfigError("recipe.batch_norm 'synchronized' needs GPUs with several processes; use 'average'")
        if recipe.precision == "float16" and device.type == "cpu":
            raise ConfigError("recipe.precision 'float16' is for GPUs; on a CPU take float32 or bfloat16")
        if recipe.compile and device.type == "cpu" and not has_cpp_compiler():
            raise ConfigError("recipe.compile: no working C++ compiler; install one (g++) or set recipe.compile=false")
        model: Any = config.build()
        if state is None and config.initial is not None:
            weights.start_from(model, config, classes)
        if recipe.batch_norm == "synchronized" and world.size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        split_depthwise(model)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = build_optimizer(self.model, recipe)
        self.schedule = Schedule(self.optimizer, recipe, steps)
        self.mixup: Mixup | None = None
        self.loss: Callable[[Tensor, Tensor], Tensor] = config.data.built.loss
        mixup, cutmix = recipe.mix_shares
        if mixup or cutmix:
            self.loss = SoftTargetCrossEntropy()
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup_alpha if mixup else 0.0,
                cutmix_alpha=recipe.cutmix_alpha if cutmix else 0.0,
                prob=mixup + cutmix,
                switch_prob=cutmix / (mixup + cutmix),
                label_smoothing=recipe.label_smoothing,
                num_classes=config.data.num_classes,
            )
        elif recipe.label_smoothing:
            self.loss = LabelSmoothingCrossEntropy(recipe.label_smoothing)
        self.teacher = Teacher(recipe.distillation, config.data, device, classes) if recipe.distillation else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16" and device.type == "cuda")
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # over this process's passes of the epoch
        if state is not None:
            self._load(state)
        self.forward: Any = self.model
        if world.size > 1:  # it copies the first process's weights to all
            self.forward = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
            )
        if recipe.compile:
            self.forward = torch.compile(self.forward)
        if state is not None and len(state["statistics"]) == world.size:
            for buffer, value in zip(self._statistics(), state["statistics"][world.rank], strict=True):
                buffer.copy_(value)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.steps

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One step of the optimizer, from the next `share` batches, on the device (`on_device`)."""
        self.schedule.set(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(self.share):
            images, targets = self._next(batches, self.world.rank * self.share + index)
            quiet = self.world.size > 1 and index < self.share - 1  # gradients are exchanged once a step
            with self.forward.no_sync() if quiet else nullcontext():
                with self._autocast():
                    taught = self.teacher(images) if self.teacher is not None else None
                    logits = self.forward(images)
                loss = self._objective(logits.float(), targets, taught)
                self.scaler.scale(loss / self.share).backward()
            self.loss_sum += loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1

    def _next(self, batches: Iterator[Batch], number: int) -> Batch:
        """The next images and targets, mixed; seeds all that the pass `number` of the step draws."""
        images, targets = next(batches)
        seed = derive(self.config.seed, "step", self.step, number)
        torch.manual_seed(seed)  # stochastic depth
        if self.mixup is not None:
            np.random.seed(seed % 2**32)
            images, targets = self.mixup(images, targets)
        return images, targets

    def _autocast(self) -> AbstractContextManager[Any]:
        low = LOW_PRECISION.get(self.config.recipe.precision)
        return torch.autocast(self.device.type, low) if low else nullcontext()

    def _objective(self, logits: Tensor, targets: Tensor, taught: Tensor | None) -> Tensor:
        base = self.loss(logits, targets)
        distillation = self.config.recipe.distillation
        if taught is None or distillation is None:
            return base
        alpha = distillation.alpha
        return (1 - alpha) * base + alpha * distillation_loss(logits, taught, distillation.temperature)

    def mean_loss(self) -> float:
        """Mean over all passes of the epoch so far; NaN before its first step, and what diverged is not finite."""
        passes = ((self.step - 1) % self.steps + 1) * self.config.recipe.passes if self.step else 0
        return float(self.world.total(self.loss_sum)) / passes if passes else float("nan")

    def share_statistics(self) -> None:
        """BatchNorm's running statistics at an epoch's end: their mean over the processes, or the first one's."""
        if self.world.size == 1:
            return
        for buffer in self._statistics():
            if self.config.recipe.batch_norm == "local":
                torch.distributed.broadcast(buffer, 0)
            else:
                torch.distributed.all_reduce(buffer)
                buffer /= self.world.size

    def state_dict(self) -> dict[str, Any]:
        """All that the numbers depend on, for a checkpoint."""
        world = self.world
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "loss_sum": world.total(self.loss_sum),
            # within an epoch each process has its own
            "statistics": world.gather([b.cpu() for b in self._statistics()]) if world.size > 1 else [],
        }

    def _load(self, state: dict[str, Any]) -> None:
        checkpoint.load_weights(self.model, state["model"], "the run's checkpoint")
        if self.ema is not None:
            checkpoint.load_weights(self.ema.module, state["ema"], "the run's checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if self.world.first:
            self.loss_sum.copy_(state["loss_sum"])

    def _statistics(self) -> list[torch.Tensor]:
        return batch_norm_statistics(self.model, self.ema.module if self.ema is not None else None)


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # of several kinds
        return False
    return True


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches in the device's memory, images channels-last; on a GPU the next one is made or copied during a step."""

    def copy(batch: Batch) -> Batch:
        inputs = batch[0].to(device, non_blocking=True, memory_format=torch.channels_last)
        return inputs, batch[1].to(device, non_blocking=True)

    if device.type != "cuda":
        yield from map(copy, batches)
        return
    stream, ready = torch.cuda.Stream(device), None
    while True:
        with torch.cuda.stream(stream):  # a task makes its samples on the device, there too
            batch = next(batches, None)
            ahead = copy(batch) if batch is not None else None
        if ready is not None:
            yield ready
        if ahead is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in ahead:
            tensor.record_stream(current)  # so that no other copy gets its memory while a step reads it
        ready = ahead
