"""Training: from a run's configuration to its folder, resumable at any step with the same numbers.

All that the numbers depend on is in the checkpoint (weights, EMA, optimizer, position) or a pure function of
seed, epoch, step, pass and sample (order, augmentation, mixup, stochastic depth, learning rate, weight decay).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from ..config import ConfigError
from ..cost import sizes
from . import checkpoint, provenance
from .board import Board
from .data import Data
from .distributed import ALONE, ProcessLost, World, joined, lost_another
from .evaluate import Predictions, evaluate
from .folder import RunFolder
from .learner import Learner, on_device
from .run_config import RunConfig
from .signals import Interrupted, Stop, stop_signals
from .surroundings import SurroundingsError, surroundings

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
CHECKPOINT_SECONDS = 300.0


class Diverged(Exception):
    """The loss is no longer a number; `epoch` counts from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the loss is not a number in epoch {epoch}")
        self.epoch = epoch


def train(
    config: RunConfig,
    path: Path | str,
    device: str = "auto",
    workers: int = 0,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a run in its folder, or go on with it; a finished run's result is returned unchanged.

    Under torchrun or srun every process calls this, and they share each step's passes (`distributed`).

    Args:
        path: the run's folder; a grid names it by the run's digest.
        device: a torch device, or `auto` for a GPU where there is one.
        workers: processes that load images which do not fit in memory, for each training process.
        after_epoch: called with each saved epoch's metrics; may raise `Interrupted` if the run has one process.
        watch: called in the first process with what `progress.json` holds, every few seconds.

    Returns:
        The content of `result.json`; a diverged run gives `{"state": "failed", ...}`.

    Raises:
        ConfigError: data, folder, weights or configuration can't be used.
        SurroundingsError: memory, the disk, the device, a data worker or another process of the run failed
            (`ProcessLost`), or another process is training this run (`RunBusy`).
        Interrupted: SIGINT, SIGTERM or SIGUSR2 came; everything is saved.
    """
    folder = RunFolder(path)
    with joined(device, config.threads) as (world, own_device), ExitStack() as stack:
        try:
            # data that can't be used must not leave a folder behind
            opened = partial(Data, config.data, config.recipe, config.seed, workers, own_device)
            data = None if (folder.path / "config.json").exists() else opened()
            done = _take(folder, config, world, stack)
            if done is not None:
                return done
            data = data or opened()
            data.record(folder, world.first)
            return Trainer(config, folder, own_device, data, world, after_epoch, watch).run()
        except (Interrupted, ConfigError):
            raise  # a signal or the surroundings, not the run itself: it goes on when launched again
        except Diverged as error:
            return folder.fail(str(error), error.epoch, write=world.first)
        except Exception as error:
            if lost_another(error, world):
                line = f"process {world.rank} of {world.size}: another one of this run ended; launch again to go on"
                raise ProcessLost(line) from error
            if (known := surroundings(error)) is not None:
                raise SurroundingsError(f"{folder.path}: {known}") from error
            if folder.path.exists():
                at = (folder.read("progress.json") or {}).get("epoch", 0) + 1
                # any process writes it: the others only see that this one is gone
                folder.fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", at)
            raise


def _take(folder: RunFolder, config: RunConfig, world: World, stack: ExitStack) -> dict[str, Any] | None:
    """Make or find the run's folder and hold it until `stack` closes; a finished run's result."""
    found: Any = None
    if world.first:
        try:
            folder.create(config)
            stack.enter_context(folder.lock())
            found = folder.result()
        except ConfigError as error:
            found = error
    found = world.broadcast(found)
    if isinstance(found, Exception):
        raise found
    return found if found is not None and found["state"] == "done" else None


class Trainer:
    """Loop of one run in its folder; several processes go through it in step, and the first one writes."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        device: torch.device,
        data: Data,
        world: World = ALONE,
        after_epoch: Callable[[dict[str, Any]], None] | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config, self.folder, self.device, self.data, self.world = config, folder, device, data, world
        self.after_epoch, self.watch = after_epoch, watch
        state = checkpoint.load_newest(folder)
        positions = world.gather(state["step"] if state else None)
        if len(set(positions)) > 1:
            raise ConfigError(f"{folder.path}: the processes find different checkpoints there (steps {positions})")
        self.learner = Learner(config, device, self.data.steps, world, state, data.task.classes)
        if world.first:
            self._record_environment(state is not None)
        self.board = Board(folder.path, self.learner.step) if config.tensorboard and world.first else None
        self.seconds: float = state["seconds"] if state else 0.0
        self.row: dict[str, Any] = state["row"] if state else {}  # the newest of metrics
        self.best: dict[str, Any] = state["best"] if state else {}  # epoch and score of the best weights so far

    def _record_environment(self, resumed: bool) -> None:
        """Versions and code of this start; `code_changed` names files that changed while the run was under way."""
        before = self.folder.read("environment.json") or {} if resumed else {}
        code = provenance.code_of(self.learner.model, self.data.task)
        changed = set(provenance.mixed_code([before.get("code", {}), code])) | set(before.get("code_changed", ()))
        self.code = {"code": code, "code_changed": sorted(changed)}
        now = provenance.environment(self.device) | {"processes": self.world.size}
        self.folder.write("environment.json", now | self.code)

    def run(self) -> dict[str, Any]:
        if self.world.first:
            self.folder.truncate_metrics(self.learner.epoch)
        with stop_signals() as stop:
            while self.learner.epoch < self.config.recipe.total_epochs:
                self._epoch(stop)
        return self._finish()

    def _epoch(self, stop: Stop) -> None:
        learner, steps = self.learner, self.data.steps
        epoch, first = learner.epoch, learner.step % steps
        started = reported = saved = time.monotonic()
        self._report_progress()
        batches = on_device(self.data.batches(epoch, first, self.world.rank, self.world.size), self.device)
        for _ in range(first, steps):
            learner.train_step(batches)
            now = time.monotonic()
            stopping, saving, reporting = self.world.any(
                stop.asked, now - saved > CHECKPOINT_SECONDS, now - reported > PROGRESS_SECONDS
            )
            # after the last step the epoch's end writes it, with the metrics
            if learner.step % steps and (stopping or saving):
                self._check_finite(epoch)
                self._save(self.seconds + now - started)
                saved = now
                if stopping:
                    self._leave(f"in epoch {epoch + 1} after step {self.learner.step}")
            if reporting:
                self._check_finite(epoch)
                self._report_progress()
                reported = now
        self._check_finite(epoch)
        learner.share_statistics()
        spent = time.monotonic() - started
        self.seconds += spent
        scheduled = self.config.recipe.weight_decay_end is not None
        group = learner.optimizer.param_groups[0]
        self.row = {
            "epoch": epoch + 1,
            "step": self.learner.step,
            "lr": group["lr"] / group.get("lr_scale", 1.0),
            **({"weight_decay": learner.schedule.weight_decay(self.learner.step - 1)} if scheduled else {}),
            "train_loss": learner.mean_loss(),
            **self._validate(),
            "seconds": spent,
            "images_per_second": (steps - first) * self.config.recipe.batch_size / spent,
        }
        self._record_broken_images()
        if self.world.first:
            self.folder.append_metrics(self.row)
        if self.board:
            self.board.add(self.row)
        learner.loss_sum.zero_()
        self._save(self.seconds)
        if self.after_epoch is not None:
            try:
                self.after_epoch(self.row)
            except Interrupted:
                self._report_progress(state="interrupted")
                raise
        (stopping,) = self.world.any(stop.asked)
        if stopping and learner.epoch < self.config.recipe.total_epochs:
            self._leave(f"after epoch {epoch + 1}")

    def _leave(self, where: str) -> NoReturn:
        self._report_progress(state="interrupted")
        self.world.broadcast()  # no process leaves before the checkpoint is written
        raise Interrupted(f"stopped {where}; its checkpoint is written")

    def _check_finite(self, epoch: int) -> None:
        if not math.isfinite(self.learner.mean_loss()):
            raise Diverged(epoch + 1)

    def _evaluate(self, model: nn.Module, split: str) -> tuple[dict[str, Any], Predictions]:
        batches = self.data.evaluation(split, self.world.rank, self.world.size)
        return evaluate(model, self.data.task, batches, self.device, self.world)

    def _validate(self) -> dict[str, float]:
        """Scores on the validation split, if there is one; the weights of the best epoch are kept."""
        if not self.data.counts["val"]:
            return {}
        learner, metrics = self.learner, self.config.metrics
        kind, model = "raw", learner.model
        scores, _ = self._evaluate(model, "val")
        row = {f"val_{name}": scores[name] for name in (*(metric.name for metric in metrics), "loss")}
        if learner.ema is not None:
            kind, model = "ema", learner.ema.module
            scores, _ = self._evaluate(model, "val")
            row |= {f"val_{metric.name}_ema": scores[metric.name] for metric in metrics}
        score, key = scores[metrics[0].name], f"val_{metrics[0].name}"
        if metrics[0].better(score, self.best.get(key)):
            self.best = {"epoch": learner.epoch, "weights": kind, key: score}
            if self.world.first:
                weights = {"model": model.state_dict(), "classes": self.data.task.classes}
                checkpoint.save_best(self.folder, weights | self.best)
        return row

    def _finish(self) -> dict[str, Any]:
        """Test the final weights, raw and averaged (reported if kept), and the best epoch's unless its file is lost."""
        config, learner = self.config, self.learner
        rows, arrays = dict[str, dict[str, Any]](), dict[str, np.ndarray]()

        def test(kind: str, model: nn.Module) -> None:
            rows[kind], kept = self._evaluate(model, "test")
            if kept is not None:
                arrays[kind], arrays["label"] = kept

        test("raw", learner.model)
        if learner.ema is not None:
            test("ema", learner.ema.module)
        reported = "ema" if learner.ema is not None else "raw"
        lost = None
        if self.best:
            path, best = self.folder.path / checkpoint.BEST, dict[str, Any]()
            try:
                best = checkpoint.read(path)
                checkpoint.load_weights(learner.model, best.pop("model"), str(path))
                best.pop("classes", None)
            except ConfigError as error:
                lost = str(error)
                log.warning("%s; the row `best` is left out", lost)
            if not any(self.world.any(lost is not None)):
                test("best", learner.model)
                rows["best"] |= best
        self._record_broken_images()
        if not self.world.first:
            return self.world.broadcast()

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        if arrays:
            self.folder.replace("predictions.npz", write)
        cost = sizes(config.build, config.data.input_size)
        metrics = [metric.name for metric in config.metrics]
        self.folder.write(
            "result.json",
            {
                "state": "done",
                "epochs": learner.epoch,
                "weights": reported,
                "metric": metrics[0],
                **{name: rows[reported][name] for name in (*metrics, "loss")},
                **rows,
                **({"best_left_out": lost} if lost else {}),
                "parameters": cost.parameters,
                "macs": cost.macs,
                "seconds": self.seconds,
                "threads": config.threads,
                **self.code,
                "time": time.time(),
            },
        )
        self._report_progress(state="done")
        return self.world.broadcast(self.folder.result())

    def _report_progress(self, state: str = "running") -> None:
        """Write the progress that `status` shows."""
        loss = self.learner.mean_loss() if self.learner.step % self.data.steps else self.row.get("train_loss")
        metric = self.config.metrics[0].name
        if not self.world.first:
            return
        now = {
            "state": state,
            "epoch": self.learner.epoch,
            "epochs": self.config.recipe.total_epochs,
            "step": self.learner.step,
            "steps": self.config.recipe.total_epochs * self.data.steps,
            "loss": loss,
            "metric": metric,
            "score": self.row.get(f"val_{metric}_ema", self.row.get(f"val_{metric}")),
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self.folder.write("progress.json", now, sync=False)
        if self.watch is not None:
            self.watch(now)

    def _record_broken_images(self) -> None:
        """Images that were left out as asked, by name with the reason."""
        broken = {name: reason for part in self.world.gather(self.data.broken) for name, reason in part.items()}
        if broken and self.world.first:
            self.folder.write("broken.json", {**(self.folder.read("broken.json") or {}), **broken})

    def _save(self, seconds: float) -> None:
        state = {**self.learner.state_dict(), "seconds": seconds, "row": self.row, "best": self.best}
        state["classes"] = self.data.task.classes
        if self.world.first:
            checkpoint.save(self.folder, state)
