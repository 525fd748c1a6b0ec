"""Run folders as tidy pandas frames: a row a run, nothing dropped in silence.

A grid's manifest, `grids/GRID@DATA.json`, lists the runs it declared; each run's folder, named by its hash,
holds what became of it. A run that failed, is still going or can't be read keeps its row, and its `note` says
what was left out. Reading writes nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

SCHEMA = 1  # of manifests and of config.json: what is written in another one isn't guessed at
SILENT_AFTER = 15 * 60  # seconds without a sign of life until a run "running" gets a note

COLUMNS = {
    "grid": "str",
    "data": "str",
    "variant": "str",
    "seed": "Int64",
    "hash": "str",
    "state": "str",
    "top1": "float64",
    "top5": "float64",
    "loss": "float64",
    "top1_raw": "float64",
    "top1_ema": "float64",
    "weights": "str",
    "images": "Int64",
    "parameters": "Int64",
    "macs": "Int64",
    "epochs": "Int64",
    "seconds": "float64",
    "error": "str",
    "on": "str",
    "base": "bool",
    "note": "str",
}
_KNOWN = re.compile(rb'\s*\{\s*"schema"\s*:\s*%d\s*[,}]' % SCHEMA)
_INTEGERS = ("images", "parameters", "macs", "epochs")

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a comparison is about: everything that a table or picture says besides the figures.

    `weights` names the reported weights ("ema" or "raw": declared by the recipe before training); `images` is
    the number of test images; `left_out` holds one line for each thing that is in no mean, and why.
    """

    grid: str
    data: str
    question: str
    base: str
    metric: str
    seeds: tuple[int, ...]
    weights: str
    images: int | None
    left_out: tuple[str, ...]


def load(
    root: str | Path,
    grid: str | None = None,
    data: str | None = None,
    *,
    with_config: bool = False,
    missing: Literal["raise", "empty"] = "raise",
) -> pd.DataFrame:
    """The runs that the grids under `root` declare, a row a run, in declared order.

    Accuracies are in percent (0-100), `macs` in multiply-adds of the folded network for one image, `seconds`
    the training time. `state` is done, failed, running, interrupted or new (not begun). `top1`, `top5`
    and `loss` are those of the declared `weights`; `top1_raw` and `top1_ema` give both. `epochs` counts the
    epochs that a run began or finished. What belongs to no run (an unreadable manifest) is in
    `frame.attrs["left_out"]`.

    Args:
        root: the folder of the runs, with `grids/` in it.
        grid: one grid's name; without it, every grid's runs.
        data: one data set's name; without it, every data set the grid ran on.
        with_config: also each run's configuration, as columns `config.model.…`.
        missing: where there is no such grid, raise or give an empty frame that says so (for notebooks).

    Raises:
        ValueError: there is no such grid; the line lists those that there are.
    """
    manifests, left_out, names = [], [], []
    for path in sorted((Path(root) / "grids").glob("*.json")):
        name, _, on_data = path.stem.partition("@")
        content, problem = _read(path)
        if content is not None:
            problem = _foreign(content)
            name, on_data = str(content.get("grid", name)), str(content.get("data", on_data))
        names.append(f"{name}@{on_data}")
        if (grid is not None and name != grid) or (data is not None and on_data != data):
            continue
        if problem or content is None:
            left_out.append(f"grids/{path.name} {problem}: the whole grid is left out")
        else:
            manifests.append({**content, "grid": name, "data": on_data})
    if not manifests and not left_out and (grid or data or missing == "empty"):
        asked = f"grid {grid or 'of any name'}" + (f" on {data}" if data else "")
        there = "there are " + ", ".join(names) if names else "no grid was launched there yet"
        if missing == "raise":
            raise ValueError(f"no {asked} in {root}: {there}")
        left_out.append(f"everything: no {asked} in {root}: {there}")

    try:
        folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    except OSError:
        folders = set()
    now, seen, rows = time.time(), dict[str, Json](), []
    for manifest in manifests:
        for entry in _entries(manifest, left_out):
            key = entry["hash"]
            if key not in seen:  # a run that two grids share is read once
                seen[key] = _run(os.path.join(root, key), now, with_config) if key in folders else {"state": "new"}
            rows.append({**entry, **seen[key]})
    frame = _typed(rows)
    frame.attrs["left_out"] = left_out
    head = ("grid", "data", "question", "base", "metric")
    frame.attrs["grids"] = [{key: manifest.get(key) for key in head} for manifest in manifests]
    frame.attrs["asked"] = {"grid": grid, "data": data}
    return frame


