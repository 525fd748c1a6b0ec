"""Training: from a run's configuration to its folder, resumable at any step with the same numbers.

All that the numbers depend on is in the checkpoint (weights, EMA, optimizer, position) or a pure function of
seed, epoch, step and sample (order, augmentation, mixup, stochastic depth, learning rate).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from ..config import ConfigError
from ..cost import count
from ..draws import derive
from . import checkpoint
from .config import RunConfig
from .data import Data
from .evaluate import evaluate
from .folder import RunFolder, environment

PROGRESS_SECONDS = 2.0
CHECKPOINT_SECONDS = 300.0


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written and it goes on from there."""


class Diverged(Exception):
    """The loss is no longer a number; `epoch` counts from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the loss is not a number in epoch {epoch}")
        self.epoch = epoch


def train(config: RunConfig, path: Path | str, device: str = "auto", workers: int = 0) -> dict[str, Any]:
    """Train a run in its folder, or go on with it; a finished run is returned as it is.

    Args:
        path: the run's folder; a grid names it by the run's digest.
        device: a torch device, or `auto` for a GPU where there is one.
        workers: processes that load images which do not fit in memory.

    Returns:
        The content of `result.json`; a diverged run gives `{"state": "failed", ...}`.

    Raises:
        ConfigError: data, folder or configuration can't be used.
        RunBusy: another process is training this run.
        Interrupted: SIGINT, SIGTERM or SIGUSR2 came; everything is saved.
    """
    folder = RunFolder(path)
    folder.create(config)
    with folder.lock():
        result = folder.result()
        if result is not None and result["state"] == "done":
            return result
        try:
            return Trainer(config, folder, _device(device), workers).run()
        except (Interrupted, ConfigError, OSError):
            raise  # data, disk or a signal, not the run itself: it goes on when launched again
        except Diverged as error:
            return folder.fail(str(error), error.epoch)
        except Exception as error:
            done = (folder.read("progress.json") or {}).get("epoch", 0)
            folder.fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", done + 1)
            raise


class Trainer:
    """State and loop of one run."""

    def __init__(self, config: RunConfig, folder: RunFolder, device: torch.device, workers: int) -> None:
        self.config, self.folder, self.device = config, folder, device
        recipe = config.recipe
        folder.write("environment.json", environment(device))
        self.data = Data(config.data, recipe, config.seed, workers)
        self.model = config.build()
        self.model.init_weights(config.seed)
        self.model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema else None
        spared = () if recipe.layer_scale_decay else [n for n, _ in self.model.named_parameters() if "_scale." in n]
        groups = param_groups_weight_decay(self.model, recipe.weight_decay, no_weight_decay_list=spared)
        self.optimizer = create_optimizer_v2(groups, opt="adamw", lr=recipe.lr, weight_decay=0.0, fused=True)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            cooldown_epochs=recipe.cooldown_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.data.steps,
        )
        self.mixup = (
            Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mix_probability,
                switch_prob=recipe.mix_switch,
                label_smoothing=recipe.label_smoothing,
                num_classes=config.data.num_classes,
            )
            if recipe.mixup or recipe.cutmix
            else None
        )
        self.loss: nn.Module = (
            SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(recipe.label_smoothing)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16" and device.type == "cuda")
        self.step = 0  # optimizer steps done; the position of the run
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # over the steps of this epoch
        self.seconds = 0.0
        self.row: dict[str, Any] = {}  # the newest row of metrics

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.data.steps

    def run(self) -> dict[str, Any]:
        self._resume()
        with _stop_signals() as stop:
            while self.epoch < self.config.recipe.total_epochs:
                self._epoch(stop)
        return self._finish()

    def _epoch(self, stop: threading.Event) -> None:
        epoch, first = self.epoch, self.step % self.data.steps
        started = reported = saved = time.monotonic()
        self._report_progress()
        for images, classes in self.data.batches(epoch, first):
            self._train_step(images, classes)
            now = time.monotonic()
            # after the last step the epoch's end writes it, with the metrics
            if self.step % self.data.steps and (stop.is_set() or now - saved > CHECKPOINT_SECONDS):
                self._check_finite(epoch)
                self._save(self.seconds + now - started)
                saved = now
                if stop.is_set():
                    self._report_progress(state="interrupted")
                    raise Interrupted(f"stopped in epoch {epoch + 1} after step {self.step}; its checkpoint is written")
            if now - reported > PROGRESS_SECONDS:
                self._check_finite(epoch)
                self._report_progress()
                reported = now
        self._check_finite(epoch)
        spent = time.monotonic() - started
        images_seen = (self.data.steps - first) * self.config.recipe.batch_size
        self.seconds += spent
        self.row = {
            "epoch": epoch + 1,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.loss_sum) / self.data.steps,
            **self._validate(),
            "seconds": spent,
            "images_per_second": images_seen / spent,
        }
        self.folder.append_metrics(self.row)
        self.loss_sum.zero_()
        self._save(self.seconds)

    def _train_step(self, images: torch.Tensor, classes: torch.Tensor) -> None:
        recipe = self.config.recipe
        seed = derive(self.config.seed, "step", self.step)
        torch.manual_seed(seed)  # stochastic depth
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        targets = classes.to(self.device, non_blocking=True)
        if self.mixup is not None:
            np.random.seed(seed % 2**32)
            images, targets = self.mixup(images, targets)
        self.scheduler.step_update(self.step)
        low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
        with torch.autocast(self.device.type, low) if low else nullcontext():
            logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        self.loss_sum += loss.detach()
        self.step += 1

    def _check_finite(self, epoch: int) -> None:
        if not torch.isfinite(self.loss_sum):
            raise Diverged(epoch + 1)

    def _validate(self) -> dict[str, float]:
        if not len(self.data.val_indices):
            return {}
        scores, _, _ = evaluate(self.model, self.data.evaluation("val"), self.device)
        row = {"val_top1": scores["top1"], "val_loss": scores["loss"]}
        if self.ema is not None:
            scores, _, _ = evaluate(self.ema.module, self.data.evaluation("val"), self.device)
            row["val_top1_ema"] = scores["top1"]
        return row

    def _finish(self) -> dict[str, Any]:
        """Evaluate the final weights, raw and averaged, on the test split; the recipe says which are reported."""
        config = self.config
        raw, predicted, labels = evaluate(self.model, self.data.evaluation("test"), self.device)
        predictions = {"label": labels, "raw": predicted}
        rows = {"raw": raw}
        if self.ema is not None:
            rows["ema"], predictions["ema"], _ = evaluate(self.ema.module, self.data.evaluation("test"), self.device)
        weights = "ema" if self.ema is not None else "raw"
        cost = count(
            config.build(),
            (config.data.channels, config.data.image_size, config.data.image_size),
        )

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **predictions)  # type: ignore[arg-type]

        self.folder.replace("predictions.npz", write)
        images = self.step * config.recipe.batch_size
        self.folder.write(
            "result.json",
            {
                "state": "done",
                "epochs": self.epoch,
                "evaluated": "test",
                "weights": weights,
                **{key: rows[weights][key] for key in ("top1", "top5", "loss")},
                **rows,
                "parameters": cost.parameters,
                "macs": cost.macs,
                "seconds": self.seconds,
                "images_per_second": images / self.seconds if self.seconds else None,
                "time": time.time(),
            },
        )
        self._report_progress(state="done")
        return self.folder.result() or {}

    def _report_progress(self, state: str = "running") -> None:
        """Leave a heartbeat for whoever watches."""
        done_in_epoch = self.step % self.data.steps
        self.folder.write(
            "progress.json",
            {
                "state": state,
                "epoch": self.epoch,
                "epochs": self.config.recipe.total_epochs,
                "step": self.step,
                "steps": self.config.recipe.total_epochs * self.data.steps,
                "loss": float(self.loss_sum) / done_in_epoch if done_in_epoch else self.row.get("train_loss"),
                "top1": self.row.get("val_top1_ema", self.row.get("val_top1")),
                "time": time.time(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            },
            sync=False,
        )

    def _save(self, seconds: float) -> None:
        checkpoint.save(
            self.folder,
            {
                "model": self.model.state_dict(),
                "ema": self.ema.module.state_dict() if self.ema is not None else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "loss_sum": self.loss_sum,
                "seconds": seconds,
                "row": self.row,
            },
        )

    def _resume(self) -> None:
        state = checkpoint.load_newest(self.folder)
        if state is None:
            self.folder.truncate_metrics(0)
            return
        source = str(self.folder.path)
        checkpoint.load_weights(self.model, state["model"], source)
        if self.ema is not None:
            checkpoint.load_weights(self.ema.module, state["ema"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.row = state["step"], state["seconds"], state["row"]
        self.loss_sum.copy_(state["loss_sum"])
        self.folder.truncate_metrics(self.epoch)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT, SIGTERM and SIGUSR2 into an event that the loop looks at between steps."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
