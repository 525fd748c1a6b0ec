"""A comparison as a table: for the terminal, for documents, for other programs.

Every form carries the same: what the base, the data, the seeds and the weights are, which runs are in no
mean, and that a variant inside the noise names no winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import rich.table
from rich import box
from rich.console import Group
from rich.text import Text

from metamixer.metric import readable

from .factorial import NAMES, Factorial
from .frame import Meta, each, plural
from .intervals import smallest_visible_effect
from .solving import unsolved
from .statistics import COUNTED, pooled_sd

NOISE = ("inside noise", "no spread", "too few pairs")  # verdicts that name no winner
LATEX = {"–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "▲": r"$\uparrow$", "▼": r"$\downarrow$"}
SAME_COST = 0.05  # costs that differ by no more than this count as equal


@dataclass(frozen=True)
class Table:
    """A table of texts, a title above and notes below it: `str` gives Markdown, which notebooks show; rich prints it.

    Attributes:
        cells: the first column is a name.
    """

    cells: pd.DataFrame
    title: str = ""
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [markdown(self.cells), "", *(f"{line}  " for line in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """The cells, for LaTeX's package booktabs."""
        text = self.cells.to_latex(index=False, escape=True, column_format="l" + "r" * (self.cells.shape[1] - 1))
        for sign, command in LATEX.items():
            text = text.replace(sign, command)
        return text

    def _repr_markdown_(self) -> str:
        return str(self)

    def __rich__(self) -> Group:
        table = rich.table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for number, name in enumerate(self.cells):
            table.add_column(str(name).replace("_", "\n"), justify="right" if number else "left", no_wrap=not number)
        for row in self.cells.to_numpy():
            table.add_row(*map(Text, row))
        return Group(Text(self.title, style="bold"), table, Text("\n".join(self.notes), style="dim"))


