"""The command line's part on grids: planning and following them. `launch.py` adds what needs more than this folder."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

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
    typer.Option(
        help="Scale the variants' widths until they have the base's macs or params, or its latency: latency:RUNTIME; "
        "none: leave them alone."
    ),
]
LearningRates = Annotated[
    Optional[str],
    typer.Option(
        "--lrs", help="Learning rates that every variant runs at too, separated by commas; none: only its own."
    ),
]
Twice = Annotated[bool, typer.Option("--aa", help="An A/A test in its place: the base as two variants of other seeds.")]
Modules = Annotated[
    Optional[list[str]], typer.Option("--module", help="File or dotted module that registers operations of your own.")
]

Targets = Annotated[
    Optional[list[str]],
    typer.Argument(help="Grids, beginnings of run hashes, or variants; everything if not given."),
]
ProfileName = Annotated[Optional[str], typer.Option("--profile", help="Profile of the jobs; `default` if not given.")]
ProfileFile = Annotated[Optional[Path], typer.Option("--profiles", help="File of profiles; slurm.toml if not given.")]
Resources = Annotated[
    Optional[list[str]], typer.Option("--resource", help="KEY=VALUE changed in the profile, e.g. minutes=600.")
]
RunName = Annotated[str, typer.Argument(help="A recipe (`launch.py recipes`), or the config.json of a run.")]
Changes = Annotated[
    Optional[list[str]], typer.Option("--set", help="KEY=VALUE changed in the run, e.g. data.root=/data/imagenet.")
]
DataWorkers = Annotated[
    Optional[int], typer.Option("--workers", min=0, help="Data workers of each process; by the cores if not given.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]
Resolution = Annotated[
    Optional[int], typer.Option(help="Width of the images in pixels; the network's own if not given.")
]
SearchName = Annotated[str, typer.Argument(help="A search in ablations/searches/, or the path of a search's file.")]
Storage = Annotated[
    Optional[str],
    typer.Option(
        help="Where the study is: journal (a file in the runs' folder), or a URL such as postgresql://host/db."
    ),
]
MaxAttempts = Annotated[int, typer.Option(min=1, help="Submissions that one run may have.")]
MaxHours = Annotated[Optional[float], typer.Option(help="Refuse to submit what may take more GPU-hours than this.")]


@app.command("list")
def list_grids() -> None:
    """The grids and searches, and the questions that they ask."""
    from rich.console import Console
    from rich.table import Table

    from sweeps.grid import grid_questions
    from sweeps.search.files import search_questions

    table = Table("grid", "question", box=None, pad_edge=False)
    for name, question in grid_questions().items():
        table.add_row(name, question)
    searches = Table("search", "question", box=None, pad_edge=False)
    for name, question in search_questions().items():
        searches.add_row(name, question)
    Console().print(table, "", searches)


@app.command()
def status(
    targets: Annotated[
        Optional[list[str]],
        typer.Argument(help="Grids, searches, beginnings of run hashes, or variants; all grids if not given."),
    ] = None,
    data: DataName = None,
    runs: Runs = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="A row for every run, however many.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show it anew every few seconds.")] = False,
) -> None:
    """Where runs stand: state, epoch, top-1 so far, node, time, log. Writes nothing."""
    from sweeps.follow import show_status

    show_status(runs, targets or [], data, every, watch=5.0 if watch else None)


@app.command()
def logs(
    targets: Annotated[list[str], typer.Argument(help="Grids, searches, beginnings of run hashes, or variants.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
    lines: Annotated[int, typer.Option(min=1, help="Lines of each log, counted from its end.")] = 30,
) -> None:
    """The end of each run's log."""
    from sweeps.follow import show_logs

    show_logs(runs, targets, data, lines)


@app.command()
def cancel(
    targets: Annotated[list[str], typer.Argument(help="Grids, searches, beginnings of run hashes, or variants.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
) -> None:
    """Cancel the SLURM jobs of runs that wait or run; what they have trained stays."""
    from sweeps.follow import cancel as cancel_runs

    for line in cancel_runs(runs, targets, data):
        print(line)


@app.command()
def retry(
    targets: Targets = None,
    data: DataName = None,
    runs: Runs = Path("runs"),
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    resource: Resources = None,
    max_attempts: MaxAttempts = 3,
    max_gpu_hours: MaxHours = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
) -> None:
    """Submit failed and interrupted runs again, as they were submitted last unless a profile is given."""
    from metamixer.config import parse_assignment
    from sweeps.cluster import retry as retry_runs

    chosen = profile_of(profile, profiles, resource) if profile or profiles else None
    changes = {} if chosen else dict(parse_assignment(text) for text in resource or [])
    if not retry_runs(runs, targets or [], data, chosen, changes, max_attempts, max_gpu_hours, dry_run):
        raise typer.Exit(1)


@contextmanager
def without_collector() -> Iterator[None]:
    """For a command that ends soon: Python's cycle collector walks all that torch holds, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def changes_of(assignments: Optional[list[str]]) -> dict[str, Any]:
    from metamixer.config import parse_assignment

    return dict(parse_assignment(text) for text in assignments or [])


def plan_of(grid, data, set, seeds, only, runs, match, modules, lrs=None, aa=False, timer=None, runtimes=None):  # type: ignore[no-untyped-def]
    """The plan that the command line's options ask for; only with a `timer` are latencies measured for it."""
    from metamixer.config import ConfigError, parse_assignment
    from sweeps import load_grid, make_plan

    try:
        rates = None if lrs is None else [] if lrs == "none" else [float(rate) for rate in lrs.split(",")]
    except ValueError:
        raise ConfigError(f"--lrs {lrs!r}: give numbers separated by commas, e.g. 1e-3,3e-3, or none") from None
    return make_plan(
        load_grid(grid, [str(Path(m).resolve()) if m.endswith(".py") else m for m in modules or []], runs),
        runs,
        data,
        dict(parse_assignment(text) for text in set or []),
        seeds_of(seeds),
        only.split(",") if only else None,
        match,
        rates,
        aa,
        timer,
        runtimes,
    )


def profile_of(name, file, resources):  # type: ignore[no-untyped-def]
    from metamixer.config import parse_assignment
    from sweeps.profiles import load_profile

    return load_profile(name or "default", file, dict(parse_assignment(text) for text in resources or []))


def definition_of(search, data, set, trials, modules):  # type: ignore[no-untyped-def]
    """How many trials are wanted, and the search in its setting."""
    from metamixer.config import parse_assignment
    from sweeps.search.files import load_search

    absolute = tuple(str(Path(m).resolve()) if m.endswith(".py") else m for m in modules or [])
    loaded = load_search(search, absolute)
    return trials or loaded.search.trials, loaded.define(data, dict(parse_assignment(text) for text in set or []))


def seeds_of(text: Optional[str]) -> Optional[list[int]]:
    from metamixer.config import ConfigError

    try:
        return [int(seed) for seed in text.split(",")] if text else None
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: give whole numbers separated by commas, e.g. 0,1,2") from None
