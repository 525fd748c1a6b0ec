"""Commands on searches: propose and train, confirm what was found."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from metamixer.commands import Device, changes_of

from .commands import Launched, profile_of
from .options import (
    Cluster,
    JobOptions,
    MaxAttempts,
    MaxHours,
    Modules,
    Overrides,
    Runs,
    Workers,
    absolute,
    seeds_of,
    with_options,
)

app = typer.Typer()

DataName = Annotated[Optional[str], typer.Option("--data", help="One key of the bases; the first if not given.")]
SearchName = Annotated[str, typer.Argument(help="A search in ablations/searches/, or the path of a search's file.")]


@with_options
def search(
    name: SearchName,
    job: JobOptions,
    data: DataName = None,
    set: Overrides = None,
    trials: Annotated[
        Optional[int], typer.Option(min=1, help="Trials to finish in all; the search's own number if not given.")
    ] = None,
    runs: Runs = Path("runs"),
    workers: Workers = None,
    device: Device = "auto",
    module: Modules = None,
    cluster: Cluster = "local",
    max_attempts: MaxAttempts = 5,
    max_gpu_hours: MaxHours = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the search; writes nothing.")] = False,
) -> Launched:
    """Search mixers and recipes with Optuna.

    After the given number of trials it shows the best ones and the pictures.
    """
    from sweeps.ask import Asker, print_search, search_here, search_on_slurm
    from sweeps.search import load_search
    from sweeps.terminal import parallel_runs

    definition = load_search(name, data, changes_of(set), absolute(module))
    print_search(definition)
    if dry_run:
        raise typer.Exit
    asker = Asker(runs, definition, trials or definition.search.trials)
    if cluster == "local":
        complete = search_here(asker, parallel_runs(device, job.runs_per_gpu, workers), device)
    else:
        complete = search_on_slurm(asker, workers or 4, profile_of(job), max_gpu_hours, max_attempts)
    return Launched(runs, definition.name, definition.data, complete)


@app.command()
def confirm(
    name: SearchName,
    data: DataName = None,
    set: Overrides = None,
    runs: Runs = Path("runs"),
    module: Modules = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the best trials to confirm.")] = 3,
    seeds: Annotated[Optional[str], typer.Option(help="Seeds (a,b); three new ones if not given.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="The grid's file; confirm_NAME.py if not given.")] = None,
) -> None:
    """Write a grid that confirms the best of a search.

    It has seeds of its own and is judged on the test images.
    """
    from sweeps.confirm import confirm as write_grid
    from sweeps.search import load_search

    definition = load_search(name, data, changes_of(set), absolute(module))
    path = out or Path(f"confirm_{definition.name}.py")
    write_grid(runs, definition, top, seeds_of(seeds), path)
    print(f"{path}: python launch.py run {path}")
