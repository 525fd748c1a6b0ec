"""What became of one run, as its folder's files say."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metamixer.jsonl import read as read_lines
from metamixer.latency.rows import network_key
from metamixer.metric import Metric
from metamixer.training.folder import RunFolder
from metamixer.training.state import ended, state_of

VALIDATION = "validation"  # the column of the metric on the validation split

Json = dict[str, Any]


def read_run(folder: str, metric: Metric, with_config: bool) -> Json:
    """What became of one run, as values of the frame's columns; a file that is missing or not whole gives none.

    Args:
        with_config: also each value of its configuration, as `config.model.…`, and `network` and `resolution`.
    """
    files = RunFolder(folder)
    if (result := ended(files)) is None:
        row: Json = {"state": str(state_of(files)), "epochs": (files.read("progress.json") or {}).get("epoch")}
    else:
        row = {"error": one_line(result.get("error"))} | _figures(folder, result, metric)
        if changed := result.get("code_changed"):
            row["note"] = f"the code changed while it was trained: {', '.join(changed)}"
    if with_config and (config := (files.read("config.json") or {}).get("config")):
        row |= dict(_flat(config, "config")) | _network(config)
    return row


def _figures(folder: str, result: Json, metric: Metric) -> Json:
    kinds = {kind: result[kind] for kind in ("raw", "ema") if kind in result}
    others = {name for scores in kinds.values() for name in scores if name in result}
    row: Json = {name: result.get(name) for name in (*sorted(others), metric.name, "loss", "seconds", "state")}
    row |= {f"{metric.name}_{kind}": scores.get(metric.name) for kind, scores in kinds.items()}
    row["images"] = next((scores["images"] for scores in kinds.values() if "images" in scores), None)
    row |= {key: result.get(key) for key in ("weights", "parameters", "macs", "threads", "code")}
    row["epochs"] = result.get("epochs", result.get("epoch"))
    if not metric.solvable:
        return row | {VALIDATION: _validation(_last_line(folder), metric, row)}
    return row | _course(folder, metric, row)


def _course(folder: str, metric: Metric, row: Json) -> Json:
    """The last validation score, `steps` trained, and `solved_at`: the steps to the first score that solves the task.

    Without a validation split, a run whose final score solves the task counts as solved at its end.
    """
    rows = read_lines(Path(folder) / "metrics.jsonl", report=lambda line: None)
    scores = [_validation(found, metric, row) for found in rows] or [math.nan]
    steps = [found.get("step", math.nan) for found in rows] or [math.nan]
    solved = next((at for at, score in zip(steps, scores, strict=True) if metric.reaches(score)), math.nan)
    if math.isnan(solved) and row["state"] == "done" and metric.reaches(row[metric.name]):
        solved = steps[-1]
    return {VALIDATION: scores[-1], "steps": steps[-1], "solved_at": solved}


def _validation(line: Json, metric: Metric, row: Json) -> Any:
    """The validation score in a line of metrics, of the weights that the run reports."""
    raw = line.get(f"val_{metric.name}", math.nan)
    return raw if row["weights"] == "raw" else line.get(f"val_{metric.name}_ema", raw)


def _last_line(folder: str) -> Json:
    try:
        with open(f"{folder}/metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
            return json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _network(config: Json) -> Json:
    size = config["data"].get("image_size")
    return {"network": network_key(config), "resolution": size[1] if isinstance(size, list) else size}


def task_of(folders: Iterable[str]) -> Json:
    """The configuration of the task that runs were made on, from the first that has begun; empty for a data set."""
    configs = (RunFolder(folder).read("config.json") for folder in folders)
    config: Json = next((content["config"] for content in configs if content), {})
    return config.get("data", {}).get("task", {})


def one_line(value: Any) -> str:
    """A text without its line breaks; "" for nothing."""
    return " ".join(str(value).split()) if value else ""


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}")
    else:
        yield prefix, value
