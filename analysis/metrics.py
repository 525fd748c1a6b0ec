"""What a figure of runs is called, how it is printed, and which direction is better: as the task declares it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

VALIDATION = "validation"  # the column of the deciding metric on the validation split


@dataclass(frozen=True)
class Metric:
    """A figure of runs.

    Attributes:
        name: its column in a frame of runs.
        label: its name in words.
        unit: "%", "dB", or nothing.
        decimals: of values and differences.
        chance: what answers reach that ignore the input.
        levels: other values with a meaning.
        solved: from here on a task counts as solved.
    """

    name: str
    label: str = ""
    unit: str = ""
    higher_is_better: bool = True
    decimals: int = 3
    chance: float = math.nan
    levels: Mapping[str, float] = field(default_factory=dict)
    solved: float = math.nan

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
        return not math.isnan(self.chance - self.solved)

    def reaches(self, value: float) -> bool:
        """Whether a value counts as solved."""
        return self.sign * (value - self.solved) >= 0

    def value(self, number: float) -> str:
        return f"{number:.{self.decimals}f}"

    def signed(self, number: float) -> str:
        """A difference with its sign: `+0.31`."""
        return f"{number:+.{self.decimals}f}".replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        """An interval of differences: `[−0.10, +0.72]`."""
        return f"[{self.signed(low)}, {self.signed(high)}]"

    def by(self, column: str) -> Metric:
        """The metric of another column of the same runs."""
        words = {
            VALIDATION: f"validation {self.label}",
            f"{self.name}_raw": f"{self.label} (raw weights)",
            f"{self.name}_ema": f"{self.label} (EMA weights)",
        }
        if column in words:
            return replace(self, name=column, label=words[column])
        return self if column == self.name else _KNOWN.get(column, Metric(column, column))


_KNOWN = {
    "top1": Metric("top1", "top-1", "%", decimals=2),
    "top5": Metric("top5", "top-5", "%", decimals=2),
    "loss": Metric("loss", "test loss", higher_is_better=False, decimals=4),
}


def declared(manifest: Mapping[str, Any]) -> Metric:
    """The metric that a grid's manifest declares; older ones have a name alone, and a task's levels apart."""
    found = manifest.get("metric") or "top1"
    if isinstance(found, str):
        return replace(_KNOWN.get(found, Metric(found, found)), **manifest.get("levels", {}))
    known = {key.name for key in fields(Metric)}
    return Metric(**{key: value for key, value in found.items() if key in known and value is not None})
