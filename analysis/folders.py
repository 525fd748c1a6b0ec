"""What became of one run, as its folder's files say: configuration, result, progress, metrics."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metamixer.latency.rows import network_key
from metamixer.training.folder import RunFolder
from metamixer.training.state import state_of

SCHEMAS = (1, 2)  # of manifests and of config.json: what is written in another one isn't guessed at
_KNOWN = re.compile(rb'\s*\{\s*"schema"\s*:\s*(\d+)\s*[,}]')

Json = dict[str, Any]


def read_run(folder: str, with_config: bool, with_network: bool) -> Json:
    """What became of one run, as values of the columns of `frame.COLUMNS`; `note` says what could not be read.

    Args:
        with_config: also each value of its configuration, as `config.model.…`.
        with_network: also `network` and `resolution`, for which the configuration is read too.
    """
    row: Json = {}
    notes = []
    config, problem = read_json(os.path.join(folder, "config.json"), only_schema=not (with_config or with_network))
    foreign = "" if config is None else other_schema(config)
    if problem or foreign:
        notes.append(f"config.json {problem or foreign}")
    result, problem = read_json(os.path.join(folder, "result.json"), absent_is_fine=True)
    if problem:
        notes.append(f"result.json {problem}")
    if result is not None and result.get("state") not in ("done", "failed"):
        notes.append(f"result.json has the state {result.get('state')!r}")
        result = None
    if result is None:
        row |= _unfinished(folder, notes)
    else:
        row["state"] = result["state"]
        other = foreign or ("schema" in result and other_schema(result))
        if other:  # the meaning of its figures may be another one
            notes.append("its figures are left out" if foreign else f"result.json {other}, figures left out")
        else:
            row |= _figures(result) | _made_with(folder, result)
            row["val_top1"] = _validation(folder, row["weights"], result.get("metric", "top1"))
            if changed := result.get("code_changed"):
                notes.append(f"the code changed while it was trained: {', '.join(changed)}")
            if result["state"] == "done" and math.isnan(row["top1"]):
                notes.append("result.json has no top1")
        row["error"] = one_line(result.get("error"))
    values = None if config is None or foreign else config.get("config")
    if isinstance(values, dict):
        row |= dict(_flat(values, "config")) if with_config else {}
        row |= _network(values)
    row["note"] = "; ".join(notes)
    return row


def _figures(result: Json) -> Json:
    raw, ema = (value if isinstance(value := result.get(key), dict) else {} for key in ("raw", "ema"))
    name = result.get("metric", "top1")  # the columns of the metric that decides have this name for all tasks
    row: Json = {key: number(result.get(key)) for key in ("top5", "loss", "seconds")}
    row |= {"top1": number(result.get(name)), "top1_raw": number(raw.get(name)), "top1_ema": number(ema.get(name))}
    row |= {"weights": result.get("weights"), "images": raw.get("images", ema.get("images"))}
    row |= {key: result.get(key) for key in ("parameters", "macs", "state_size")}
    row["epochs"] = result.get("epochs", result.get("epoch"))
    return row


def _validation(folder: str, weights: Any, metric: str) -> float:
    """Accuracy of the reported weights on the validation split after the last epoch; NaN without one."""
    try:
        with open(os.path.join(folder, "metrics.jsonl"), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 2048))
            row = json.loads(file.read().splitlines()[-1])
        return number(row.get(f"val_{metric}_ema" if weights == "ema" else f"val_{metric}"))
    except (OSError, ValueError, IndexError, AttributeError):
        return math.nan


def _network(values: Json) -> Json:
    try:
        return {"network": network_key(values), "resolution": values["data"]["image_size"]}
    except (KeyError, TypeError):
        return {}


def _unfinished(folder: str, notes: list[str]) -> Json:
    progress, problem = read_json(os.path.join(folder, "progress.json"), absent_is_fine=True)
    notes += [f"progress.json {problem}"] if problem else []
    return {"state": str(state_of(RunFolder(folder))), "epochs": (progress or {}).get("epoch")}


def _made_with(folder: str, result: Json) -> Json:
    """What a finished run depends on besides its configuration: `threads`, and a digest of each file of its `code`."""
    if "code" not in result:  # runs of schema 1 say less, and elsewhere
        result = read_json(os.path.join(folder, "environment.json"))[0] or {}
    return {"threads": result.get("threads"), "code": result.get("code")}


def read_json(path: str | Path, absent_is_fine: bool = False, only_schema: bool = False) -> tuple[Json | None, str]:
    """A file's JSON object, or None and what is wrong with the file.

    With `only_schema`, a file that opens with a known schema isn't parsed: most of the time of reading
    thousands of runs would go into configurations that nobody asked for.
    """
    try:
        with open(path, "rb") as file:
            if only_schema and (found := _KNOWN.match(file.read(64))) and int(found[1]) in SCHEMAS:
                return {"schema": int(found[1])}, ""
            file.seek(0)
            content = json.loads(file.read())
    except FileNotFoundError:
        return None, "" if absent_is_fine else "is missing"
    except OSError as error:
        return None, f"can't be read ({error.strerror})"
    except ValueError:
        return None, "is half-written or not JSON"
    return (content, "") if isinstance(content, dict) else (None, "holds no JSON object")


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