def markdown(cells: pd.DataFrame) -> str:
    """A frame of texts in Markdown, its first column left, the others right."""
    lines = [list(cells.columns), ["---", *["---:"] * (len(cells.columns) - 1)], *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def render(comparison: pd.DataFrame, meta: Meta) -> Table:
    """The comparison as a table, with what a reader must know to read it."""
    return Table(texts(comparison, meta), title(comparison, meta), footnotes(comparison, meta))


def texts(comparison: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """The comparison in words, one row per variant.

    `lr` is there where learning rates were tried, `solved` and `steps` in place of `runs` where a task can be solved.
    """
    about = meta.metric
    rows = []
    for row in each(comparison):
        runs = [f"{row.n}/{row.n + row.failed + row.missing}"]
        runs += [f"{number} {word}" for number, word in ((row.failed, "failed"), (row.missing, "missing")) if number]
        rows.append({
            "variant": row.variant,
            "params": readable(row.parameters),
            "MACs": readable(row.macs),
            "lr": f"{row.lr:g}",
            f"{about.heading} ± sd": score(row, meta),
            "solved [95 %]": share(row, interval=True),
            "steps": "–" if math.isnan(row.solved_at) else f"{row.solved_at:.0f}" + " *" * (row.p_steps_holm < 0.05),
            "difference [95 %]": _difference(row, meta),
            "verdict": row.verdict if row.n else "no result",
            "runs": ", ".join(runs),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    unused = [] if comparison["rates"].notna().any() else ["lr"]
    return table.drop(columns=unused + (["runs"] if comparison["solved"].notna().any() else ["solved [95 %]", "steps"]))


def score(row: Any, meta: Meta) -> str:
    """The mean and its spread; where some seeds solved the task and some did not, the lowest and the highest."""
    value = meta.metric.value
    if math.isnan(row.mean):
        return "–"
    if row.mixed:
        return f"{value(row.lowest)} to {value(row.highest)}"
    return value(row.mean) + ("" if math.isnan(row.sd) else f" ± {value(row.sd)}")


def share(row: Any, interval: bool = False) -> str:
    """How many seeds solved a task: `2/3`, with the interval of the share if asked for."""
    if math.isnan(row.solved) or not row.ended:
        return "–"
    around = f" [{100 * row.share_low:.0f}, {100 * row.share_high:.0f}]" if interval else ""
    return f"{row.solved:.0f}/{row.ended:.0f}{around}"


def _difference(row: Any, meta: Meta) -> str:
    if row.base:
        return ""
    if row.test == "shares":
        return f"{100 * row.gain:+.0f} % solve, p {row.p:.2g}".replace("-", "−")
    if math.isnan(row.difference):
        return "–"
    around = "n/a" if math.isnan(row.low) else meta.metric.interval(row.low, row.high)
    return f"{meta.metric.signed(row.difference)} {around}"


def title(comparison: pd.DataFrame, meta: Meta) -> str:
    """Grid, data and question in a line."""
    best = ", each variant at its best learning rate on validation data" if comparison["rates"].notna().any() else ""
    return f"{meta.title}{best}: " + (meta.question or f"{meta.metric.label} of its variants")


def footnotes(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """What a reader must know to read the table, a line each."""
    about = meta.metric
    parts = [f"Base {meta.base}", f"data {meta.data}"]
    if meta.images:
        one = f", one is {100 / meta.images:.2g} points" if about.unit == "%" and about.name in COUNTED else ""
        parts[1] += f" ({meta.images} test samples{one})"
    seeds = ", ".join(map(str, meta.seeds))
    parts += [f"{plural(len(meta.seeds), 'seed')} ({seeds})" if meta.seeds else "no seeds"]
    parts += [f"{meta.weights or 'unknown'} weights"]
    lines = [", ".join(parts) + "."]
    if about.levels:
        levels = (f"{name} {about.value(value)} {about.unit}".rstrip() for name, value in about.levels.items())
        lines += [f"For comparison: {', '.join(levels)}."]
    if set(comparison["verdict"]) - {"base"}:
        lines += _how_to_read(comparison, meta)
    noted = comparison[comparison["note"] != ""].groupby("note", sort=False)["variant"]
    lines += [f"{', '.join(names)}: {note}." for note, names in noted]
    return [*lines, *(f"Mixed: {line}." for line in meta.mixed), *(f"Left out, {line}." for line in meta.left_out)]


def _how_to_read(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    both = comparison["low_both"].notna()
    others = comparison[~comparison["base"]]
    reach = (
        "spanning the t interval over seeds and the one over seeds and test samples together"
        if both.any()
        else "over seeds (t): it does not speak about other test samples"
    )
    lines = [f"Difference: mean over seeds of (variant − base at the same seed) with its 95 % interval, {reach}."]
    if both.any() and others.loc[others["p_seeds"].notna(), "low_both"].isna().any():
        lines += ["Not every variant kept its predictions: where none are kept, the interval is over seeds alone."]
    if "hint" in set(comparison["verdict"]):
        lines += [f"Hint: outside its own interval, but not after Holm's correction for {len(others)} comparisons."]
    if comparison["verdict"].isin(NOISE).any():
        lines += ["Inside the noise (the interval contains 0, or there is none): no winner is named there."]
    lines += how_solved(comparison, meta)
    spread, pairs = pooled_sd(comparison), int(comparison["pairs"].max())
    if spread > 0 and pairs > 1:
        effect = meta.metric.signed(smallest_visible_effect(spread, pairs))[1:] + meta.metric.points
        images = "; verdicts allow for that of the test samples too" if both.any() else ""
        lines += [
            f"By the noise over seeds alone, a single comparison over {plural(pairs, 'seed')} finds a true difference"
            f" of {effect} in 8 cases of 10{images}."
        ]
    return lines + unequal(comparison)


def how_solved(comparison: pd.DataFrame, meta: Meta) -> list[str]:
    """Of a task that can be solved: what counts as solved, which test was used, and who did not solve it."""
    if comparison["solved"].isna().all():
        return []
    lines = [f"Solved: {meta.metric.label} of {meta.metric.solved:g} {meta.metric.unit} on validation samples. Steps: "
             "the median over seeds; * other than the base's (ranks, Holm)."]  # fmt: skip
    if (comparison["test"] == "shares").any():
        lines += ["Where some seeds solve the task and some do not, the shares are tested (Boschloo), not the means."]
    return lines + unsolved(comparison)


def unequal(comparison: pd.DataFrame) -> list[str]:
    """Lines that say where variants had more or less than the base: cost, epochs, tried learning rates."""
    base = comparison[comparison["base"]]
    if not len(base):
        return []
    lines, spans = [], []
    for name, words in (("macs", "multiply-adds"), ("parameters", "parameters")):
        ratios = (comparison[name] / base[name].iloc[0]).dropna().astype(float)
        if (abs(ratios - 1) > SAME_COST).any():
            spans.append(f"{words} {ratios.min():.2f} to {ratios.max():.2f} times the base's")
    if spans:
        lines.append(f"Unequal cost: {', '.join(spans)}; a difference may be bought by it.")
    for name, words in (("epochs", "epochs"), ("rates", "learning rates tried")):
        own = base[name].iloc[0]
        odd = comparison[comparison[name].notna() & (comparison[name] != own)] if not pd.isna(own) else base[:0]
        if len(odd):
            named = ", ".join(f"{row.variant} {getattr(row, name)}" for row in each(odd))
            lines.append(f"Unequal effort, {words}: the base {own}, {named}.")
    return lines


def summary(meta: Meta) -> str:
    """The question, the runs, and those that no mean includes: a few lines to open a notebook with."""
    question = [meta.question] if meta.question else []
    head = f"Grid {meta.grid} on {meta.data}, base {meta.base}, {plural(len(meta.seeds), 'seed')}."
    left_out = [f"Left out, {line}." for line in meta.left_out] or ["Nothing is left out."]
    return "\n".join([*question, head, *left_out])


def of_steps(steps: pd.DataFrame, meta: Meta) -> Table:
    """The steps of a ladder (`ladder.steps`)."""
    rows = [[f"{row.on} → {row.variant}", *_judged(row, row.difference, meta), row.pairs] for row in each(steps)]
    return Table(pd.DataFrame(rows, columns=["step", "difference [95 %]", "verdict", "pairs"]))


def of_factorial(found: Factorial, meta: Meta) -> str:
    """A factorial (`factorial.take_apart`) in Markdown: its sources, the operations, the cells that are no sum."""
    if not found.whole:
        return "There is no full factorial to take apart: " + "; ".join(found.left_out) + ".\n"
    sources = [[row.source, f"{100 * row.share:.0f} %", f"{row.f:.1f}", f"{row.p_holm:.2g}", row.verdict]
               for row in each(found.sources)]  # fmt: skip
    effects = [[NAMES[row.slot], row.operation, *_judged(row, row.effect, meta)] for row in each(found.effects)]
    odd = found.cells[found.cells["verdict"].isin(["better", "worse", "hint"])]
    cells = [[row.variant, *_judged(row, row.interaction, meta)] for row in each(odd)]
    heads = ["effect on the mean [95 %]", "verdict"]
    of_sources = ["source", "share of the cells' differences", "F", "p, Holm", "verdict"]
    return "\n\n".join([
        markdown(pd.DataFrame(sources, columns=of_sources)),
        markdown(pd.DataFrame(effects, columns=["slot", "operation", *heads])),
        markdown(pd.DataFrame(cells, columns=["cell", "beyond the sum of its slots [95 %]", "verdict"])),
        f"{plural(len(found.cells), 'cell')}, {plural(len(found.seeds), 'seed')} each; one run scatters by "
        f"{meta.metric.value(found.noise)}{meta.metric.points} around what its cell and its seed explain. "
        "Holm's correction is over sources, over operations and over cells, each a family of its own.",
        *(f"Left out: {line}." for line in found.left_out),
    ])  # fmt: skip


def _judged(row: Any, estimate: float, meta: Meta) -> list[str]:
    if math.isnan(estimate):
        return ["–", "no pair"]
    around = "" if math.isnan(row.low) else f" {meta.metric.interval(row.low, row.high)}"
    return [meta.metric.signed(estimate) + around, row.verdict]


def to_csv(comparison: pd.DataFrame, meta: Meta, path: str | Path) -> None:
    """Write the comparison in full precision, grid, data and weights in front."""
    about = {"grid": meta.grid, "data": meta.data, "weights": meta.weights}
    comparison.assign(**about)[[*about, *comparison]].to_csv(path, index=False)
