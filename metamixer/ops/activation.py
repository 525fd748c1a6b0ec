"""Activations: scores → coefficients of the same shape."""

from torch import Tensor, nn

from ..operation import (
    ALL_LAYOUTS,
    KEYED_LAYOUTS,
    Activation,
    Coefficients,
    Layout,
    OperationConfig,
    Site,
    register,
)


@register
class Identity(Activation):
    """Scores are the coefficients."""

    name = "identity"

    def forward(self, scores: Tensor) -> Tensor:
        return scores


@register
class Softmax(Activation):
    """Softmax over the keys (arXiv 1706.03762)."""

    name = "softmax"

    def __init__(self, config: OperationConfig, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        self.key_axis = coefficients.key_axis

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(self.key_axis)


class Elementwise(Activation):
    """A function of each score alone.

    With `over_keys` it is divided by the number of keys, which keeps the sum over values of the size of a
    mean: what lets ReLU stand in for softmax in attention (arXiv 2309.08586).
    """

    class Config(OperationConfig):
        over_keys: bool = False

    def __init__(self, config: Config, site: Site, coefficients: Coefficients) -> None:
        super().__init__(config, site, coefficients)
        self.over_keys = config.over_keys
        self.key_axis = coefficients.key_axis
        self.function = self.make_function()

    @classmethod
    def make_function(cls) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def accepts(cls, config: OperationConfig) -> frozenset[Layout]:
        return KEYED_LAYOUTS if isinstance(config, cls.Config) and config.over_keys else ALL_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        coefficients = self.function(scores)
        return coefficients / scores.shape[self.key_axis] if self.over_keys else coefficients


@register
class GELU(Elementwise):
    """Gaussian error linear unit (arXiv 1606.08415)."""

    name = "gelu"

    @classmethod
    def make_function(cls) -> nn.Module:
        return nn.GELU()


@register
class ReLU(Elementwise):
    """Rectified linear unit."""

    name = "relu"

    @classmethod
    def make_function(cls) -> nn.Module:
        return nn.ReLU()
