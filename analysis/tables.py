"""A comparison as a table: for the terminal, for documents, for other programs.

Every form carries the same: what the base, the data, the seeds and the weights are, which runs are in no
mean, and that a variant inside the noise names no winner.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from .factorial import NAMES, Factorial
from .frame import Meta, each, plural
from .intervals import smallest_visible_effect
from .metrics import metric
from .statistics import pooled_sd

ROWS = 60  # of a table or picture: nobody reads more variants than that, and their names would cover one another
SAME_COST = 0.05  # costs that differ by no more than this count as equal
_STYLES = {"base": "bold", "above": "cyan", "below": "cyan", "inside noise": "dim", "no spread": "dim"}


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


def texts(comparison: pd.DataFrame) -> pd.DataFrame:
    """The comparison in words, one row per variant; `lr` only where learning rates were tried."""
    about = metric(comparison["metric"].iloc[0] if len(comparison) else "top1")
    rows = []
    for row in each(comparison):
        difference = ""
        if not row.base:
            around = "n/a" if math.isnan(row.low) else about.interval(row.low, row.high)
            difference = "–" if math.isnan(row.difference) else f"{about.signed(row.difference)} {around}"
        runs = [f"{row.n}/{row.n + row.failed + row.missing}"]
        runs += [f"{number} {word}" for number, word in ((row.failed, "failed"), (row.missing, "missing")) if number]
        spread = "" if math.isnan(row.sd) else f" ± {about.value(row.sd, unit=False)}"
        rows.append({
            "variant": row.variant,
            "params": count(row.parameters),
            "MACs": count(row.macs),
            "lr": f"{row.lr:g}" if row.rate else "",
            f"{about.heading} ± sd": "–" if math.isnan(row.mean) else about.value(row.mean, unit=False) + spread,
            "difference [95 %]": difference,
            "verdict": row.verdict if row.n else "no result",
            "runs": ", ".join(runs),
        })  # fmt: skip
    names = ["variant", "params", "MACs", "lr", f"{about.heading} ± sd", "difference [95 %]", "verdict", "runs"]
    table = pd.DataFrame(rows, columns=names)
    return table if (comparison["rate"] != "").any() else table.drop(columns="lr")


def title(comparison: pd.DataFrame, meta: Meta) -> str:
    """Grid, data and question in a line."""
    best = ", each variant at its best learning rate on validation data" if (comparison["rate"] == "best").any() else ""
    return f"{meta.title}{best}: " + (meta.question or f"{meta.metric.name} of its variants")


def footnotes(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """What a reader must know to read the table, a line each."""
    about = metric(comparison["metric"].iloc[0]) if len(comparison) else meta.metric
    seeds = ", ".join(map(str, meta.seeds))
    parts = [f"Base {meta.base}", f"data {meta.data}"]
    if meta.images and about.points:
        parts[1] += f" ({meta.images} test images, one is {100 / meta.images:.2g}{about.points})"
    parts += [f"{plural(len(meta.seeds), 'seed')} ({seeds})" if meta.seeds else "no seeds"]
    parts += [f"{meta.weights or 'unknown'} weights"]
    lines = [", ".join(parts) + "."]
    if left := len(comparison) - len(extremes(comparison)):
        lines += [f"{left} of {len(comparison)} variants, neither the best nor the worst, are only in the CSV."]
    verdicts = set(comparison["verdict"])
    if verdicts - {"base"}:
        lines += _how_to_read(comparison, verdicts, meta)
    lines += [f"{row.variant}: {row.note}." for row in each(extremes(comparison)) if row.note]
    return [*lines, *(f"Mixed: {line}." for line in meta.mixed), *_left_out(meta)]


def _how_to_read(comparison: pd.DataFrame, verdicts: set[str], meta: Meta) -> list[str]:
    both = comparison["low_both"].notna()
    others = int((~comparison["base"]).sum())
    reach = (
        "spanning the t interval over seeds and the one over seeds and test images together"
        if both.any()
        else "over seeds (t): it does not speak about other test images"
    )
    lines = [f"Difference: mean over seeds of (variant − base at the same seed) with its 95 % interval, {reach}."]
    if both.any() and (comparison.loc[~comparison["base"] & (comparison["pairs"] > 1), "low_both"].isna()).any():
        lines += ["Not every variant kept its predictions: where none are kept, the interval is over seeds alone."]
    if comparison["exploratory"].any():
        lines += ["Exploratory: the grid declared another metric; nothing here is more than a hint."]
    elif "hint" in verdicts:
        lines += [f"Hint: outside its own interval, but not after Holm's correction for {others} comparisons."]
    if comparison["inside_noise"].any():
        lines += ["Inside the noise (the interval contains 0, or there is none): no winner is named there."]
    spread, pairs = pooled_sd(comparison), int(comparison["pairs"].max())
    if spread > 0 and pairs > 1:
        effect = metric(comparison["metric"].iloc[0]).signed(smallest_visible_effect(spread, pairs), unit=True)[1:]
        images = "; verdicts allow for that of the test images too" if both.any() else ""
        lines += [
            f"By the noise over seeds alone, a single comparison over {plural(pairs, 'seed')} finds a true difference"
            f" of {effect} in 8 cases of 10{images}."
        ]
    return lines + unequal(comparison)


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
    """The question, the runs, and those that no mean includes: a few lines to open a notebook with."""
    question = [meta.question] if meta.question else []
    head = f"Grid {meta.grid} on {meta.data}, base {meta.base}, {plural(len(meta.seeds), 'seed')}."
    return "\n".join([*question, head, *(_left_out(meta) or ["Nothing is left out."])])


def render(comparison: pd.DataFrame, meta: Meta) -> Table:
    """The comparison for a terminal of 100 columns."""
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
    shown = extremes(comparison)
    rows = texts(shown)
    for index, header in enumerate(rows.columns):
        side: Literal["left", "right"] = "right" if 0 < index < len(rows.columns) - 2 else "left"
        table.add_column(header, justify=side, no_wrap=0 < index < len(rows.columns) - 1, overflow="fold")
    table.columns[-1].max_width = 9  # with the names the only column that may break
    for row, verdict in zip(rows.to_numpy(), shown["verdict"], strict=True):
        table.add_row(*map(Text, row), style=_STYLES.get(verdict, ""))
    return table


def to_markdown(comparison: pd.DataFrame, meta: Meta) -> str:
    """The same for documents: a heading line, the table, the footnotes."""
    lines = [f"**{title(comparison, meta)}**", "", markdown(texts(extremes(comparison))), ""]
    return "\n".join([*lines, *(f"{line}  " for line in footnotes(comparison, meta))]).rstrip() + "\n"


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown, its first column left, the others right."""
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def of_steps(steps: pd.DataFrame, meta: Meta) -> str:
    """The steps of a ladder (`ladder.steps`) in Markdown."""
    rows = [[f"{row.on} → {row.variant}", *_judged(row, row.difference, meta), row.pairs] for row in each(steps)]
    return markdown(pd.DataFrame(rows, columns=["step", "difference [95 %]", "verdict", "pairs"]))


