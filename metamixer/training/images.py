"""Classification of images as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from ..tasks import Metric, Task, sums

if TYPE_CHECKING:
    from .data_config import DataConfig


class ImageClasses(Task):
    """One class for each image of a data set."""

    name = "images"
    metrics = (Metric("top1", "top-1", "%"), Metric("top5", "top-5", "%"))

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.in_chans, self.num_classes = config.channels, config.num_classes
        self.input_size = (config.image_size, config.image_size)

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        right = outputs.topk(min(5, outputs.shape[1])).indices == answers[:, None]
        loss = F.cross_entropy(outputs, answers, reduction="sum")
        return sums(loss, right[:, 0].sum(), right.any(1).sum(), len(answers))

    def measure(self, tally: Tensor) -> dict[str, float]:
        loss, first, five, count = tally.tolist()
        return {"top1": 100 * first / count, "top5": 100 * five / count, "loss": loss / count}
