"""What became of one run, as its folder's files say."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metamixer.jsonl import read as read_lines
from metamixer.latency.rows import network_key
from metamixer.metric import Metric
from metamixer.training.folder import RunFolder
from metamixer.training.state import state_of

from .metrics import VALIDATION

SCHEMAS = (1, 2)  # of manifests and of config.json: files of another one are not guessed at
_SCHEMA = re.compile(rb'\s*\{\s*"schema"\s*:\s*(\d+)\s*[,}]')

Json = dict[str, Any]


def read_run(folder: str, metric: Metric, with_config: bool) -> Json:
    """What became of one run, as values of the frame's columns; `note` says what could not be read.

    Args:
        with_config: also each value of its configuration, as `config.model.…`, and `network` and `resolution`.
    """
    if not os.path.isdir(folder):
        return {"state": "new"}
    row: Json = {}
    foreign = problem_of_config(folder)
    notes = [foreign] if foreign else []
    result, problem = read_json(f"{folder}/result.json")
    notes += [f"result.json {problem}"] if problem else []
    if result is not None and result.get("state") not in ("done", "failed"):
        notes.append(f"result.json has the state {result.get('state')!r}")
        result = None
    if result is None:
        progress, problem = read_json(f"{folder}/progress.json")
        notes += [f"progress.json {problem}"] if problem else []
        row |= {"state": str(state_of(RunFolder(folder))), "epochs": (progress or {}).get("epoch")}
    else:
        row |= {"state": result["state"], "error": one_line(result.get("error"))}
        if " has schema " in foreign:
            notes.append("its figures are left out")
        else:
            row |= _figures(folder, result, metric)
            if changed := result.get("code_changed"):
                notes.append(f"the code changed while it was trained: {', '.join(changed)}")
            if result["state"] == "done" and math.isnan(row[metric.name]):
                notes.append(f"result.json has no {metric.name}")
    if with_config and not foreign:
        content, problem = read_json(f"{folder}/config.json")
        config = (content or {}).get("config")
        if isinstance(config, dict):
            row |= dict(_flat(config, "config")) | _network(config)
        else:
            notes.append(f"config.json {problem or 'holds no configuration'}")
    return row | {"note": "; ".join(notes)}


def _figures(folder: str, result: Json, metric: Metric) -> Json:
    kinds = {kind: result[kind] for kind in ("raw", "ema") if isinstance(result.get(kind), dict)}
    own = result.get("metric", "top1")  # older runs of a task, and older manifests, call its metric top1
    others = {name for scores in kinds.values() for name in scores if name in result} - {own}
    row: Json = {name: number(result.get(name)) for name in (*sorted(others), "loss", "seconds")}
    row |= {metric.name: number(result.get(own))}
    row |= {f"{metric.name}_{kind}": number(scores.get(own)) for kind, scores in kinds.items()}
    row["images"] = next((scores["images"] for scores in kinds.values() if "images" in scores), None)
    row |= {key: result.get(key) for key in ("weights", "parameters", "macs")}
    row["epochs"] = result.get("epochs", result.get("epoch"))
    if "code" not in result:  # runs of schema 1 say less, and elsewhere
        result = read_json(f"{folder}/environment.json")[0] or {}
    row |= {key: result.get(key) for key in ("threads", "code")}
    if not metric.solvable:
        return row | {VALIDATION: _validation(_last_line(folder), own, row["weights"])}
    return row | _course(folder, metric, own, row)


def _course(folder: str, metric: Metric, own: str, row: Json) -> Json:
    """The last validation score, `steps` trained, and `solved_at`: the steps to the first score that solves the task.

    Without a validation split, a run whose final score solves the task counts as solved at its end.
    """
    rows = read_lines(Path(folder) / "metrics.jsonl", report=lambda line: None)
    scores = [_validation(found, own, row["weights"]) for found in rows]
    steps = [number(found.get("step")) for found in rows] or [math.nan]
    solved = next((at for at, score in zip(steps, scores, strict=False) if metric.reaches(score)), math.nan)
    if math.isnan(solved) and metric.reaches(row[metric.name]):
        solved = steps[-1]
    return {VALIDATION: scores[-1] if scores else math.nan, "steps": steps[-1], "solved_at": solved}


def _validation(row: Json, name: str, weights: Any) -> float:
    """The validation score in a row of metrics, of the reported weights."""
    raw = row.get(f"val_{name}")
    return number(raw if weights == "raw" else row.get(f"val_{name}_ema", raw))


def _last_line(folder: str) -> Json:
    try:
        with open(f"{folder}/metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
            return json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _network(config: Json) -> Json:
    try:
        size = config["data"].get("image_size")
        return {"network": network_key(config), "resolution": size[1] if isinstance(size, list) else size}
    except (KeyError, TypeError):
        return {}


def problem_of_config(folder: str | Path) -> str:
    """What is wrong with the schema of a run's configuration, "" if nothing; the rest of the file is not parsed."""
    try:
        with open(f"{folder}/config.json", "rb") as file:
            found = _SCHEMA.match(file.read(64))
    except OSError:
        return "config.json is missing or can't be read"
    problem = other_schema({"schema": int(found[1])}) if found else "is half-written or not JSON"
    return f"config.json {problem}" if problem else ""


def read_json(path: str | Path) -> tuple[Json | None, str]:
    """A file's JSON object, or None and what is wrong with the file; nothing is wrong where there is none."""
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"can't be read ({error.strerror})"
    except ValueError:
        return None, "is half-written or not JSON"
    return (content, "") if isinstance(content, dict) else (None, "holds no JSON object")


def task_of(folders: Iterable[str]) -> Json:
    """The configuration of the task that runs were made on, from the first that has begun; empty for a data set."""
    configs = (read_json(f"{folder}/config.json")[0] for folder in folders)
    config: Json = next((content["config"] for content in configs if content and "config" in content), {})
    return config.get("data", {}).get("task", {})


def other_schema(content: Json) -> str:
    """What is wrong with the schema of a file; "" if it is one that this code reads."""
    schema = content.get("schema")
    return "" if schema in SCHEMAS else f"has schema {schema!r}, this code reads {' and '.join(map(str, SCHEMAS))}"


def number(value: Any) -> float:
    """A number of JSON; NaN where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


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
