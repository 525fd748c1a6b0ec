"""A comparison as a table: for the terminal, for documents, for other programs; and what it says, in words.

Every form carries the same: what the base, the data, the seeds and the weights are, which runs are in no
mean, and that a variant inside the noise names no winner.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from .frame import Meta, each, plural
from .statistics import pooled_sd, smallest_visible_effect

ROWS = 60  # of a table or picture: more variants than that nobody reads, and names would lie on names


class _Metric(NamedTuple):
    name: str
    unit: str = ""
    points: str = ""  # unit of a difference
    digits: int = 3


_METRICS = {
    "top1": _Metric("top-1", " %", " points", 2),
    "top5": _Metric("top-5", " %", " points", 2),
    "top1_raw": _Metric("top-1 (raw weights)", " %", " points", 2),
    "top1_ema": _Metric("top-1 (EMA weights)", " %", " points", 2),
    "loss": _Metric("test loss", digits=4),
}
SAME_COST = 0.05  # costs that differ by no more than this count as equal
_STYLES = {"base": "bold", "above": "cyan", "below": "cyan", "inside noise": "dim", "no spread": "dim"}


def about(comparison: pd.DataFrame, meta: Meta) -> Meta:
    """`meta` with the metric that was compared, where that isn't the grid's own."""
    return replace(meta, metric=comparison["metric"].iloc[0]) if len(comparison) else meta


def _metric(meta: Meta) -> _Metric:
    return _METRICS.get(meta.metric, _Metric(meta.metric))


def metric_name(meta: Meta) -> str:
    """The metric in words, without its unit."""
    return _metric(meta).name


def value(number: float, meta: Meta, unit: bool = True) -> str:
    """A value of the metric: `97.12 %`."""
    metric = _metric(meta)
    return f"{number:.{metric.digits}f}" + (metric.unit if unit else "")


def signed(number: float, meta: Meta, unit: bool = False) -> str:
    """A difference in the metric, with its sign: `+0.31 points`."""
    metric = _metric(meta)
    return f"{number:+.{metric.digits}f}".replace("-", "−") + (metric.points if unit else "")


def interval(low: float, high: float, meta: Meta) -> str:
    """An interval of differences: `[−0.10, +0.72]`."""
    return f"[{signed(low, meta)}, {signed(high, meta)}]"


def count(number: float | None) -> str:
    """Parameters or multiply-adds, to three figures: `1.06 M`; `–` where unknown."""
    if number is None or pd.isna(number):
        return "–"
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * scale:
            figure = number / scale
            return f"{figure:.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f} {letter}"
    return f"{number:.0f}"


def extremes(comparison: pd.DataFrame) -> pd.DataFrame:
    """The comparison itself; of more than `ROWS` variants the base, the best and the worst, best first."""
    if len(comparison) <= ROWS:
        return comparison
    ranked = comparison.dropna(subset=["mean"]).sort_values("mean", ascending=False, kind="stable")
    ends = ranked if len(ranked) <= ROWS else pd.concat([ranked.head(ROWS // 2), ranked.tail(ROWS // 2)])
    return ranked[ranked["base"] | ranked.index.isin(ends.index)]


def left_between(comparison: pd.DataFrame) -> str:
    """How many variants `extremes` leaves out, in words; nothing where it leaves out none."""
    left = len(comparison) - len(extremes(comparison))
    return f"{left} of {len(comparison)} variants, neither the best nor the worst, are not shown" if left else ""


def cells(comparison: pd.DataFrame, meta: Meta) -> list[list[str]]:
    """The table's rows, as texts under `headers`."""
    rows, with_rate = [], (comparison["rate"] != "").any()
    for row in each(comparison):
        mean = "–" if math.isnan(row.mean) else value(row.mean, meta, unit=False)
        spread = "" if math.isnan(row.sd) else f" ± {value(row.sd, meta, unit=False)}"
        difference = "–" if math.isnan(row.difference) else signed(row.difference, meta)
        around = " n/a" if math.isnan(row.low) else " " + interval(row.low, row.high, meta)
        runs = [f"{row.n}/{row.n + row.failed + row.missing}"]
        runs += [f"{number} {word}" for number, word in ((row.failed, "failed"), (row.missing, "missing")) if number]
        verdict = row.verdict if row.n else "no result"
        rows.append(
            [
                row.variant,
                count(row.parameters),
                count(row.macs),
                *([f"{row.lr:g}"] if with_rate else []),
                mean + spread,
                "" if row.base else difference + (around if difference != "–" else ""),
                verdict,
                ", ".join(runs),
            ]
        )
    return rows


