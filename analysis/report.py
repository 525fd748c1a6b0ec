"""A grid on one page of HTML: its tables, pictures, configurations, environment and the runs behind them.

The page needs no network and no other file: pictures, style and the lines that sort its tables lie in it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from . import ladder, plots, tables
from .frame import Meta, curves, describe, each, load, plural
from .fronts import backends
from .statistics import declared, explore
from .tables import interval, signed

_TEMPLATE = Path(__file__).parent / "report.html"
_MOST_PAIRS = 300  # of variants that nobody declared, before a page gets unreadable


class Cell(NamedTuple):
    """What a table shows, and what it sorts by."""

    text: str
    key: Any = None
    link: str = ""


class Table(NamedTuple):
    """A sortable table; `kinds` names each row's look."""

    headers: list[str]
    rows: list[list[Cell]]
    kinds: list[str]
    notes: list[str]


def report(root: str | Path, grid: str, data: str | None = None, folder: str | Path | None = None) -> tuple[str, Meta]:
    """The page of a grid on one data set, and what it is about.

    Args:
        root: the folder of the runs.
        folder: where the page will lie, for its links to the runs; beside the grid's other files if None.

    Raises:
        ValueError: no such grid, or it ran on several data sets and `data` names none.
    """
    runs = load(root, grid, data, remember=True)
    meta = describe(runs)
    comparisons = declared(runs)
    main = comparisons[0]
    manifest = _read(Path(root) / "grids" / f"{meta.grid}@{meta.data}.json")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        meta=meta,
        summary=tables.summary(meta).splitlines(),
        sections=[
            (
                tables.title(comparison, meta),
                tables.conclusion(comparison, meta).splitlines(),
                _compared(comparison, meta),
            )
            for comparison in comparisons
        ],
        pictures=[_inline(picture) for picture in _pictures(root, runs, main, meta)],
        rates=_rates(runs),
        exploratory=[*_other_metrics(runs, main, meta), *_other_pairs(runs, meta)],
        changes=_changes(manifest, meta),
        config=_config(root, runs),
        environment=_environment(root, runs),
        runs=_runs(runs, quote(os.path.relpath(root, folder or Path(root) / "grids"))),
    )
    return page, meta


def _compared(comparison: pd.DataFrame, meta: Meta) -> Table:
    meta = tables.about(comparison, meta)
    names, rows = tables.headers(comparison, meta), []
    for texts, row in zip(tables.cells(comparison, meta), each(comparison), strict=True):
        keys = [row.variant, row.parameters, row.macs, row.mean, row.difference, row.verdict, row.n]
        if "lr" in names:
            keys.insert(3, row.lr)
        rows.append([Cell(text, _key(key)) for text, key in zip(texts, keys, strict=True)])
    kinds = [str(verdict) for verdict in comparison["verdict"]]
    return Table(names, rows, kinds, tables.footnotes(comparison, meta))


