"""What runs say to a search: their validation top-1, and which finished ones lie in its space already."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

from .definition import Definition
from .space import keys_of


def top1(row: dict[str, Any]) -> float:
    """Validation top-1 of the weights that the recipe reports: the average where there is one."""
    return float(row.get("val_top1_ema", row["val_top1"]))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics, a row an epoch, up to one that a kill tore; none if it has not begun."""
    rows = list[dict[str, Any]]()
    try:
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            rows.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return rows


def last_metrics(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The row of a run's last epoch; None if it is not there."""
    rows = metrics(folder)
    return rows[-1] if rows and rows[-1]["epoch"] >= config.recipe.total_epochs else None


def finished_runs(root: Path, definition: Definition, base: RunConfig) -> list[RunConfig]:
    """The finished runs of a folder that lie in the search's space, seed included."""
    found = []
    tops = {key.split(".")[0] for name, node in definition.space.items() for key in keys_of(name, node)}
    same = {key: value for key, value in base.to_dict().items() if key not in tops and key != "modules"}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name) if root.is_dir() else []:
        folder = RunFolder(entry.path)
        content = folder.read("config.json") if entry.is_dir() else None
        if content is None or any(content.get("config", {}).get(key) != value for key, value in same.items()):
            continue
        if (folder.result() or {}).get("state") != "done":
            continue
        try:
            config = folder.config()
            definition.parameters_of(base, config)
        except ConfigError:
            continue
        if last_metrics(folder.path, config) is None:
            continue
        found.append(config)
    return found
