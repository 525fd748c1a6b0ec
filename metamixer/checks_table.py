"""The contract of a mixer as a table for the terminal, and what it costs beside the presets at the same width."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.console import Console
from rich.table import Table

from .checks import COST_SIZE, Check, Subject, check, cost_of, find, quiet
from .cost import Cost, readable
from .mixer import resolve_mixer
from .presets import BASELINES, PRESETS


def compare(dim: int = 64, size: tuple[int, int] = COST_SIZE) -> dict[str, Cost]:
    """Cost of every preset and baseline that fits the width."""
    costs = {}
    for name in (*PRESETS, *BASELINES):
        with contextlib.suppress(ValueError):  # heads that do not divide it
            costs[name] = cost_of(resolve_mixer(name), dim, size)
    return costs


def report(value: Any, console: Console | None = None, dim: int = 64, coreml: bool = True) -> bool:
    """Print the contract of a mixer and its cost beside the presets; returns whether all of it holds."""
    console = console or Console()
    checks = check(value, dim, coreml)
    console.print(render(checks))
    failed = [row.name for row in checks if row.passed is False]
    if checks[0].passed:
        with quiet(), contextlib.suppress(Exception):  # what can't be costed has its row
            console.print(_cost_table(find(value, dim), value if isinstance(value, str) else "this mixer"))
    passed = sum(row.passed is True for row in checks)
    console.print(f"{passed} of {passed + len(failed)} hold" + (f"; not: {', '.join(failed)}" if failed else ""))
    return not failed


def render(checks: list[Check]) -> Table:
    """The rows of a contract as a table."""
    table = Table("check", "", "detail", box=None, pad_edge=False)
    for row in checks:
        mark = {True: "[green]ok[/green]", False: "[red]fails[/red]", None: "–"}[row.passed]
        table.add_row(row.name, mark, _escaped(row.detail))
    return table


def _cost_table(subject: Subject, name: str) -> Table:
    height, width = COST_SIZE
    table = Table(f"{subject.dim} channels, {height}×{width}", box=None, pad_edge=False)
    for heading in ("parameters", "MACs"):
        table.add_column(heading, justify="right")
    costs = compare(subject.dim) | {name: cost_of(subject.config, subject.dim)}
    for other, cost in sorted(costs.items(), key=lambda item: item[1].macs):
        style = "bold" if other == name else ""
        table.add_row(f"→ {other}" if style else other, readable(cost.parameters), readable(cost.macs), style=style)
    return table


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
