"""Commands on grids and searches: plan, run, follow, time. Those that end with a table return what it shows."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from metamixer.commands import Device, Size, changes_of

from .options import (
    Cluster,
    DataNames,
    GridOptions,
    JobOptions,
    Match,
    MaxHours,
    Modules,
    Only,
    Overrides,
    Runs,
    Workers,
    absolute,
    listed,
    rates_of,
    seeds_of,
    with_options,
)

if TYPE_CHECKING:
    from metamixer.latency.measure import Report
    from metamixer.networks import Network
    from sweeps import Plan

app = typer.Typer()

TARGETS = "Grids, searches, beginnings of run hashes, or variants"
Targets = Annotated[Optional[list[str]], typer.Argument(help=f"{TARGETS}; everything if not given.")]
Named = Annotated[list[str], typer.Argument(help=f"{TARGETS}.")]
DataName = Annotated[Optional[str], typer.Option("--data", help="One key of the bases; all if not given.")]
OneDataName = Annotated[Optional[str], typer.Option("--data", help="One key of the bases; the first if not given.")]
SearchName = Annotated[str, typer.Argument(help="A search in ablations/searches/, or the path of a search's file.")]


@dataclass(frozen=True)
class Launched:
    """The runs of a command; without `data`, those on all its keys."""

    root: Path
    name: str
    data: str | None
    complete: bool = True


@app.command("list")
def list_grids() -> None:
    """List the grids and searches with their questions."""
    from rich.console import Console
    from rich.table import Table

    from sweeps import grid_questions
    from sweeps.search import search_questions

    for kind, questions in (("grid", grid_questions()), ("search", search_questions())):
        table = Table(kind, "question", box=None, pad_edge=False)
        for name, question in questions.items():
            table.add_row(name, question)
        Console().print(table, "")


@with_options
def plan(options: GridOptions, job: JobOptions) -> "list[Plan]":
    """Show what a grid would run; writes nothing.

    Variants, differences, costs, finished runs, and the smallest difference that the seeds can see.
    """
    from sweeps.cluster import show_hours
    from sweeps.plan_table import print_plan

    with without_collector():
        plans = plans_of(options, measure=False)
        for planned in plans:
            print_plan(planned)
    if job != JobOptions():
        for planned in plans:
            show_hours(planned, profile_of(job))
    return plans


@with_options
def run(
    options: GridOptions,
    job: JobOptions,
    workers: Workers = None,
    device: Device = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="Run failed runs again.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train runs again that other code trained.")] = False,
    cluster: Cluster = "local",
    max_gpu_hours: MaxHours = None,
) -> Launched:
    """Run the missing runs of a grid, here or on SLURM.

    Here it ends with the table and the picture; on SLURM it returns after submitting.
    """
    from sweeps.plan_table import print_plan
    from sweeps.terminal import parallel_runs, run_with_progress

    plans = [replace(planned, retrain=retrain) for planned in plans_of(options)]
    print_plan(plans[0])
    if len(plans) > 1:
        print(f"the same on {', '.join(planned.data for planned in plans[1:])}")
    if cluster == "slurm":
        from sweeps.cluster import launch_plans

        taken = launch_plans(plans, profile_of(job), retry, max_gpu_hours)
        raise typer.Exit(0 if taken else 1)
    at_once = parallel_runs(device, job.runs_per_gpu, workers)
    complete = run_with_progress(plans, at_once, device, retry)
    return Launched(plans[0].root, plans[0].loaded.name, plans[0].data if len(plans) == 1 else None, complete)


@app.command()
def status(
    targets: Targets = None,
    data: DataName = None,
    runs: Runs = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="A row for every run, however many.")] = False,
) -> None:
    """Show where runs stand; writes nothing.

    State, epoch, score so far, node, time, log.
    """
    from sweeps.follow import show_status

    show_status(runs, targets or [], data, every)


@app.command()
def logs(
    targets: Named,
    data: DataName = None,
    runs: Runs = Path("runs"),
    lines: Annotated[int, typer.Option(min=1, help="Lines of each log, counted from its end.")] = 30,
) -> None:
    """Show the end of each run's log."""
    from sweeps.follow import show_logs

    show_logs(runs, targets, data, lines)


@app.command()
def cancel(
    targets: Named,
    data: DataName = None,
    runs: Runs = Path("runs"),
) -> None:
    """Cancel SLURM jobs; their checkpoints stay."""
    from sweeps.follow import cancel as cancel_runs

    for line in cancel_runs(runs, targets, data):
        print(line)


@app.command()
@with_options
def retry(
    job: JobOptions,
    targets: Targets = None,
    data: DataName = None,
    runs: Runs = Path("runs"),
    max_gpu_hours: MaxHours = None,
) -> None:
    """Submit failed and interrupted runs again.

    A run asks for the same resources as last time, unless you give a profile.
    """
    from sweeps.cluster import retry as retry_runs

    chosen = profile_of(job) if job.profile or job.profiles else None
    changes = {} if chosen else job.changes
    if not retry_runs(runs, targets or [], data, chosen, changes, max_gpu_hours):
        raise typer.Exit(1)