def _key(value: Any) -> Any:
    """What a cell sorts by; None, which comes last, where nothing is known."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def _pictures(root: str | Path, runs: pd.DataFrame, comparison: pd.DataFrame, meta: Meta) -> list[Axes]:
    """What was reached, against each cost that tells variants apart; the ladder where there is one; the training."""
    found = [plots.picture(comparison, meta)]
    if comparison["parameters"].nunique() > 1 and not plots.same_cost(comparison):
        found.append(plots.accuracy_vs_parameters(comparison, meta))
    if backends(runs):
        found.append(plots.accuracy_vs_latency(comparison, meta, runs)[0])  # of one figure
    if runs["on"].notna().any():
        found.append(plots.waterfall(ladder.steps(runs, meta.metric), meta))
    found.append(plots.learning_curves(runs, curves(root, runs["hash"]), meta))
    return found


def _inline(picture: Axes) -> tuple[str, str]:
    """A picture as data for an image, and its title for who can't see it."""
    figure = picture.get_figure(root=True)
    assert figure is not None
    words = " ".join(axes.get_title(loc="left") or axes.get_title() for axes in figure.axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png", facecolor="white")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode(), " ".join(words.split())


def _rates(runs: pd.DataFrame) -> Table | None:
    """Validation accuracy of each variant at each learning rate that was tried."""
    if bool(runs["fixed"].all()):
        return None
    rates = sorted(runs["lr"].dropna().unique())
    own = runs[runs["fixed"]].groupby("variant")["lr"].first()
    means = runs.groupby(["variant", "lr"])["val_top1"].agg(["mean", "count"])
    rows = []
    for variant in dict.fromkeys(runs["variant"]):
        found = [means.loc[(variant, rate)] if (variant, rate) in means.index else None for rate in rates]
        texts = [
            Cell("–")
            if at is None or not at["count"]
            else Cell(f"{at['mean']:.2f} ({int(at['count'])})", _key(at["mean"]))
            for at in found
        ]
        rows.append([Cell(variant, variant), Cell(f"{own[variant]:g}", float(own[variant])), *texts])
    notes = ["Top-1 % on the validation split after the last epoch, mean over seeds (how many)."]
    return Table(["variant", "recipe's", *(f"lr {rate:g}" for rate in rates)], rows, ["" for _ in rows], notes)


def _other_metrics(runs: pd.DataFrame, main: pd.DataFrame, meta: Meta) -> list[tuple[str, Table]]:
    from .statistics import compare

    found = []
    for metric in ("top1", "top5", "loss", "top1_raw"):
        same = metric == meta.metric or (metric == "top1_raw" and meta.weights == "raw")
        if not same and runs[metric].notna().any():
            comparison = compare(runs, metric)
            about = replace(tables.about(comparison, meta), left_out=())
            found.append((f"The same variants by {tables.metric_name(about)}", _compared(comparison, about)))
    return found


def _other_pairs(runs: pd.DataFrame, meta: Meta) -> list[tuple[str, Table]]:
    pairs = explore(runs, meta.metric)
    shown = pairs[pairs["pairs"] > 1]
    notes = ["Not declared and not corrected for their number: of 20 pairs that do not differ one looks as if it did."]
    if len(shown) > _MOST_PAIRS:
        notes.append(f"{_MOST_PAIRS} of {len(shown)} pairs, those with the largest differences.")
        shown = shown.loc[shown["difference"].abs().sort_values(ascending=False).index[:_MOST_PAIRS]]
    rows = [
        [
            Cell(row.variant, row.variant),
            Cell(row.other, row.other),
            Cell(
                signed(row.difference, meta) + ("" if math.isnan(row.low) else f" {interval(row.low, row.high, meta)}"),
                _key(row.difference),
            ),
            Cell(row.verdict, row.verdict),
            Cell(str(row.pairs), row.pairs),
        ]
        for row in each(shown)
    ]
    if not rows:
        return []
    headers = ["variant", "against", "difference [95 %]", "verdict", "pairs"]
    return [("Pairs of variants", Table(headers, rows, list(shown["verdict"]), notes))]


def _changes(manifest: dict[str, Any], meta: Meta) -> list[tuple[str, str]]:
    """What each variant changes, as the manifest declares it."""
    found: dict[str, str] = {}
    for entry in manifest.get("runs", []):
        if isinstance(entry, dict) and isinstance(entry.get("variant"), str):
            on = f"on {entry['on']}: " if entry.get("on") else ""
            lines = [f"{key} = {json.dumps(value)}" for key, value in (entry.get("changes") or {}).items()]
            base = "base" if entry["variant"] == meta.base else "nothing"
            found.setdefault(entry["variant"], on + ("\n".join(lines) or base))
    return list(found.items())


def _config(root: str | Path, runs: pd.DataFrame) -> str:
    """The base's configuration, of its first run that has one."""
    for key in [*runs.loc[runs["base"], "hash"], *runs["hash"]]:
        config = _read(Path(root) / key / "config.json").get("config")
        if config:
            return json.dumps(config, indent=1)
    return ""


def _environment(root: str | Path, runs: pd.DataFrame) -> list[tuple[str, str, bool]]:
    """What the runs were made with: a key, its values with how many runs had each, and whether they differ."""
    found: dict[str, dict[str, int]] = {}
    for key in dict.fromkeys(runs.loc[runs["state"].isin(["done", "failed"]), "hash"]):
        for name, value in _read(Path(root) / key / "environment.json").items():
            if name != "started":
                counts = found.setdefault(name, {})
                counts[str(value)] = counts.get(str(value), 0) + 1
    return [
        (
            name,
            ", ".join(v if len(counts) == 1 else f"{v} ({plural(n, 'run')})" for v, n in counts.items()),
            len(counts) > 1,
        )
        for name, counts in found.items()
    ]


def _runs(runs: pd.DataFrame, root: str) -> Table:
    """Every run, with a link to its folder; `root` is the way to that of the runs from the page's."""
    rates = not bool(runs["fixed"].all())
    headers = ["variant", "seed", *(["lr"] if rates else []), "state", "top-1 %", "epochs", "seconds", "folder", "note"]
    rows = []
    for row in each(runs):
        note = "; ".join(filter(None, (row.error, row.note)))
        cells = [Cell(row.variant, row.variant), Cell(str(row.seed), _key(row.seed))]
        cells += [Cell(f"{row.lr:g}", _key(row.lr))] if rates else []
        cells += [
            Cell(row.state, row.state),
            Cell("–" if math.isnan(row.top1) else f"{row.top1:.2f}", _key(row.top1)),
            Cell("–" if pd.isna(row.epochs) else str(row.epochs), _key(row.epochs)),
            Cell("–" if math.isnan(row.seconds) else f"{row.seconds:.0f}", _key(row.seconds)),
            Cell(row.hash, row.hash, f"{root}/{row.hash}/"),
            Cell(note, note),
        ]
        rows.append(cells)
    return Table(headers, rows, [str(state) for state in runs["state"]], [])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
