"""Run folders as pandas frames: one row per run, nothing dropped in silence.

A grid's manifest, `grids/GRID@DATA.json`, lists the runs it declared; each run's folder, named by its hash,
holds what became of it. A run that failed, is still going or can't be read keeps its row, and its `note` says
what was left out. Reading writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metamixer.config import SCHEMA_VERSION
from metamixer.jsonl import read as read_lines
from metamixer.metric import Metric
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import mixed_code

from . import folders
from .folders import VALIDATION
from .latency import load as load_latencies

_NAMES = {"grid": "str", "data": "str", "variant": "str", "seed": "Int64", "hash": "str", "state": "str"}
_REST = {
    "weights": "str", "images": "Int64", "parameters": "Int64", "macs": "Int64",
    "epochs": "Int64", "steps": "Int64", "solved_at": "float64", "seconds": "float64", "threads": "Int64",
    "code": "object", "error": "str", "on": "str", "base": "bool", "pair": "Int64", "lr": "float64", "fixed": "bool",
    "network": "str", "resolution": "Int64", "note": "str", "folder": "str",
}  # fmt: skip
LATENCY = "latency_ms["  # in front of a column of latencies: runtime, threads or units, precision, device
_NOISY = 0.5  # a latency whose sessions' medians lie further apart than this share of it says nothing

Json = dict[str, Any]


def columns(metric: str, others: Iterable[str]) -> dict[str, str]:
    """The columns of a frame of runs and their types, by the names of its metrics."""
    figures = (metric, *others, "loss", f"{metric}_raw", f"{metric}_ema", VALIDATION)
    return {**_NAMES, **dict.fromkeys(figures, "float64"), **_REST}


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a comparison is about: everything that a table or picture says besides the figures.

    Attributes:
        metric: what is compared, as the grid declared it.
        weights: the reported weights, "ema" or "raw", as the recipe declares them before training.
        images: the number of test samples.
        left_out: a line for each thing that is in no mean, and why.
        mixed: a line for each thing that the runs' numbers depend on and in which they differ.
    """

    grid: str
    data: str
    question: str
    base: str
    metric: Metric
    seeds: tuple[int, ...]
    weights: str
    images: int | None
    left_out: tuple[str, ...]
    mixed: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.grid} on {self.data}"


def load(
    root: str | Path, grid: str, data: str | None = None, *, with_config: bool = False
) -> tuple[pd.DataFrame, Meta]:
    """The runs that a grid declares on one data set, one row per run in declared order, and what they are about.

    The figures are those of the reported `weights`: `top1` (or what else the task measures), `loss`; `…_raw` and
    `…_ema` give both, `validation` is the score of the last epoch on the validation split. Accuracies are in percent,
    `macs` are multiply-adds of the folded network for one sample, `seconds` is the training time. `state` is done,
    failed, running, interrupted or new (not begun). `epochs` counts the epochs that a run began or finished. For tasks
    that can be solved, `solved_at` is the step of the first validation score that solves it, NaN if none of the `steps`
    did. `pair` is what runs are paired by: the seed, unless the manifest says otherwise (A/A). Where a grid has a set
    of learning rates, `lr` is the run's, and the recipe's own is `fixed`. Where latencies lie beside the runs, there
    are columns `latency_ms[RUNTIME, THREADS OR UNITS, PRECISION, DEVICE]` with medians for one image.

    Args:
        root: the folder of the runs, with `grids/` in it.
        data: the data set's name; not needed where the grid ran on one only.
        with_config: also each run's configuration, as columns `config.model.…`, its `network` and `resolution`.

    Raises ValueError: there is no such grid (the line lists those that there are), it ran on several data sets and none
    is named, its manifest can't be read, or it declares no runs.
    """
    root = Path(root)
    manifest = _manifest(root, grid, data)
    metric = Metric(**manifest["metric"])
    problems: list[str] = []
    latencies = load_latencies(root, report=problems.append)
    rows = [
        entry | folders.read_run(entry["folder"], metric, with_config or len(latencies) > 0)
        for entry in _entries(manifest, root)
    ]
    runs, noisy = with_latency(_table(rows, metric.name, with_config), latencies)
    done = runs[runs["state"] == "done"]
    images = done["images"].dropna().unique()
    meta = Meta(
        grid=grid,
        data=manifest["data"],
        question=folders.one_line(manifest.get("question")),
        base=manifest["base"],
        metric=metric,
        seeds=tuple(int(seed) for seed in sorted(runs["seed"].unique())),
        weights=" and ".join(sorted(set(done["weights"]) - {""})),
        images=int(images[0]) if len(images) == 1 else None,
        left_out=(*problems, *noisy, *_left_out(runs)),
        mixed=(*_mixed(done), *_more_than_named(manifest)),
    )
    return runs, meta


