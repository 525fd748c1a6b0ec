#!/usr/bin/env python
"""Command line of the MetaMixer sandbox; `python launch.py --help` lists what it does."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="Swap a slot of a MetaMixer, train the variants, see what it bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

GridName = Annotated[str, typer.Argument(help="A grid in ablations/, or the path of a grid's file.")]
DataName = Annotated[
    Optional[str], typer.Option("--data", help="Which of the grid's settings; its first one if not given.")
]
Overrides = Annotated[
    Optional[list[str]], typer.Option("--set", help="KEY=VALUE changed in the base of the grid, e.g. recipe.epochs=3.")
]
Seeds = Annotated[Optional[str], typer.Option(help="Seeds, separated by commas; the grid's own if not given.")]
Only = Annotated[Optional[str], typer.Option(help="These variants alone, separated by commas.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
Match = Annotated[
    Optional[str],
    typer.Option(help="Scale the variants' widths until they have the base's macs or params; none: leave them alone."),
]
Modules = Annotated[
    Optional[list[str]], typer.Option("--module", help="File or dotted module that registers operations of your own.")
]


@app.command("list")
def list_grids() -> None:
    """The grids and the questions that they ask."""
    from rich.console import Console
    from rich.table import Table

    from sweeps.grid import grid_questions

    table = Table("grid", "question", box=None, pad_edge=False)
    for name, question in grid_questions().items():
        table.add_row(name, question)
    Console().print(table)


@app.command()
def plan(
    grid: GridName,
    data: DataName = None,
    set: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    runs: Runs = Path("runs"),
    match: Match = None,
    module: Modules = None,
) -> None:
    """What a grid would run: its variants, what differs, what they cost, what is done. Writes nothing."""
    from sweeps.report import print_plan

    print_plan(_plan(grid, data, set, seeds, only, runs, match, module))


@app.command()
def run(
    grid: GridName,
    data: DataName = None,
    set: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    runs: Runs = Path("runs"),
    workers: Annotated[
        Optional[int], typer.Option(help="Runs at a time; one for each core or GPU if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="Run failed ones again.")] = False,
    match: Match = None,
    module: Modules = None,
) -> None:
    """Run what is missing of a grid on this machine, then show the table and the picture."""
    from sweeps.report import print_plan, run_with_progress

    planned = _plan(grid, data, set, seeds, only, runs, match, module)
    print_plan(planned)
    complete = run_with_progress(planned, workers, device, retry)
    _collect(planned.root, planned.loaded.name, planned.setting)
    if not complete:
        raise typer.Exit(1)


@app.command()
def collect(
    grid: GridName,
    data: DataName = None,
    runs: Runs = Path("runs"),
) -> None:
    """The table and the picture of a grid's finished runs."""
    _collect(runs, Path(grid).stem, data)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A preset, a baseline, or an operation of the registry.")],
    module: Modules = None,
    width: Annotated[int, typer.Option(help="Channels to check and cost it at.")] = 64,
) -> None:
    """What a mixer or operation keeps of the contract that every mixer of the catalogue keeps, and what it costs."""
    from metamixer.contract import report
    from metamixer.modules import load_module

    for source in module or []:
        load_module(source)
    if not report(name, dim=width):
        raise typer.Exit(1)


def _plan(grid, data, set, seeds, only, runs, match, modules):  # type: ignore[no-untyped-def]
    from metamixer.config import ConfigError, parse_assignment
    from sweeps import load_grid, make_plan

    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else None
    except ValueError:
        raise ConfigError(f"--seeds {seeds!r}: give whole numbers separated by commas, e.g. 0,1,2") from None
    if match not in (None, "none", "macs", "params"):
        raise ConfigError(f"--match {match!r}: macs, params or none")
    return make_plan(
        load_grid(grid, [str(Path(m).resolve()) if m.endswith(".py") else m for m in modules or []]),
        runs,
        data,
        dict(parse_assignment(text) for text in set or []),
        numbers,
        only.split(",") if only else None,
        match,
    )


def _collect(root: Path, grid: str, setting: Optional[str]) -> None:
    from rich.console import Console

    from analysis.frame import describe, load
    from analysis.plots import accuracy_vs_macs, save
    from analysis.statistics import compare
    from analysis.tables import render, to_csv

    runs = load(root, grid, setting)
    comparison, meta = compare(runs), describe(runs)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(render(comparison, meta))
    stem = root / "grids" / f"{grid}@{meta.data}"
    to_csv(comparison, meta, f"{stem}.csv")
    save(accuracy_vs_macs(comparison, meta), f"{stem}.png")
    console.print(f"picture: {stem}.png   table: {stem}.csv", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line; what a user got wrong is one line on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        # ConfigError, and the ValueErrors of operations whose sizes do not fit
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