def headers(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """The table's columns; `lr` only where learning rates were tried."""
    unit = _metric(meta).unit
    what = metric_name(meta) + (f",{unit}" if unit else "")
    rate = ["lr"] if (comparison["rate"] != "").any() else []
    return ["variant", "params", "MACs", *rate, f"{what} ± sd", "difference [95 %]", "verdict", "runs"]


def title(comparison: pd.DataFrame, meta: Meta) -> str:
    """Grid, data and question in a line."""
    best = ", each variant at its best learning rate on validation data" if (comparison["rate"] == "best").any() else ""
    return f"{meta.grid} on {meta.data}{best}: " + (meta.question or f"{metric_name(meta)} of its variants")


def footnotes(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """What a reader must know to read the table, a line each."""
    points = _metric(meta).points
    seeds = ", ".join(map(str, meta.seeds))
    parts = [f"Base {meta.base}", f"data {meta.data}"]
    if meta.images and points:
        parts[1] += f" ({meta.images} test images, one is {100 / meta.images:.2g}{points})"
    parts += [f"{plural(len(meta.seeds), 'seed')} ({seeds})" if meta.seeds else "no seeds"]
    parts += [f"{meta.weights or 'unknown'} weights"]
    lines = [", ".join(parts) + "."]
    if left := left_between(comparison):
        lines += [f"{left}; the CSV has all."]
    verdicts = set(comparison["verdict"])
    if not verdicts - {"base"}:
        return [*lines, *_left_out(meta)]
    both = comparison["low_both"].notna()
    others = int((~comparison["base"]).sum())
    reach = (
        "spanning the t interval over seeds and the one over seeds and test images together"
        if both.any()
        else "over seeds (t): it does not speak about other test images"
    )
    lines += [f"Difference: mean over seeds of (variant − base at the same seed) with its 95 % interval, {reach}."]
    if both.any() and (comparison.loc[~comparison["base"] & (comparison["pairs"] > 1), "low_both"].isna()).any():
        lines += ["Not every variant kept its predictions: where none are kept, the interval is over seeds alone."]
    if comparison["exploratory"].any():
        what = f"the grid declared another metric than {metric_name(meta)}"
        lines += [f"Exploratory: {what}; nothing here is more than a hint."]
    if comparison["inside_noise"].any():
        lines += ["Inside the noise (the interval contains 0, or there is none): no winner is named there."]
    if "hint" in verdicts and not comparison["exploratory"].any():
        lines += [f"Hint: outside its own interval, but not after Holm's correction for {others} comparisons."]
    lines += [*_visible(comparison, meta), *unequal(comparison)]
    lines += [f"{row.variant}: {row.note}." for row in each(extremes(comparison)) if row.note]
    return lines + _left_out(meta)


def _visible(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """How small a difference the seeds find, in a line; none where their spread isn't known."""
    spread, pairs = pooled_sd(comparison), int(comparison["pairs"].max())
    if not (spread > 0 and pairs > 1):
        return []
    effect = signed(smallest_visible_effect(spread, pairs), meta, unit=True)[1:]
    images = "; verdicts allow for that of the test images too" if comparison["low_both"].notna().any() else ""
    return [
        f"By the noise over seeds alone, a single comparison over {plural(pairs, 'seed')} finds a true difference of"
        f" {effect} in 8 cases of 10 (paired spread {value(spread, meta, unit=False)}){images}."
    ]


def unequal(comparison: pd.DataFrame) -> list[str]:
    """Lines that say where variants had more or less than the base: cost, epochs, tried learning rates."""
    base = comparison[comparison["base"]]
    if not len(base):
        return []
    lines, spans = [], []
    for name, words in (("macs", "multiply-adds"), ("parameters", "parameters")):
        ratios = (comparison[name] / base[name].iloc[0]).dropna().astype(float)
        low, high = (ratios.min(), ratios.max()) if len(ratios) else (1.0, 1.0)
        if low < 1 - SAME_COST or high > 1 + SAME_COST:
            spans.append(f"{words} {low:.2f} to {high:.2f} times the base's")
    if spans:
        lines.append(f"Unequal cost: {', '.join(spans)}; a difference may be bought by it.")
    for name, words in (("epochs", "epochs"), ("rates", "learning rates tried")):
        own = base[name].iloc[0]
        odd = comparison[comparison[name].notna() & (comparison[name] != own)] if not pd.isna(own) else base[:0]
        if len(odd):
            named = ", ".join(f"{row.variant} {getattr(row, name)}" for row in each(odd))
            lines.append(f"Unequal effort, {words}: the base {own}, {named}.")
    return lines


def _left_out(meta: Meta) -> list[str]:
    return [f"Left out, {line}." for line in meta.left_out]


def summary(meta: Meta) -> str:
    """What was asked, what was run, and what is in no mean: a few lines to open a notebook with."""
    question = [meta.question] if meta.question else []
    head = f"Grid {meta.grid} on {meta.data}, base {meta.base}, {plural(len(meta.seeds), 'seed')}."
    return "\n".join([*question, head, *(_left_out(meta) or ["Nothing is left out."])])


def render(comparison: pd.DataFrame, meta: Meta) -> Table:
    """The comparison for a terminal of 100 columns."""
    meta = about(comparison, meta)
    table = Table(
        title=Text(title(comparison, meta), style="bold"),
        caption=Text("\n".join(footnotes(comparison, meta)), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    names = headers(comparison, meta)
    for index, header in enumerate(names):
        side: Literal["left", "right"] = "right" if 0 < index < len(names) - 2 else "left"
        table.add_column(header, justify=side, no_wrap=0 < index < len(names) - 1, overflow="fold")
    table.columns[-1].max_width = 9  # with the names the only column that may break
    shown = extremes(comparison)
    for texts, verdict in zip(cells(shown, meta), shown["verdict"], strict=True):
        table.add_row(*map(Text, texts), style=_STYLES.get(verdict, ""))
    return table


def to_markdown(comparison: pd.DataFrame, meta: Meta) -> str:
    """The same for documents: a heading line, the table, the footnotes."""
    meta = about(comparison, meta)
    names = headers(comparison, meta)
    rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(extremes(comparison), meta)]
    lines = [
        f"**{title(comparison, meta)}**",
        "",
        _pipes(names),
        _pipes(["---", *["---:"] * (len(names) - 3), "---", "---"]),
        *map(_pipes, rows),
    ]
    return "\n".join([*lines, "", *(f"{line}  " for line in footnotes(comparison, meta))]).rstrip() + "\n"


def _pipes(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def to_csv(comparison: pd.DataFrame, meta: Meta, path: str | Path | None = None) -> str:
    """The comparison in full precision, grid, data and weights in front; also to `path` if given."""
    heads = {"grid": meta.grid, "data": meta.data, "weights": meta.weights}
    full = comparison.copy()
    for index, (name, content) in enumerate(heads.items()):
        full.insert(index, name, content)
    text = full.to_csv(index=False, lineterminator="\n")
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def conclusion(comparison: pd.DataFrame, meta: Meta) -> str:
    """What the comparison says, computed from it: a few sentences, one a line.

    A direction is given only to differences that stand after Holm's correction; the order of those among
    themselves was not tested, and the text says so.
    """
    meta, lines = about(comparison, meta), absent(comparison)
    base = comparison[comparison["base"] & (comparison["n"] > 0)]
    if not len(base):
        why = "no run of its base has finished" if len(comparison) else "there are no runs"
        return "\n".join([f"No conclusion for {meta.grid} on {meta.data}: {why}.", *lines])
    (head,) = each(base)
    others = comparison[~comparison["base"]]
    said = [
        f"On {meta.data}, {meta.base} (the base) reaches {value(head.mean, meta)} {metric_name(meta)} at"
        f" {count(head.macs)} multiply-adds (MACs), mean of {plural(head.n, 'seed')}."
    ]
    if (comparison["rate"] == "best").any():
        said.append("Each variant is at its best learning rate, chosen on validation data.")
    clear = others[others["verdict"].isin(["above", "below"])]
    for verdict in ("above", "below"):
        chosen = clear[clear["verdict"] == verdict]
        if len(chosen):
            said.append(f"{verdict.capitalize()} it beyond the noise: {_listed(chosen, head.macs, meta)}.")
    if not len(clear) and len(others):
        said.append(f"None of {plural(len(others), 'variant')} stands apart from it beyond the noise: no winner.")
    if len(clear) > 1:
        said.append("These were compared with the base, not with one another.")
    exploratory = bool(comparison["exploratory"].any())
    uncorrected = f"Hints, but not after correction for {len(others)} comparisons"
    for verdict, words in (
        ("hint", "Hints only, this metric was not declared" if exploratory else uncorrected),
        ("inside noise", "Inside the noise"),
        ("no spread", "The same difference at every seed, so without an interval"),
        ("too few pairs", "Not to be judged, fewer than two pairs"),
    ):
        chosen = others[others["verdict"] == verdict]
        if len(chosen):
            said.append(f"{words}: {_listed(chosen, head.macs, meta)}.")
    if others["inside_noise"].any():
        said += _visible(comparison, meta)
    return "\n".join([*lines, *said] if comparison["missing"].any() else [*said, *lines])


def absent(comparison: pd.DataFrame) -> list[str]:
    """A line on the runs that are in no mean; none where all are in one."""
    failed, missing = int(comparison["failed"].sum()), int(comparison["missing"].sum())
    total = failed + missing + int(comparison["n"].sum())
    if missing:  # what is read off a grid on its way may turn with the next run
        return [f"Preliminary: of {total} runs, {failed} failed and {missing} have no result."]
    return [f"Of {total} runs, {failed} failed: in no mean."] if failed else []


def _listed(chosen: pd.DataFrame, base_macs: float, meta: Meta) -> str:
    items = [_item(row, base_macs, meta) for row in each(chosen.head(ROWS))]
    return "; ".join([*items, *([f"and {len(chosen) - ROWS} more"] if len(chosen) > ROWS else [])])


def _item(row: Any, base_macs: float, meta: Meta) -> str:
    if math.isnan(row.difference):
        return f"{row.variant} (no result)" if row.n == 0 else f"{row.variant} (no pair)"
    around = "" if math.isnan(row.low) else f" {interval(row.low, row.high, meta)}"
    cost = ""
    if not (pd.isna(row.macs) or pd.isna(base_macs)) and base_macs > 0:
        cost = f" at {row.macs / base_macs:.2f}× MACs"
    return f"{row.variant} {signed(row.difference, meta, unit=True)}{around}{cost}"