def of_factorial(found: Factorial, meta: Meta) -> str:
    """A factorial (`factorial.take_apart`) in Markdown: its sources, the operations, the cells that are no sum."""
    if not found.whole:
        return "There is no full factorial to take apart: " + "; ".join(found.left_out) + ".\n"
    sources = [[row.source, f"{100 * row.share:.0f} %", f"{row.f:.1f}", f"{row.p_holm:.2g}", row.verdict]
               for row in each(found.sources)]  # fmt: skip
    effects = [[NAMES[row.slot], row.operation, *_judged(row, row.effect, meta)] for row in each(found.effects)]
    odd = found.cells[found.cells["verdict"].isin(["above", "below", "hint"])]
    cells = [[row.variant, *_judged(row, row.interaction, meta)] for row in each(odd)]
    heads = ["effect on the mean [95 %]", "verdict"]
    of_sources = ["source", "share of the cells' differences", "F", "p, Holm", "verdict"]
    return "\n\n".join([
        markdown(pd.DataFrame(sources, columns=of_sources)),
        markdown(pd.DataFrame(effects, columns=["slot", "operation", *heads])),
        markdown(pd.DataFrame(cells, columns=["cell", "beyond the sum of its slots [95 %]", "verdict"])),
        f"{plural(len(found.cells), 'cell')}, {plural(len(found.seeds), 'seed')} each; one run scatters by "
        f"{meta.metric.value(found.noise, unit=False)}{meta.metric.points} around what its cell and its seed explain. "
        "Holm's correction is over sources, over operations and over cells, each a family of its own.",
        *(f"Left out: {line}." for line in found.left_out),
    ])  # fmt: skip


def _judged(row: object, estimate: float, meta: Meta) -> list[str]:
    low, high, verdict = (getattr(row, name) for name in ("low", "high", "verdict"))
    if math.isnan(estimate):
        return ["–", "no pair"]
    around = "" if math.isnan(low) else f" {meta.metric.interval(low, high)}"
    return [meta.metric.signed(estimate) + around, verdict]


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
