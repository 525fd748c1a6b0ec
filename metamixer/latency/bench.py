"""Timing from the command line, with a bar; and what iso-latency asks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..config import ConfigError
from ..networks import of_run
from ..training.run_config import RunConfig
from .measure import Report, Subject, measure
from .runtimes import RUNTIMES, Runtime, find_runtime


def time_with_progress(
    subjects: Sequence[Subject], names: Sequence[str], threads: int, batch: int, rounds: int, sessions: int
) -> Report:
    """`measure` on the runtimes of these names, with a bar; "all" are those that run here, and the others are named.

    Raises:
        ConfigError: a runtime that was asked for by name and can't run here.
    """
    console = Console()
    chosen: dict[str, Runtime] = {}
    for name in [each for given in names for each in (RUNTIMES if given == "all" else [given])]:
        try:
            chosen[name] = find_runtime(name)
        except ConfigError as error:
            if name in names:
                raise
            console.print(f"left out, {name}: {error}", style="dim", soft_wrap=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=1.0)

        def show(doing: str, share: float) -> None:
            if not console.is_terminal:
                console.print(f"{100 * share:3.0f} % {doing}", highlight=False)  # a log has no bar
            progress.update(bar, description=doing, completed=share)

        return measure(subjects, list(chosen.values()), threads, batch, rounds, sessions, show)


def time_runs(name: str, runs: Sequence[RunConfig]) -> list[float]:
    """Milliseconds of runs' networks on a runtime, one thread, one image, timed together.

    Raises:
        ConfigError: the runtime can't run here, or does not take one of the networks.
    """
    console = Console()
    subjects = [Subject(of_run(" ".join(str(stage.width) for stage in run.model.stages), run)) for run in runs]
    with console.status("timing widths") as status:
        report = measure(
            subjects, [find_runtime(name)], sessions=3, progress=lambda doing, share: status.update(f"widths: {doing}")
        )
    if report.refused:
        raise ConfigError(report.refused[0])
    if not all(row.quiet for row in report.rows):
        console.print("note: this machine is noisy, the widths found here may be off", style="yellow")
    return [row.median_ms for row in report.rows]