def _entries(manifest: Json, left_out: list[str]) -> Iterator[Json]:
    where = f"{manifest['grid']}@{manifest['data']}"
    runs = manifest.get("runs")
    if not isinstance(runs, list):
        left_out.append(f"grids/{where}.json has no list of runs")
    for index, entry in enumerate(runs if isinstance(runs, list) else []):
        try:
            key, variant, seed = entry["hash"], entry["variant"], int(entry["seed"])
        except (KeyError, TypeError, ValueError):
            key = None
        if not isinstance(key, str) or not key:
            left_out.append(f"grids/{where}.json: entry {index} of its runs lacks a hash, a variant or a seed")
            continue
        yield {
            "grid": manifest["grid"],
            "data": manifest["data"],
            "variant": str(variant),
            "seed": seed,
            "hash": key,
            "on": entry.get("on"),
            "base": variant == manifest.get("base"),
        }


def _run(folder: str, now: float, with_config: bool) -> Json:
    """What became of one run, from its folder."""
    row: Json = {}
    notes = []
    config, problem = _read(os.path.join(folder, "config.json"), only_schema=not with_config)
    foreign = "" if config is None else _foreign(config)
    if problem or foreign:
        notes.append(f"config.json {problem or foreign}")
    result, problem = _read(os.path.join(folder, "result.json"), absent_is_fine=True)
    if problem:
        notes.append(f"result.json {problem}")
    if result is not None and result.get("state") not in ("done", "failed"):
        notes.append(f"result.json has the state {result.get('state')!r}")
        result = None
    if result is None:
        row |= _unfinished(folder, now, notes)
    else:
        row["state"] = result["state"]
        other = foreign or ("schema" in result and _foreign(result))
        if other:  # the meaning of its figures may be another one
            notes.append("its figures are left out" if foreign else f"result.json {other}, figures left out")
        else:
            row |= _figures(result)
            if result["state"] == "done" and math.isnan(row["top1"]):
                notes.append("result.json has no top1")
        row["error"] = _line(result.get("error"))
    if with_config and config is not None and not foreign:
        row |= dict(_flat(config.get("config"), "config"))
    row["note"] = "; ".join(notes)
    return row


def _figures(result: Json) -> Json:
    raw, ema = (value if isinstance(value := result.get(key), dict) else {} for key in ("raw", "ema"))
    row: Json = {key: _number(result.get(key)) for key in ("top1", "top5", "loss", "seconds")}
    row |= {"top1_raw": _number(raw.get("top1")), "top1_ema": _number(ema.get("top1"))}
    row |= {"weights": result.get("weights"), "images": raw.get("images", ema.get("images"))}
    row |= {key: result.get(key) for key in ("parameters", "macs")}
    row["epochs"] = result.get("epochs", result.get("epoch"))
    return row


def _unfinished(folder: str, now: float, notes: list[str]) -> Json:
    progress, problem = _read(os.path.join(folder, "progress.json"), absent_is_fine=True)
    if progress is None:
        notes += [f"progress.json {problem}"] if problem else []
        # A launch makes the folders of all runs before the first begins: without a trace of training it's new.
        began = any(note.startswith(("progress", "result")) for note in notes)
        return {"state": "interrupted" if began else "new"}
    state = progress.get("state")
    if state not in ("running", "interrupted"):
        notes.append(f"progress.json has the state {state!r}, but there is no result")
        state = "interrupted"
    silent = now - _number(progress.get("time"))
    if state == "running" and silent > SILENT_AFTER:  # killed, or on a machine that is gone: can't be told from here
        notes.append(f"no sign of life for {silent / 3600:.1f} h")
    return {"state": state, "epochs": progress.get("epoch")}


def _read(path: str | Path, absent_is_fine: bool = False, only_schema: bool = False) -> tuple[Json | None, str]:
    """A file's JSON object, or None and what is wrong with the file.

    With `only_schema`, a file that opens with the known schema isn't parsed: most of the time of reading
    thousands of runs would go into configurations that nobody asked for.
    """
    try:
        with open(path, "rb") as file:
            if only_schema and _KNOWN.match(file.read(64)):
                return {"schema": SCHEMA}, ""
            file.seek(0)
            content = json.loads(file.read())
    except FileNotFoundError:
        return None, "" if absent_is_fine else "is missing"
    except OSError as error:
        return None, f"can't be read ({error.strerror})"
    except ValueError:
        return None, "is half-written or no JSON"
    return (content, "") if isinstance(content, dict) else (None, "holds no JSON object")


def _foreign(content: Json) -> str:
    schema = content.get("schema")
    return "" if schema == SCHEMA else f"has schema {schema!r}, this code reads {SCHEMA}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _line(value: Any) -> str:
    return " ".join(str(value).split()) if value else ""


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{prefix}.{key}")
    else:
        yield prefix, value


