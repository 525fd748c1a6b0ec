"""The table of a plan: what its variants change, cost and start from, and where their runs stand."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import track
from rich.table import Table

from metamixer.branches import probed, token_range
from metamixer.cost import Cost
from metamixer.metric import readable

from .grid import PlannedRun, blaming
from .iso_cost import cost, stages_of
from .plan import Plan
from .states import in_words

LITTLE_WORK = 1e10  # multiply-adds that a plan may spend to see how branches start, about a second
LARGE = 20  # a branch that is so many times its input may drown it
ROWS = 100  # of the table: nobody reads more


def print_plan(plan: Plan) -> None:
    """The variants of a plan with what differs, what they cost, how they start and where their runs stand."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(f"[bold]{plan.loaded.name}[/bold] on {plan.data}: {plan.loaded.question}", highlight=False)
    variants = dict[str, list[PlannedRun]]()
    for run in plan.runs:
        variants.setdefault(run.variant, []).append(run)
    costs, warned = dict[str, Cost](), dict[str, str]()
    for name in track(variants, "counting", console=console, transient=True, disable=len(variants) < 20):
        run = variants[name][0]
        with blaming(name):
            costs[name] = cost(run.config)
        for warning in _warnings(run):
            warned.setdefault(warning, name)
    work = sum(spent.macs * probed(variants[name][0].config.data.input_size) for name, spent in costs.items())
    table = Table("variant", "changes", box=None, pad_edge=False)
    for heading in ("widths", "params", "MACs", *(["branch"] if work <= LITTLE_WORK else []), "runs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, runs in list(variants.items())[:ROWS]:
        variant, states = runs[0].declared, Counter(plan.states[run.hash] for run in runs)
        branch = []
        if work <= LITTLE_WORK:
            with blaming(name):
                low, high = token_range(runs[0].config.build(), runs[0].config.data.input_size)
            branch = [_range(low, high)]
            if high > LARGE:
                warning = f"a branch starts at {high:.2g} times its input, and may not train"
                warned[f"{warning}; with `--set recipe.branch_ratio=0.5` all start alike"] = name
        table.add_row(
            name,
            _changes(variant.changes, variant.on, name == plan.loaded.grid.base),
            ", ".join(str(stage["width"]) for stage in stages_of(runs[0].config.model.to_dict())),
            readable(costs[name].parameters),
            readable(costs[name].macs),
            *branch,
            in_words(states),
        )
    console.print(table)
    if len(variants) > ROWS:
        console.print(f"and {len(variants) - ROWS} more variants")
    console.print(f"{len(plan.states)} runs: {in_words(plan.count())}", highlight=False)
    for warning, name in warned.items():
        console.print(f"note: {name}: {warning}", style="yellow", highlight=False)
    if plan.changed:
        files = sorted({file for files in plan.changed.values() for file in files})
        shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        console.print(
            f"note: {len(plan.changed)} finished runs were trained by other code ({shown}); `run --retrain` trains "
            "them again",
            style="yellow",
            highlight=False,
        )
    for name, reason in plan.loaded.grid.left_out.items():
        console.print(f"left out: {name}: {reason}", style="yellow", highlight=False)


def _range(low: float, high: float) -> str:
    """Two ratios, as one where they are alike; a network of timm has none."""
    if low != low:
        return "–"
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}–{high:.2g}"


def _warnings(run: PlannedRun) -> Iterator[str]:
    """What is worth a look before a variant is trained."""
    variant = run.declared
    yield from run.config.warnings()
    worlds = {key.split(".")[0] for key in variant.changes} - {"modules"}
    if variant.also is not None:
        yield f"it changes more than it names: {variant.also}"
    elif len(worlds) > 1:
        yield f"it changes {' and '.join(sorted(worlds))} at once: the effect of each can't be told apart"


def _changes(changes: dict[str, object], on: str | None, is_base: bool) -> str:
    if is_base:
        return "base"
    parts = []
    for key, value in changes.items():
        short = key.removeprefix("model.stages.*.")
        if isinstance(value, dict):
            name, rest = value.get("name"), [f"{k}={v}" for k, v in value.items() if k != "name"]
            # a mixer is shown by its operations, in the order of the slots
            value = f"{name}({', '.join(rest)})" if name else " · ".join(str(_name(v)) for v in value.values())
        parts.append(f"{short.removeprefix('token_mixer.')} → {value}")
    return (f"on {on}: " if on else "") + "; ".join(parts)


def _name(value: object) -> object:
    return value.get("name") if isinstance(value, dict) else value
