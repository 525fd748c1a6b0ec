"""Evaluation: every image of a split once, top-1, top-5 and loss, and the class predicted for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError
from ..tasks import NOT_ASKED
from .distributed import ALONE, World


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, world: World = ALONE
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Evaluate `model` in eval mode and leave it in the mode it was in.

    Args:
        batches: images and classes; of several processes each has its part, and all get the result of the whole.

    Returns:
        `top1` and `top5` in percent (top-5 is over min(5, classes)), mean cross-entropy `loss`, number of
        `images`; then the predicted classes and the labels, int16 (N,).

    Raises:
        ConfigError: there is no image.
    """
    training = model.training
    model.eval()
    hits1 = hits5 = 0
    loss = 0.0
    predicted, labels = [np.empty(0, np.int16)], [np.empty(0, np.int16)]  # a process may have no image
    for images, classes in batches:
        images, classes = images.to(device, non_blocking=True), classes.to(device, non_blocking=True)
        logits, classes = asked(model(images).float(), classes)
        top = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        right = top == classes[:, None]
        hits1 += int(right[:, 0].sum())
        hits5 += int(right.any(1).sum())
        loss += float(F.cross_entropy(logits, classes, reduction="sum"))
        predicted.append(top[:, 0].cpu().numpy().astype(np.int16))
        labels.append(classes.cpu().numpy().astype(np.int16))
    model.train(training)
    parts = world.gather((hits1, hits5, loss, np.concatenate(predicted), np.concatenate(labels)))
    all_hits1, all_hits5, losses, all_predicted, all_labels = zip(*parts, strict=True)
    images_seen = sum(map(len, all_labels))
    if not images_seen:
        raise ConfigError("no image to evaluate: every image of the split is broken (see data.skip_broken)")
    scores = {
        "top1": 100 * sum(all_hits1) / images_seen,
        "top5": 100 * sum(all_hits5) / images_seen,
        "loss": sum(losses) / images_seen,
        "images": images_seen,
    }
    return scores, np.concatenate(all_predicted), np.concatenate(all_labels)


def asked(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K, …) and classes (B, …) as (N, K) and (N,): one row for each answer that is asked."""
    where = classes != NOT_ASKED
    return logits.movedim(1, -1)[where], classes[where]