def _typed(rows: list[Json]) -> pd.DataFrame:
    texts = [name for name, kind in COLUMNS.items() if kind == "str" and name != "on"]
    for row in rows:
        for key in _INTEGERS:
            number = _number(row.get(key))
            row[key] = int(number) if math.isfinite(number) else None
        for key in texts:
            row[key] = str(row.get(key) or "")
    extra = list(dict.fromkeys(key for row in rows for key in row if key.startswith("config.")))
    frame = pd.DataFrame.from_records(rows, columns=[*COLUMNS, *extra])
    return frame.astype(COLUMNS)


def describe(runs: pd.DataFrame) -> Meta:
    """What the runs of one grid on one data set are about, and what of them is in no mean.

    Raises:
        ValueError: the frame holds several grids or data sets.
    """
    one_grid(runs)
    grids, asked = runs.attrs.get("grids") or [{}], runs.attrs.get("asked") or {}
    head = grids[0]
    done = runs[runs["state"] == "done"]
    weights = sorted(set(done["weights"]) - {""})
    images = done["images"].dropna().unique()
    bases = runs.loc[runs["base"], "variant"]
    return Meta(
        grid=str(head.get("grid") or asked.get("grid") or _first(runs["grid"])),
        data=str(head.get("data") or asked.get("data") or _first(runs["data"])),
        question=_line(head.get("question")),
        base=str(head.get("base") or _first(bases)),
        metric=str(head.get("metric") or "top1"),
        seeds=tuple(int(seed) for seed in sorted(runs["seed"].unique())),
        weights=" and ".join(weights),
        images=int(images[0]) if len(images) == 1 else None,
        left_out=(*runs.attrs.get("left_out", ()), *_left_out(runs)),
    )


def one_grid(runs: pd.DataFrame) -> None:
    """Refuse a frame whose rows can't be compared with one another.

    Raises:
        ValueError: it holds several grids or data sets, or a variant's seed twice.
    """
    pairs = [f"{grid}@{data}" for grid, data in runs[["grid", "data"]].drop_duplicates().itertuples(index=False)]
    if len(pairs) > 1:
        raise ValueError(f"a comparison takes one grid on one data set, here are {', '.join(pairs)}")
    twice = runs[runs.duplicated(["variant", "seed"])]
    if len(twice):
        raise ValueError(f"variant {twice.iloc[0]['variant']} has seed {twice.iloc[0]['seed']} twice")


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, untyped: what a column holds is known at run time only."""
    return iter(table.itertuples())


def _first(values: pd.Series) -> str:
    return str(values.iloc[0]) if len(values) else "unknown"


def _left_out(runs: pd.DataFrame, shown: int = 6) -> Iterator[str]:
    for state in ("failed", "running", "interrupted", "new"):
        chosen = runs[runs["state"] == state]
        if len(chosen):
            named = [_name(row) for row in each(chosen.head(shown))]
            more = [f"{len(chosen) - shown} more"] if len(chosen) > shown else []
            word = {"new": "not started", "running": "still running"}.get(state, state)
            yield f"{word}: {len(chosen)} of {len(runs)} runs ({', '.join(named + more)})"
    for row in each(runs[(runs["state"] == "done") & (runs["note"] != "")]):
        yield f"of a finished run: {_name(row)}"


def _name(row: Any) -> str:
    why = "; ".join(text for text in (row.error, row.note) if text)
    return f"{row.variant} seed {row.seed}" + (f": {why}" if why else "")


def curves(root: str | Path, hashes: Iterable[str]) -> pd.DataFrame:
    """What the runs wrote after each epoch: a row a run and epoch, with `hash` in front.

    Losses are means over the epoch, accuracies in percent, `seconds` those of the epoch. A line that a kill
    tore is left out and counted in `frame.attrs["left_out"]`, as are runs without metrics.
    """
    rows: list[Json] = []
    left_out = []
    for key in dict.fromkeys(hashes):
        try:
            lines = (Path(root) / key / "metrics.jsonl").read_bytes().splitlines()
        except OSError:
            left_out.append(f"{key}: no metrics.jsonl")
            continue
        epochs: dict[Any, Json] = {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                epochs[row["epoch"]] = {"hash": key, **row}  # an epoch written twice counts once, the later
            except (ValueError, KeyError, TypeError):
                if line.strip():
                    left_out.append(f"{key}: line {number} of metrics.jsonl is no row of an epoch")
        rows += epochs.values()
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["hash", "epoch"])
    frame.attrs["left_out"] = left_out
    return frame