def grids(root: str | Path, grid: str | None = None) -> list[tuple[str, str]]:
    """The grids that were launched in `root`, each with the data set that it ran on; all, or those of one name."""
    found = [tuple(path.stem.split("@", 1)) for path in sorted((Path(root) / "grids").glob("*@*.json"))]
    return [(name, data) for name, data in found if grid in (None, name)]


def _manifest(root: Path, grid: str, data: str | None) -> Json:
    there = grids(root)
    found = [on for name, on in there if name == grid and data in (None, on)]
    if len(found) > 1:
        raise ValueError(f"grid {grid} ran on {', '.join(found)}: name one of them (--data)")
    if not found:
        known = "there are " + ", ".join(map("@".join, there)) if there else "no grid was launched there yet"
        raise ValueError(f"no grid {grid}{f' on {data}' if data else ''} in {root}: {known}")
    name = f"{grid}@{found[0]}.json"
    manifest = RunFolder(root / "grids").read(name) or {}
    if manifest.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"{root}/grids/{name} is half-written, or not of schema {SCHEMA_VERSION}: launch it again")
    if not manifest["runs"]:
        raise ValueError(f"grid {grid} on {found[0]} in {root} declares no runs")
    return manifest


def _more_than_named(manifest: Json) -> list[str]:
    """A line for each variant that changes more than its grid names, with the grid's reason."""
    reasons = {entry["variant"]: entry["also"] for entry in manifest["runs"] if entry.get("also")}
    return [f"{variant} changes more than it names: {folders.one_line(why)}" for variant, why in reasons.items()]


def _entries(manifest: Json, root: Path) -> Iterator[Json]:
    for entry in manifest["runs"]:
        yield {
            "grid": manifest["grid"],
            "data": manifest["data"],
            "variant": entry["variant"],
            "seed": entry["seed"],
            "hash": entry["hash"],
            "on": entry.get("on"),
            "base": entry["variant"] == manifest["base"],
            "pair": entry.get("pair", entry["seed"]),
            "lr": entry.get("lr"),
            "fixed": entry.get("fixed") is not False,
            "folder": str(root / entry["hash"]),
        }


def _table(rows: list[Json], metric: str, with_config: bool) -> pd.DataFrame:
    """The rows with the types of `columns`; what is no number where one belongs counts as missing."""
    known = columns(metric, ())
    found = dict.fromkeys(key for row in rows for key in row if key not in known)
    config = [key for key in found if key.startswith("config.")]
    kinds = columns(metric, [key for key in found if not key.startswith("config.")])
    table = pd.DataFrame.from_records(rows, columns=[*kinds, *(config if with_config else ())])
    for name, kind in kinds.items():
        if kind == "str":
            table[name] = [str(value or "") for value in table[name].where(table[name].notna(), "")]
        elif kind in ("Int64", "float64"):
            table[name] = pd.to_numeric(table[name], errors="coerce").replace(math.inf, math.nan)
    return table.astype(kinds)


def with_latency(runs: pd.DataFrame, latencies: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`runs` with a column of medians, ms for one image, for each way of running that `latencies` has.

    Rows are joined by `network` and `resolution`. A task's run has no resolution before; its network's key tells its
    size. Latencies that are too noisy to mean anything are left out, with a line for each.
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
        names.append(f"{LATENCY}{', '.join(filter(None, (row.runtime, how, row.precision, row.device)))}]")
    index = ["network", "resolution"]
    sizes = single.drop_duplicates("network").set_index("network")["resolution"]
    runs = runs.assign(resolution=runs["resolution"].fillna(runs["network"].map(sizes).astype("Int64")))
    wide = single.assign(column=names).pivot_table("median_ms", index, "column", aggfunc="last").reset_index()
    return runs.merge(wide.astype({"resolution": "Int64"}), on=index, how="left"), left_out


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
            named = [_name(row) for row in each(chosen) if state in ("failed", "interrupted") or row.note]
            more = [f"{len(named) - shown} more"] if len(named) > shown else []
            word = {"new": "not started", "running": "still running"}.get(state, state)
            which = f" ({', '.join(named[:shown] + more)})" if named else ""
            yield f"{word}: {len(chosen)} of {len(runs)} runs{which}"
    for row in each(runs[(runs["state"] == "done") & (runs["note"] != "")]):
        yield f"of a finished run: {_name(row)}"


def _name(row: Any) -> str:
    why = "; ".join(filter(None, (row.error, row.note)))
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


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """What runs wrote after each epoch: one row per run and epoch, with `hash` in front.

    Losses are means over the epoch, accuracies in percent, `seconds` those of the epoch. Rows that a kill tore are left
    out.
    """
    rows: list[Json] = []
    for key, folder in dict(zip(runs["hash"], runs["folder"], strict=True)).items():
        found = read_lines(Path(folder) / "metrics.jsonl", report=lambda line: None)
        # an epoch written twice counts once, the later
        rows += {row["epoch"]: {"hash": key, **row} for row in found}.values()
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["hash", "epoch"])
