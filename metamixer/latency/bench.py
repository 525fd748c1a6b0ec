"""Timing from the command line, which says what it does; and what iso-latency asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..config import ConfigError
from ..networks import of_run
from ..training.run_config import RunConfig
from .measure import Report, Subject, measure
from .runtimes import RUNTIMES, Runtime, find_runtime

console = Console()


def time_networks(subjects: Sequence[Subject], names: Sequence[str], **options: Any) -> Report:
    """`measure` on the runtimes of these names; "all" are those that run here, and the others are named.

    Raises ConfigError: a runtime that was asked for by name and can't run here.
    """
    chosen: dict[str, Runtime] = {}
    for name in [each for given in names for each in (RUNTIMES if given == "all" else [given])]:
        try:
            chosen[name] = find_runtime(name)
        except ConfigError as error:
            if name in names:
                raise
            console.print(f"left out, {name}: {error}", style="dim", soft_wrap=True, highlight=False)
    with console.status("starting") as status:

        def show(doing: str) -> None:
            status.update(doing)
            if not console.is_terminal:
                console.print(doing, highlight=False)  # a log has no status

        return measure(subjects, list(chosen.values()), **options, show=show)


def time_runs(name: str, runs: Sequence[RunConfig]) -> list[float]:
    """Milliseconds of runs' networks on a runtime, one thread, one image, timed together.

    Raises ConfigError: the runtime can't run here, or does not take one of the networks.
    """
    subjects = [Subject(of_run(f"network {i}", run)) for i, run in enumerate(runs)]
    report = time_networks(subjects, [name], sessions=3)
    if report.refused:
        raise ConfigError(report.refused[0])
    if not all(row.quiet for row in report.rows):
        console.print("note: this machine is noisy, the widths found here may be off", style="yellow")
    return [row.median_ms for row in report.rows]
