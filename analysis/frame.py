"""Run folders as tidy pandas frames: a row a run, nothing dropped in silence.

A grid's manifest, `grids/GRID@DATA.json`, lists the runs it declared; each run's folder, named by its hash,
holds what became of it. A run that failed, is still going or can't be read keeps its row, and its `note` says
what was left out. Reading writes nothing; `cache` may remember what was read of finished runs (`remember`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from . import cache, folders
from .latency import load as load_latencies

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
    "val_top1": "float64",
    "weights": "str",
    "images": "Int64",
    "parameters": "Int64",
    "macs": "Int64",
    "epochs": "Int64",
    "seconds": "float64",
    "error": "str",
    "on": "str",
    "base": "bool",
    "pair": "Int64",
    "lr": "float64",
    "fixed": "bool",
    "network": "str",
    "resolution": "Int64",
    "note": "str",
}
_OF_ENTRIES = ("grid", "data", "variant", "seed", "on", "base", "pair", "lr", "fixed")  # the rest is a run's own
_INTEGERS = ("images", "parameters", "macs", "epochs", "resolution")

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
    remember: bool = False,
) -> pd.DataFrame:
    """The runs that the grids under `root` declare, a row a run, in declared order.

    Accuracies are in percent (0-100), `macs` in multiply-adds of the folded network for one image, `seconds`
    the training time. `state` is done, failed, running, interrupted or new (not begun). `top1`, `top5`
    and `loss` are those of the declared `weights`; `top1_raw` and `top1_ema` give both, `val_top1` is that of the
    declared weights after the last epoch on the validation split. `epochs` counts the epochs that a run began or
    finished. `pair` is what runs are paired by, the seed unless the manifest says otherwise (A/A). Where a grid has
    a set of learning rates, `lr` is the run's, and the recipe's own is `fixed`. `network` (`latency.network_key`) and
    `resolution` are known where configurations are read. Where latencies lie beside the runs, medians for one image
    are in columns `latency_ms[RUNTIME, THREADS OR UNITS, PRECISION, DEVICE]`. What belongs
    to no run (an unreadable manifest) is in `frame.attrs["left_out"]`.

    Args:
        root: the folder of the runs, with `grids/` in it.
        grid: one grid's name; without it, every grid's runs.
        data: one data set's name; without it, every data set the grid ran on.
        with_config: also each run's configuration, as columns `config.model.…`.
        missing: where there is no such grid, or nothing of it can be read, raise or give an empty frame that says so
            (for notebooks).
        remember: keep what was read of finished runs in `grids/`, for the next time (`cache`); a folder that can't
            be written goes without.

    Raises:
        ValueError: there is no such grid (the line lists those that there are), its manifest can't be read, or it
            declares no runs.
    """
    manifests, left_out = _manifests(Path(root), grid, data, missing)
    entries = [entry for manifest in manifests for entry in _entries(manifest, left_out)]
    if grid is not None and missing == "raise" and not entries:
        raise ValueError("; ".join(left_out) or f"grid {grid} in {root} declares no runs")
    latencies = load_latencies(root, with_published=False)
    left_out += latencies.attrs["left_out"]
    keys = list(dict.fromkeys(entry["hash"] for entry in entries))
    runs = _runs(Path(root), keys, with_config, len(latencies) > 0, remember)
    declared = pd.DataFrame.from_records(entries, columns=[*_OF_ENTRIES, "hash"])
    frame = declared.merge(runs, on="hash", how="left")
    extra = [name for name in runs.columns if name not in COLUMNS]
    frame = frame[[*COLUMNS, *extra]].astype(COLUMNS)
    frame = with_latency(frame, latencies)
    frame.attrs["left_out"] = left_out
    head = ("grid", "data", "question", "base", "metric", "aa")
    frame.attrs["grids"] = [{key: manifest.get(key) for key in head} for manifest in manifests]
    frame.attrs["root"] = str(root)
    frame.attrs["asked"] = {"grid": grid, "data": data}
    return frame


def _manifests(root: Path, grid: str | None, data: str | None, missing: str) -> tuple[list[Json], list[str]]:
    manifests, left_out, names = [], [], []
    for path in sorted((root / "grids").glob("*.json")):
        name, _, on_data = path.stem.partition("@")
        content, problem = folders.read_json(path)
        if content is not None:
            problem = folders.other_schema(content)
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
    return manifests, left_out


def _runs(root: Path, keys: list[str], with_config: bool, with_network: bool, remember: bool) -> pd.DataFrame:
    """What became of each run, a row a run with `hash` in front; remembered rows are taken where they hold."""
    try:
        there = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    except OSError:
        there = set()
    known = cache.read(root, None if with_config or remember else [n for n in COLUMNS if n not in _OF_ENTRIES])
    # taken before the files are read: what changes meanwhile is read again next time
    stamps = {k: cache.stamp(os.path.join(root, k)) for k in keys if k in there} if remember or len(known) else {}
    marks = zip(known["hash"], known["stamp"], strict=True) if len(known) else ()
    held = {key: (mark, place) for place, (key, mark) in enumerate(marks)}
    kept = {key: held[key][1] for key in keys if key in stamps and key in held and held[key][0] == stamps[key]}
    fresh, now = [], time.time()
    for key in keys:
        if key not in kept:
            in_full = with_config or remember
            found = folders.read_run(os.path.join(root, key), now, in_full, with_network) if key in there else {}
            fresh.append({"hash": key, "state": "new", **found})
    read = _typed(fresh)
    if remember:
        ended = read[read["state"].isin(["done", "failed"])]
        cache.write(root, known, ended, [stamps[key] for key in ended["hash"]])
    if kept:
        old = known.iloc[list(kept.values())].drop(columns="stamp")
        read = pd.concat([old, read], ignore_index=True) if len(read) else old
    return read if with_config else read[[name for name in read.columns if not name.startswith("config.")]]


def with_latency(frame: pd.DataFrame, latencies: pd.DataFrame) -> pd.DataFrame:
    """`frame` with a column of medians, ms for one image, for each way of running that `latencies` has.

    Rows are joined by `network` and `resolution`; a column is named
    `latency_ms[RUNTIME, THREADS OR UNITS, PRECISION, DEVICE]`.
    """
    single = latencies[(latencies["batch"].fillna(1) == 1) & latencies["median_ms"].notna()]
    if not len(single):
        return frame
    names = []
    for row in each(single):
        how = plural(int(row.threads), "thread") if not pd.isna(row.threads) else row.compute_units
        names.append(f"latency_ms[{', '.join(filter(None, (row.runtime, how, row.precision, row.device)))}]")
    wide = single.assign(column=names).pivot_table(
        index=["network", "resolution"], columns="column", values="median_ms", aggfunc="last"
    )
    wide.columns.name = None
    return frame.merge(wide.reset_index().astype({"resolution": "Int64"}), on=["network", "resolution"], how="left")


def plural(number: int, word: str) -> str:
    """A number with its noun: `1 seed`, `3 seeds`."""
    return f"{number} {word}" + ("" if number == 1 else "s")


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
            "pair": folders.number(entry.get("pair", seed)),
            "lr": folders.number(entry.get("lr")),
            "fixed": entry.get("fixed") is not False,
        }


def _typed(rows: list[Json]) -> pd.DataFrame:
    own = {name: kind for name, kind in COLUMNS.items() if name not in _OF_ENTRIES}
    texts = [name for name, kind in own.items() if kind == "str"]
    for row in rows:
        for key in _INTEGERS:
            number = folders.number(row.get(key))
            row[key] = int(number) if math.isfinite(number) else None
        for key in texts:
            row[key] = str(row.get(key) or "")
    extra = list(dict.fromkeys(key for row in rows for key in row if key.startswith("config.")))
    return pd.DataFrame.from_records(rows, columns=[*own, *extra]).astype(own)


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
        question=folders.one_line(head.get("question")),
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
    twice = runs[runs.duplicated(["variant", "seed", "lr"])]
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
    rate = "" if math.isnan(row.lr) else f" at {row.lr:g}"
    return f"{row.variant} seed {row.seed}{rate}" + (f": {why}" if why else "")


def curves(root: str | Path, hashes: Iterable[str]) -> pd.DataFrame:
    """What the runs wrote after each epoch: a row a run and epoch, with `hash` in front.

    Losses are means over the epoch, accuracies in percent, `seconds` those of the epoch. A line that a kill
    tore is left out and counted in `frame.attrs["left_out"]`, as are runs without metrics or of another schema.
    """
    rows: list[Json] = []
    left_out = []
    for key in dict.fromkeys(hashes):
        config, _ = folders.read_json(Path(root) / key / "config.json", only_schema=True)
        if config is not None and (foreign := folders.other_schema(config)):
            left_out.append(f"{key}: config.json {foreign}")
            continue
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
