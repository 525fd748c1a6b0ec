"""Run folders as tidy pandas frames: one row per run, nothing dropped in silence.

A grid's manifest, `grids/GRID@DATA.json`, lists the runs it declared; each run's folder, named by its hash,
holds what became of it. A run that failed, is still going or can't be read keeps its row, and its `note` says
what was left out. Reading writes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from metamixer.jsonl import read as read_lines
from metamixer.training.provenance import mixed_code

from . import folders
from .latency import load as load_latencies
from .metrics import Metric, metric

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
    "state_size": "Int64",
    "epochs": "Int64",
    "seconds": "float64",
    "threads": "Int64",
    "code": "object",
    "error": "str",
    "on": "str",
    "base": "bool",
    "pair": "Int64",
    "lr": "float64",
    "fixed": "bool",
    "network": "str",
    "resolution": "Int64",
    "note": "str",
    "folder": "str",
}
_NOISY = 0.5  # a latency whose sessions' medians lie further apart than this share of it says nothing

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a comparison is about: everything that a table or picture says besides the figures.

    Attributes:
        metric: what is compared, `declared` the column that the grid declared.
        aa: whether the grid compares its base with itself.
        weights: the reported weights, "ema" or "raw", as the recipe declares them before training.
        images: the number of test images.
        levels: `chance` and `solved` of a task's metric; empty for data sets.
        left_out: a line for each thing that is in no mean, and why.
        mixed: a line for each thing that the runs' numbers depend on and in which they differ.
    """

    grid: str
    data: str
    question: str
    base: str
    metric: Metric
    declared: str
    aa: bool
    seeds: tuple[int, ...]
    weights: str
    images: int | None
    levels: dict[str, float]
    left_out: tuple[str, ...]
    mixed: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.grid} on {self.data}"

    def by(self, column: str) -> Meta:
        """The same, compared by another metric."""
        return replace(self, metric=metric(column))


def load(
    root: str | Path,
    grid: str,
    data: str | None = None,
    *,
    with_config: bool = False,
    missing: Literal["raise", "empty"] = "raise",
) -> tuple[pd.DataFrame, Meta]:
    """The runs that a grid declares on one data set, one row per run in declared order, and what they are about.

    Accuracies are in percent (0-100), `macs` in multiply-adds of the folded network for one image,
    `state_size` in numbers (`metamixer.cost`), `seconds` is the training time.
    `state` is done, failed, running, interrupted or new (not begun). `top1`, `top5`
    and `loss` are those of the declared `weights`; `top1_raw` and `top1_ema` give both, `val_top1` is that of the
    declared weights after the last epoch on the validation split. `epochs` counts the epochs that a run began or
    finished. `pair` is what runs are paired by: the seed, unless the manifest says otherwise (A/A). Where a grid has
    a set of learning rates, `lr` is the run's, and the recipe's own is `fixed`. `network` (`latency.network_key`) and
    `resolution` are known where configurations are read. Where latencies lie beside the runs, medians for one image
    are in columns `latency_ms[RUNTIME, THREADS OR UNITS, PRECISION, DEVICE]`.

    Args:
        root: the folder of the runs, with `grids/` in it.
        data: the data set's name; not needed where the grid ran on one only.
        with_config: also each run's configuration, as columns `config.model.…`.
        missing: where there is no such grid, or nothing of it can be read, raise or give an empty frame and a `Meta`
            that says so (for notebooks).

    Raises:
        ValueError: there is no such grid (the line lists those that there are), it ran on several data sets and none
            is named, its manifest can't be read, or it declares no runs.
    """
    manifest, problems = _manifest(Path(root), grid, data)
    entries = list(_entries(manifest, Path(root), problems))
    if missing == "raise" and not entries:
        raise ValueError("; ".join(problems) or f"grid {grid} in {root} declares no runs")
    latencies = load_latencies(root, with_published=False, report=problems.append)
    runs = _runs(entries, with_config, len(latencies) > 0)
    runs, noisy = with_latency(runs, latencies)
    done = runs[runs["state"] == "done"]
    images = done["images"].dropna().unique()
    described = manifest.get("metric")
    declared = "top1" if isinstance(described, dict) else str(described or "top1")
    levels = described if isinstance(described, dict) else manifest.get("levels") or {}
    chance_and_solved = {key: levels.get(key) for key in ("chance", "solved")}
    meta = Meta(
        grid=grid,
        data=str(manifest.get("data") or data or "unknown"),
        question=folders.one_line(manifest.get("question")),
        base=str(manifest.get("base") or "unknown"),
        metric=metric(declared),
        declared=declared,
        aa=bool(manifest.get("aa")),
        seeds=tuple(int(seed) for seed in sorted(runs["seed"].unique())),
        weights=" and ".join(sorted(set(done["weights"]) - {""})),
        images=int(images[0]) if len(images) == 1 else None,
        levels={} if None in chance_and_solved.values() else chance_and_solved,
        left_out=(*problems, *noisy, *_left_out(runs)),
        mixed=tuple(_mixed(done)),
    )
    return runs, meta


def settings(root: str | Path, grid: str | None = None) -> list[tuple[str, str]]:
    """The grids that were launched in `root`, each with the data set that it ran on; all, or those of one name."""
    found = [tuple(path.stem.split("@", 1)) for path in sorted((Path(root) / "grids").glob("*@*.json"))]
    return [(name, data) for name, data in found if grid in (None, name)]