@with_options
def search(
    name: SearchName,
    job: JobOptions,
    data: OneDataName = None,
    set: Overrides = None,
    trials: Annotated[
        Optional[int], typer.Option(min=1, help="Trials to finish in all; the search's own number if not given.")
    ] = None,
    runs: Runs = Path("runs"),
    workers: Workers = None,
    device: Device = "auto",
    module: Modules = None,
    cluster: Cluster = "local",
    max_gpu_hours: MaxHours = None,
) -> Launched:
    """Search mixers and recipes with Optuna.

    After the given number of trials it shows the best ones and the pictures.
    """
    from sweeps.ask import Asker, search_here, search_on_slurm
    from sweeps.search import load_search
    from sweeps.terminal import parallel_runs

    loaded = load_search(name, data, changes_of(set), absolute(module))
    asker = Asker(runs, loaded, trials or loaded.search.trials)
    print(f"{loaded.name} on {loaded.data}: {loaded.question}")
    if cluster == "local":
        complete = search_here(asker, parallel_runs(device, job.runs_per_gpu, workers), device)
    else:
        complete = search_on_slurm(asker, workers or 4, profile_of(job), max_gpu_hours)
    return Launched(runs, loaded.name, loaded.data, complete)


@app.command()
def confirm(
    name: SearchName,
    data: OneDataName = None,
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

    loaded = load_search(name, data, changes_of(set), absolute(module))
    path = out or Path(f"confirm_{loaded.name}.py")
    write_grid(runs, loaded, top, seeds_of(seeds), path)
    print(f"{path}: python launch.py run {path}")


@with_options
def bench(
    models: Annotated[
        list[str], typer.Argument(help="timm models, recipes, mixers, runs' folders, or grids (all their variants).")
    ],
    runtime: Annotated[
        Optional[list[str]],
        typer.Option(help="eager, eager-channels-last, compile, onnxruntime, executorch, or all that run here."),
    ] = None,
    size: Size = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads; more than one is several times noisier.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network in a session.")] = 5,
    sessions: Annotated[int, typer.Option(min=1, help="Fresh processes of each runtime; 3 or more show noise.")] = 5,
    unfolded: Annotated[bool, typer.Option("--unfolded", help="Time each network as it was trained too.")] = False,
    data: DataNames = None,
    set: Overrides = None,
    only: Only = None,
    match: Match = None,
    runs: Runs = Path("runs"),
    module: Modules = None,
) -> "Report":
    """Time networks on runtimes, beside their costs.

    The rows are kept in latency.jsonl of the runs' folder.
    """
    from metamixer.latency import rows
    from metamixer.latency.measure import Subject, time_networks

    grids = [GridOptions(name, data, set, "0", only, runs, match, module=module) for name in models]
    networks = [network for options in grids for network in networks_of(options, size)]
    subjects = [Subject(network, folded) for network in networks for folded in ([True, False][: 1 + unfolded])]
    report = time_networks(subjects, runtime or ["all"], threads=threads, batch=batch, rounds=rounds, sessions=sessions)
    if report.rows:
        print(f"kept in {rows.append(runs, report.rows)}")
    return report


def networks_of(options: GridOptions, size: str | None) -> list["Network"]:
    """The network that a name stands for, or those of a grid's variants."""
    from metamixer.networks import find_network, of_run, size_of
    from metamixer.plugins import load_module
    from sweeps import grid_questions

    if options.grid.endswith(".py") or options.grid in grid_questions():
        return [of_run(run.variant, run.config, size_of(size)) for plan in plans_of(options) for run in plan.runs]
    for module in absolute(options.module):
        load_module(module)
    return [find_network(options.grid, size_of(size))]


def plans_of(options: GridOptions, measure: bool = True) -> "list[Plan]":
    """The plans that the options ask for: one for each key of the bases that `--data` names, or for all.

    Latencies that they need are measured only with `measure`.
    """
    from sweeps import load_grid, make_plan

    loaded = load_grid(options.grid, absolute(options.module), options.runs)
    named = list(loaded.grid.bases) if options.data == "all" else listed(options.data)
    keys: list[str | None] = [*named] if named else [None]
    chosen: dict[str, Any] = {
        "seeds": seeds_of(options.seeds),
        "only": listed(options.only),
        "match": options.match,
        "lrs": rates_of(options.lrs),
    }
    return [
        make_plan(loaded, options.runs, key, changes_of(options.set), options.aa, measure, **chosen) for key in keys
    ]


def profile_of(job: JobOptions) -> Any:
    """The profile of SLURM jobs that the options ask for."""
    from sweeps.profiles import load_profile

    return load_profile(job.profile or "default", job.profiles, job.changes)


@contextmanager
def without_collector() -> Iterator[None]:
    """For a command that ends soon: Python's cycle collector walks all that torch holds, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
