"""How numbers are read: the metrics of tasks, and counts. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real


@dataclass(frozen=True)
class Metric:
    """How a number is read.

    Attributes:
        name: the key in a run's files, and the column in a frame of runs, e.g. `top1`.
        label: the name in words, e.g. `top-1`.
        unit: what stands behind a value, e.g. `%` or `dB`; empty for a plain number.
        decimals: how many are shown.
        chance: what answers give that ignore the input; None where that means nothing.
        levels: other values with a meaning, by name, e.g. the best that is possible without a certain ability.
        solved: from here on the task counts as solved; None where it has no such value.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool = True
    decimals: int = 2
    chance: float | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    solved: float | None = None

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1

    @property
    def heading(self) -> str:
        """The label with its unit: `top-1, %`."""
        return ", ".join(filter(None, (self.label, self.unit)))

    @property
    def points(self) -> str:
        """What stands behind a difference."""
        return " points" if self.unit == "%" else f" {self.unit}".rstrip()

    @property
    def solvable(self) -> bool:
        """Whether the task can be solved, and chance is known."""
        return self.chance is not None and self.solved is not None

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another one; any value is better than none."""
        return than is None or (value > than if self.higher_is_better else value < than)

    def reaches(self, value: float) -> bool:
        """Whether a value counts as solved."""
        return self.solved is not None and self.sign * (value - self.solved) >= 0

    def value(self, number: float) -> str:
        return f"{number:.{self.decimals}f}"

    def text(self, number: float) -> str:
        """A value with its name and unit: `top-1 84.12 %`."""
        return f"{self.label} {self.value(number)} {self.unit}".rstrip()

    def signed(self, number: float) -> str:
        """A difference with its sign: `+0.31`."""
        return f"{number:+.{self.decimals}f}".replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        """An interval of differences: `[−0.10, +0.72]`."""
        return f"[{self.signed(low)}, {self.signed(high)}]"


def readable(value: float | None, digits: int = 3) -> str:
    """A count of so many digits with a unit: `17.8 M`; `–` where it is unknown."""
    if not isinstance(value, Real) or math.isnan(value):
        return "–"
    for scale, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        text = f"{value / scale:#.{digits}g}"
        if float(text) >= 1:
            return text.rstrip(".") + letter
    return f"{value:g}"
