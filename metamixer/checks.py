"""The contract of a mixer: what holds for every one that ships, checked on any other.

`check` takes the name of a preset, a baseline or an operation (with parameters: a dict), or the four slots. It gives
a row for each promise (`promises.py`); what fails is a row too, with its reason in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .config import ConfigError, unknown
from .deploy.common import quiet
from .errors import in_one_line
from .mixer import build_mixer, resolve_mixer
from .operation import REGISTRY, Site, resolve
from .presets import PRESETS
from .promises import HOSTS, PROMISES, SIZE, Candidate, NotApplicable
from .tasks import TASKS


@dataclass(frozen=True)
class Check:
    """A promise, whether it holds (None: there is nothing to check), and a line about it."""

    name: str
    passed: bool | None
    detail: str


def find(value: Any, dim: int = 64) -> Candidate:
    """What a name, an operation's name with parameters (as a dict), or four slots stand for.

    An operation stands in the first preset that has it, else in the first whose slot it can take. Where several slots
    have an operation of the name, `SLOT.NAME` says which, e.g. `query_key.linear`.

    Raises ConfigError: nothing of that name, parameters that it does not take, or an operation that fits no preset.
    """
    parameters = {key: each for key, each in value.items() if key != "name"} if isinstance(value, dict) else {}
    full = value.get("name") if isinstance(value, dict) else value
    if not isinstance(full, str):
        return Candidate(resolve_mixer(value), dim, "the mixer")
    wanted, _, name = full.rpartition(".")
    slots = [slot for slot in REGISTRY if name in REGISTRY[slot] and wanted in ("", slot)]
    if len(slots) > 1 or (slots and full in PRESETS):
        choices = " or ".join(f"{slot}.{name}" for slot in slots)
        kind = "a preset and an operation" if full in PRESETS else "an operation of several slots"
        raise ConfigError(f"{full!r} is {kind}: ask for {choices}")
    if full in PRESETS:
        if parameters:
            raise ConfigError(f"preset {full!r} takes no parameters: give an operation some, or the four slots")
        return Candidate(resolve_mixer(full), dim, f"preset {full!r}")
    if not slots:
        if name in TASKS:
            raise ConfigError(f"{full!r} is a task, no mixer or operation")
        known = [*PRESETS, *(n for slot in REGISTRY.values() for n in slot), *TASKS]
        own = "one of your own needs @register, in a file that --module names"
        raise unknown("mixer, operation or task", full, known, own)
    slot, operation = slots[0], {"name": name, **parameters}
    label = f"{slot} operation {name!r}"
    if slot == "baseline":
        return Candidate(resolve_mixer(operation), dim, f"baseline {name!r}")
    hosts = [preset for preset in PRESETS if getattr(resolve_mixer(preset), slot).name == name]
    if hosts and not parameters:
        return Candidate(resolve_mixer(hosts[0]), dim, f"{label} in the mixer {hosts[0]!r}", slot)
    resolve(slot, operation)  # parameters that it does not take, or lacks, are an error that no host mends
    for host in (*hosts, *HOSTS):
        try:
            config = resolve_mixer(PRESETS[host] | {slot: operation})
            build_mixer(config, Site(dim, *SIZE))
            return Candidate(config, dim, f"{label} in the mixer {host!r}", slot)
        except ValueError as error:
            refusal = error
    raise ConfigError(f"{label} fits no preset; check a dict of the four slots (the last one: {refusal})")


def check(value: Any, dim: int = 64, coreml: bool = True) -> list[Check]:
    """The contract of a mixer at width `dim`: a row for each promise; nothing raises.

    Args:
        value: what `find` takes.
        coreml: whether to convert it, which takes seconds.
    """
    promises = {name: promise for name, promise in PROMISES.items() if coreml or name != "Core ML"}
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            candidate = find(value, dim)
            candidate.build()
        except Exception as error:
            return [Check("builds", False, reason(error))]
        return [Check("builds", True, candidate.label), *rows_of(promises, candidate)]


def rows_of(promises: Mapping[str, Callable[..., str]], *subject: Any) -> list[Check]:
    """A row for each promise about the subject."""
    rows = []
    for name, promise in promises.items():
        torch.manual_seed(0)
        try:
            rows.append(Check(name, True, promise(*subject)))
        except NotApplicable as why:
            rows.append(Check(name, None, str(why)))
        except Exception as error:
            rows.append(Check(name, False, reason(error)))
    return rows


def reason(error: Exception) -> str:
    """In one line; an error that was made for the reader speaks for itself."""
    if isinstance(error, NotImplementedError):
        return "it is not defined"
    if type(error) in (ConfigError, ValueError, AssertionError) and str(error):
        return " ".join(str(error).split())
    return in_one_line(error)


def report(checks: list[Check], console: Console | None = None) -> bool:
    """Print the rows of a contract; returns whether all of it holds."""
    console = console or Console()
    table = Table("check", "", "detail", box=None, pad_edge=False)
    for row in checks:
        mark = {True: "[green]ok[/green]", False: "[red]fails[/red]", None: "–"}[row.passed]
        table.add_row(row.name, mark, escape(row.detail))
    console.print(table)
    failed = [row.name for row in checks if row.passed is False]
    passed = sum(row.passed is True for row in checks)
    console.print(f"{passed} of {passed + len(failed)} hold" + (f"; not: {', '.join(failed)}" if failed else ""))
    return not failed
