"""A run's metrics as a log for TensorBoard, which is an extra: `pip install -e '.[tensorboard]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import ConfigError


class Board:
    """The log in a run's folder. What an earlier start wrote beyond `step` is not shown.

    Raises ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("tensorboard=true needs TensorBoard: pip install -e '.[tensorboard]'") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of metrics."""
        for name in row.keys() - {"epoch", "step"}:
            self.writer.add_scalar(name, row[name], row["step"])
        self.writer.flush()