def _manifest(root: Path, grid: str, data: str | None) -> tuple[Json, list[str]]:
    there = settings(root)
    found = [on for name, on in there if name == grid and data in (None, on)]
    if len(found) > 1:
        raise ValueError(f"grid {grid} ran on {', '.join(found)}: name one of them (--data)")
    if not found:
        known = "there are " + ", ".join(map("@".join, there)) if there else "no grid was launched there yet"
        return {}, [f"no grid {grid}{f' on {data}' if data else ''} in {root}: {known}"]
    path = root / "grids" / f"{grid}@{found[0]}.json"
    content, problem = folders.read_json(path)
    problem = problem or folders.other_schema(content or {})
    content = {} if problem or content is None else content
    return {**content, "data": found[0]}, [f"grids/{path.name} {problem}"] if problem else []


def _entries(manifest: Json, root: Path, problems: list[str]) -> Iterator[Json]:
    for index, entry in enumerate(manifest.get("runs", [])):
        try:
            key, variant, seed = str(entry["hash"]), str(entry["variant"]), int(entry["seed"])
        except (KeyError, TypeError, ValueError):
            problems.append(f"entry {index} of the manifest's runs lacks a hash, a variant or a seed")
            continue
        yield {
            "grid": manifest["grid"],
            "data": manifest["data"],
            "variant": variant,
            "seed": seed,
            "hash": key,
            "on": entry.get("on"),
            "base": variant == manifest.get("base"),
            "pair": entry.get("pair", seed),
            "lr": folders.number(entry.get("lr")),
            "fixed": entry.get("fixed") is not False,
            "folder": str(root / key),
        }


def _runs(entries: list[Json], with_config: bool, with_network: bool) -> pd.DataFrame:
    """The entries with what became of each run."""
    rows = []
    texts = [name for name, kind in COLUMNS.items() if kind == "str"]
    integers = [name for name, kind in COLUMNS.items() if kind == "Int64"]
    for entry in entries:
        there = os.path.isdir(entry["folder"])
        found = folders.read_run(entry["folder"], with_config, with_network) if there else {"state": "new"}
        row = {**entry, **found}
        for name in integers:
            number = folders.number(row.get(name))
            row[name] = int(number) if math.isfinite(number) else None
        rows.append(row | {name: str(row.get(name) or "") for name in texts})
    extra = list(dict.fromkeys(key for row in rows for key in row if key.startswith("config.")))
    return pd.DataFrame.from_records(rows, columns=[*COLUMNS, *extra]).astype(COLUMNS)


def with_latency(runs: pd.DataFrame, latencies: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`runs` with a column of medians, ms for one image, for each way of running that `latencies` has.

    Rows are joined by `network` and `resolution`; a column is named
    `latency_ms[RUNTIME, THREADS OR UNITS, PRECISION, DEVICE]`. Latencies that are too noisy to mean anything are left
    out, with a line for each.
    """
    single = latencies[(latencies["batch"].fillna(1) == 1) & latencies["median_ms"].notna()]
    single = single[single["network"].isin(runs["network"])]
    noise = single["spread_ms"] / single["median_ms"]
    left_out = [
        f"latency of {row.name} on {row.runtime}: its sessions differ by {100 * row.spread_ms / row.median_ms:.0f} %"
        for row in each(single[noise > _NOISY])
    ]
    single = single[~(noise > _NOISY)]
    if not len(single):
        return runs, left_out
    names = []
    for row in each(single):
        how = plural(int(row.threads), "thread") if not pd.isna(row.threads) else row.compute_units
        names.append(f"latency_ms[{', '.join(filter(None, (row.runtime, how, row.precision, row.device)))}]")
    wide = single.assign(column=names).pivot_table(
        index=["network", "resolution"], columns="column", values="median_ms", aggfunc="last"
    )
    wide.columns.name = None
    wide = wide.reset_index().astype({"resolution": "Int64"})
    return runs.merge(wide, on=["network", "resolution"], how="left"), left_out


def plural(number: int, word: str) -> str:
    """A number with its noun: `1 seed`, `3 seeds`."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, untyped: what a column holds is known at run time only."""
    return iter(table.itertuples())


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


def _mixed(done: pd.DataFrame) -> Iterator[str]:
    """In what the finished runs differ besides their configurations, where that is known."""
    equal = "so equal runs need not give equal numbers"
    counts = done["threads"].dropna().value_counts()
    if len(counts) > 1:
        of_each = ", ".join(f"{value} ({plural(number, 'run')})" for value, number in counts.items())
        yield f"its runs were made with different numbers of threads, {equal}: {of_each}"
    if files := mixed_code(record for record in done["code"] if isinstance(record, dict)):
        yield f"its runs were made with different versions of {', '.join(files)}, {equal}"


def curves(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """What runs wrote after each epoch: one row per run and epoch, with `hash` in front; and what could not be read.

    Losses are means over the epoch, accuracies in percent, `seconds` those of the epoch. Left out, with a line each,
    are rows that a kill tore, and runs without metrics or of another schema.
    """
    rows: list[Json] = []
    left_out: list[str] = []
    for key, folder in dict(zip(runs["hash"], runs["folder"], strict=True)).items():
        config, _ = folders.read_json(Path(folder) / "config.json", only_schema=True)
        if config is not None and (foreign := folders.other_schema(config)):
            left_out.append(f"{key}: config.json {foreign}")
            continue
        path = Path(folder) / "metrics.jsonl"
        if not path.is_file():
            left_out.append(f"{key}: no metrics.jsonl")
            continue
        found = read_lines(path, lambda row: (row["epoch"], {"hash": key, **row}), left_out.append)  # noqa: B023
        rows += dict(found).values()  # an epoch written twice counts once, the later
    return (pd.DataFrame(rows) if rows else pd.DataFrame(columns=["hash", "epoch"])), left_out
