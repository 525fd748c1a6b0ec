#!/usr/bin/env python
"""Command line of the MetaMixer sandbox; `python launch.py --help` lists what it does.

The commands stand in the folder that does the work; here are those that end with a table of another folder.
"""

import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import analysis.commands
import metamixer.commands
import sweeps.commands
import sweeps.probe

if TYPE_CHECKING:
    from metamixer.latency.measure import Report
    from sweeps import Plan
    from sweeps.commands import Launched

app = typer.Typer(
    help="Swap a slot of a MetaMixer, train the variants, see what it bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (sweeps.commands.app, metamixer.commands.app, analysis.commands.app):
    app.add_typer(part)


def then(command: Callable[..., Any], show: Callable[[Any], None]) -> None:
    """Register `command`, which ends by showing what it returned."""

    @app.command()
    @functools.wraps(command)
    def both(*args: Any, **kwargs: Any) -> None:
        show(command(*args, **kwargs))


def _visible(plans: "list[Plan]") -> None:
    for plan in plans:
        seeds = {run.seed if run.pair is None else run.pair for run in plan.runs}
        others = len({run.variant for run in plan.runs}) - 1
        analysis.commands.show_visible(plan.root, plan.loaded.name, plan.data, len(seeds), others)


def _shown(show: Callable[[Path, str, str | None], None]) -> Callable[["Launched"], None]:
    def shown(launched: "Launched") -> None:
        show(launched.root, launched.name, launched.data)
        if not launched.complete:
            raise typer.Exit(1)

    return shown


def _benched(report: "Report") -> None:
    analysis.commands.show_latencies(report.rows, [*report.notes, *report.refused])
    if report.refused:
        raise typer.Exit(1)


then(sweeps.commands.plan, _visible)
then(sweeps.commands.run, _shown(analysis.commands.show_grid))
then(sweeps.probe.probe, _shown(lambda root, name, _: analysis.commands.show_profile(root, name)))
then(sweeps.commands.search, _shown(analysis.commands.show_search))
then(sweeps.commands.bench, _benched)
then(metamixer.commands.import_latency, _benched)


@app.command()
def collect(
    grid: Annotated[str, typer.Argument(help="A grid or a search that was launched.")],
    data: analysis.commands.DataName = None,
    runs: analysis.commands.Runs = Path("runs"),
    export: Annotated[
        Optional[Path], typer.Option(help="Write a search's study into this SQLite file too, for optuna-dashboard.")
    ] = None,
) -> None:
    """Show the table of a grid or a search, with its picture."""
    name = Path(grid).stem
    with sweeps.commands.without_collector():
        if any((runs / "searches").glob(f"{name}@*/search.json")):
            analysis.commands.show_search(runs, name, data, export)
        else:
            analysis.commands.show_grid(runs, name, data)


def main() -> None:
    """Run the command line; what a user got wrong is one line on stderr and exit code 2."""
    # OpenMP's threads otherwise spin while another process has the core, at a tenth of the speed and less
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the character shows a "?"
    try:
        app()
    except ValueError as error:
        # ConfigError, and the ValueErrors of operations whose sizes do not fit
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that can't be written
        print(f"error: {error.filename or 'here'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
