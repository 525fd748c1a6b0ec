"""Evaluation: every sample of a split once, the task's metrics, and what was predicted for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..tasks import Task
from .distributed import ALONE, World

Predictions = tuple[np.ndarray, np.ndarray] | None


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    world: World = ALONE,
) -> tuple[dict[str, Any], Predictions]:
    """Evaluate `model` in eval mode and leave it in the mode it was in.

    Args:
        batches: inputs and answers; of several processes each has its part, and all get the result of the whole.

    Returns:
        The task's metrics by name, `loss` and the number of `images`; then what was predicted and the answers, int16
        (N,), or None for a task that keeps no predictions.

    Raises ConfigError: there is no sample.
    """
    training = model.training
    model.eval()
    tally: Tensor | float = 0.0
    count, kept = 0, list[np.ndarray]()
    for inputs, answers in batches:
        inputs, answers = inputs.to(device, non_blocking=True), answers.to(device, non_blocking=True)
        outputs = task.answer(model, inputs).float()
        tally = task.tally(outputs, answers) + tally
        predictions = task.predictions(outputs, answers)
        if predictions is not None:
            kept.append(torch.stack(predictions).cpu().numpy().astype(np.int16))
        count += len(inputs)
    model.train(training)
    tallies, counts, all_kept = zip(*world.gather((tally, count, kept)), strict=True)
    if not sum(counts):
        raise ConfigError("no sample to evaluate: every image of the split is broken (see data.skip_broken)")
    scores = {**task.measure(sum(tallies)), "images": sum(counts)}
    whole = [part for parts in all_kept for part in parts]
    if not whole:
        return scores, None
    predicted, right = np.concatenate(whole, 1)
    return scores, (predicted, right)
