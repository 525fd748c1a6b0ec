"""Baselines outside the four slots: mixers whose linear map ignores the query, or that mix nothing."""

from torch import Tensor, nn

from ..operation import Baseline, OperationConfig, Site, register
from ._common import Kernel


@register
class Identity(Baseline):
    """No mixing at all."""

    name = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x


@register
class Pooling(Baseline):
    """Average of the k×k neighbourhood minus the input (PoolFormer, arXiv 2111.11418)."""

    name = "pooling"

    class Config(OperationConfig):
        kernel_size: Kernel = 3

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.pool = nn.AvgPool2d(
            config.kernel_size, stride=1, padding=config.kernel_size // 2, count_include_pad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x
