"""How a column of figures is called, printed and judged: the one place that knows what a metric is."""

from __future__ import annotations

from dataclasses import dataclass

VALIDATION = "val_top1"  # what a learning rate is chosen by


@dataclass(frozen=True)
class Metric:
    """A column of figures of runs.

    Attributes:
        column: its name in a frame of runs.
        name: its name in words, without the unit.
        unit: what stands behind a value.
        points: what stands behind a difference.
        digits: decimals of both.
        rises: whether more is better.
    """

    column: str
    name: str
    unit: str = ""
    points: str = ""
    digits: int = 3
    rises: bool = True

    @property
    def heading(self) -> str:
        """The name with its unit: `top-1, %`."""
        return self.name + (f",{self.unit}" if self.unit else "")

    def value(self, number: float, unit: bool = True) -> str:
        """A value: `97.12 %`."""
        return f"{number:.{self.digits}f}" + (self.unit if unit else "")

    def signed(self, number: float, unit: bool = False) -> str:
        """A difference with its sign: `+0.31 points`."""
        return f"{number:+.{self.digits}f}".replace("-", "−") + (self.points if unit else "")

    def interval(self, low: float, high: float) -> str:
        """An interval of differences: `[−0.10, +0.72]`."""
        return f"[{self.signed(low)}, {self.signed(high)}]"


_KNOWN = (
    Metric("top1", "top-1", " %", " points", 2),
    Metric("top5", "top-5", " %", " points", 2),
    Metric("top1_raw", "top-1 (raw weights)", " %", " points", 2),
    Metric("top1_ema", "top-1 (EMA weights)", " %", " points", 2),
    Metric(VALIDATION, "validation top-1", " %", " points", 2),
    Metric("loss", "test loss", digits=4, rises=False),
)


def metric(column: str) -> Metric:
    """The metric of a column; of an unknown one its plain name."""
    return next((known for known in _KNOWN if known.column == column), Metric(column, column))
