#!/usr/bin/env python
"""Command line of the MetaMixer sandbox; `python launch.py --help` lists what it does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sweeps.commands import (
    Changes,
    DataName,
    DataWorkers,
    Device,
    GridName,
    LearningRates,
    Match,
    MaxAttempts,
    MaxHours,
    Modules,
    Only,
    Overrides,
    ProfileFile,
    ProfileName,
    Resolution,
    Resources,
    RunName,
    Runs,
    SearchName,
    Seeds,
    Storage,
    Twice,
    app,
    changes_of,
    definition_of,
    plan_of,
    profile_of,
    seeds_of,
    without_collector,
)

if TYPE_CHECKING:
    from metamixer.networks import Network
    from metamixer.training.config import RunConfig
    from sweeps import Plan


@app.command()
@without_collector()
def plan(
    grid: GridName,
    data: DataName = None,
    set: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    runs: Runs = Path("runs"),
    match: Match = None,
    lrs: LearningRates = None,
    aa: Twice = False,
    module: Modules = None,
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    resource: Resources = None,
) -> None:
    """What a grid would run: variants, differences, costs, what is done, what its seeds can see. Writes nothing."""
    from sweeps.cluster import show_hours
    from sweeps.report import print_plan

    planned = plan_of(grid, data, set, seeds, only, runs, match, module, lrs, aa, runtimes=_runtimes)
    print_plan(planned)
    _print_visible(planned)
    show_hours(planned, profile_of(profile, profiles, resource))


@app.command()
def run(
    grid: GridName,
    data: DataName = None,
    set: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    runs: Runs = Path("runs"),
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Runs at a time; one for each core or GPU if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="Run failed ones again.")] = False,
    match: Match = None,
    lrs: LearningRates = None,
    aa: Twice = False,
    module: Modules = None,
    cluster: Annotated[
        str, typer.Option(help="local: here; debug: here, in one process; slurm: submit job arrays and return.")
    ] = "local",
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    resource: Resources = None,
    max_attempts: MaxAttempts = 3,
    max_gpu_hours: MaxHours = None,
) -> None:
    """Run what is missing of a grid, here or on a cluster; here, then show the table and the picture."""
    from metamixer.config import ConfigError
    from sweeps.report import print_plan, run_with_progress

    if cluster not in ("local", "debug", "slurm"):
        raise ConfigError(f"--cluster {cluster!r}: local, debug or slurm")
    planned = plan_of(grid, data, set, seeds, only, runs, match, module, lrs, aa, _time_runs, _runtimes)
    print_plan(planned)
    _print_visible(planned)
    if cluster == "slurm":
        from sweeps.cluster import launch_plan

        if not launch_plan(planned, profile_of(profile, profiles, resource), retry, max_attempts, max_gpu_hours):
            raise typer.Exit(1)
        return
    complete = run_with_progress(planned, workers, device, retry, debug=cluster == "debug")
    _collect(planned.root, planned.loaded.name, planned.setting)
    if not complete:
        raise typer.Exit(1)


@app.command()
def search(
    name: SearchName,
    data: DataName = None,
    set: Overrides = None,
    trials: Annotated[
        Optional[int], typer.Option(min=1, help="Trials to finish in all; the search's own number if not given.")
    ] = None,
    runs: Runs = Path("runs"),
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Workers; here one for each core or GPU if not given, on a cluster 4.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    storage: Storage = None,
    module: Modules = None,
    cluster: Annotated[str, typer.Option(help="local: here; slurm: submit workers and return.")] = "local",
    profile: ProfileName = None,
    profiles: ProfileFile = None,
    resource: Resources = None,
    max_gpu_hours: MaxHours = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be searched; writes nothing.")
    ] = False,
) -> None:
    """Search mixers and recipes with Optuna until so many trials have finished, then show the best and the pictures."""
    from metamixer.config import ConfigError
    from sweeps.report import parallel_runs
    from sweeps.search.launch import prepare, print_search, search_here, search_on_slurm

    if cluster not in ("local", "slurm"):
        raise ConfigError(f"--cluster {cluster!r}: local or slurm")
    wanted, definition = definition_of(name, data, set, trials, module)
    print_search(definition)
    if dry_run:
        return
    if cluster == "slurm":
        chosen = profile_of(profile, profiles, resource)
        prepared = prepare(runs, definition, wanted, storage)
        if not search_on_slurm(prepared, workers or 4, chosen, max_gpu_hours):
            raise typer.Exit(1)
        return
    prepared = prepare(runs, definition, wanted, storage, _time_runs)
    complete = search_here(prepared, workers or parallel_runs(device), device)
    _show_search(runs, definition.name, definition.setting)
    if not complete:
        raise typer.Exit(1)


@app.command()
def confirm(
    name: SearchName,
    data: DataName = None,
    set: Overrides = None,
    runs: Runs = Path("runs"),
    module: Modules = None,
    top: Annotated[
        int, typer.Option(min=1, help="The best trials to confirm, of the front where costs are sought.")
    ] = 3,
    seeds: Seeds = None,
    out: Annotated[Optional[Path], typer.Option(help="The grid's file; confirm_NAME.py if not given.")] = None,
) -> None:
    """Write a grid that confirms the best of a search, with seeds of its own and on the test images."""
    from sweeps.search.confirm import confirm_search

    path = confirm_search(runs, definition_of(name, data, set, None, module)[1], top, seeds_of(seeds), out)
    print(f"{path}: python launch.py run {path}")


@app.command()
@without_collector()
def collect(
    grid: Annotated[str, typer.Argument(help="A grid or a search, or the beginning of a hash or a variant of a grid.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
) -> None:
    """The table and the picture of a grid's finished runs, or of a search's trials."""
    from sweeps.follow import is_search, select

    if is_search(runs, Path(grid).stem):
        _show_search(runs, Path(grid).stem, data)
        return
    if any((runs / "grids").glob(f"{Path(grid).stem}@*.json")):
        _collect(runs, Path(grid).stem, data)
        return
    for name, setting in dict.fromkeys((entry.grid, entry.setting) for entry in select(runs, [grid], data)):
        _collect(runs, name, setting)


@app.command()
def report(
    grid: Annotated[str, typer.Argument(help="A grid that was launched.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
    out: Annotated[Optional[Path], typer.Option(help="The page; beside the grid's other files if not given.")] = None,
) -> None:
    """One page of HTML on a grid: tables, pictures, configurations, environment and the runs behind them."""
    from analysis.report import report as render_page
    from metamixer.config import ConfigError

    page, meta = render_page(runs, Path(grid).stem, data, out.parent if out else None)
    path = out or runs / "grids" / f"{meta.grid}@{meta.data}.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write here ({error.strerror or error})") from None
    print(path)


@app.command()
def recipes() -> None:
    """Runs by name: what each trains, the accuracy to expect, and its source."""
    from sweeps.single import print_recipes

    print_recipes()


@app.command()
def train(
    name: RunName,
    set: Changes = None,
    runs: Runs = Path("runs"),
    workers: DataWorkers = None,
    device: Device = "auto",
    teacher_cache: Annotated[
        Optional[Path], typer.Option(help="Folder where runs that show a teacher the same images share its answers.")
    ] = None,
) -> None:
    """Train one run, or go on with it; under torchrun or srun on several GPUs."""
    from metamixer.config import ConfigError
    from sweeps.single import configured_run, train_one

    config = configured_run(name, changes_of(set), runs)
    if teacher_cache is not None and config.recipe.distillation is None:
        raise ConfigError(f"--teacher-cache {teacher_cache}: {name} has no teacher (recipe.distillation)")
    if not train_one(config, runs, device, workers, teacher_cache):
        raise typer.Exit(1)


@app.command()
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="A run's folder or a checkpoint of it, a released checkpoint, or a timm model's name.")
    ],
    data: Annotated[
        Optional[str], typer.Option("--data", help="Folder that holds validation/CLASS/*, in place of data.root.")
    ] = None,
    set: Annotated[
        Optional[list[str]], typer.Option("--set", help="KEY=VALUE changed in the data, e.g. data.image_size=384.")
    ] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", help="timm name of a checkpoint's network, where its file name is none.")
    ] = None,
    workers: DataWorkers = None,
    device: Device = "auto",
) -> None:
    """Top-1 and top-5 of a checkpoint on the evaluation images, raw and averaged weights apart."""
    from metamixer.config import ConfigError
    from metamixer.recipes import IMAGENET
    from sweeps.single import print_scores

    changes = {"data.root": data, **changes_of(set)} if data else changes_of(set)
    foreign = [key for key in changes if not key.startswith("data.")]
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: an evaluation has keys of data only, e.g. data.image_size=384")
    of_data = {key.removeprefix("data."): value for key, value in changes.items()}
    print_scores(checkpoint, IMAGENET, of_data, model, device, workers)


@app.command()
def profile(
    name: RunName,
    set: Changes = None,
    runs: Runs = Path("runs"),
    workers: DataWorkers = None,
    device: Device = "auto",
) -> None:
    """Where the time of a training step goes, and how much memory it takes."""
    from sweeps.single import configured_run, profile_one

    profile_one(configured_run(name, changes_of(set), runs), device, workers)


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A preset, a baseline, or an operation of the registry; as JSON with parameters, or the four slots."
        ),
    ],
    module: Modules = None,
    width: Annotated[int, typer.Option(help="Channels to check and cost it at.")] = 64,
) -> None:
    """What a mixer or operation keeps of the contract that every mixer of the catalogue keeps, and what it costs."""
    import json

    from metamixer.checks_table import report
    from metamixer.config import ConfigError
    from metamixer.modules import load_module

    try:
        value = json.loads(name) if name.lstrip().startswith("{") else name
    except json.JSONDecodeError as error:
        example = """'{"name": "linear", "expansion": 2.0}'"""
        raise ConfigError(f"check {name}: no JSON ({error.msg}, column {error.colno}); write e.g. {example}") from None
    for source in module or []:
        load_module(source)
    if not report(value, dim=width):
        raise typer.Exit(1)


@app.command()
def cost(
    name: Annotated[str, typer.Argument(help="A timm model, a recipe, a mixer of the catalogue, or a run's folder.")],
    resolution: Resolution = None,
    layers: Annotated[bool, typer.Option("--layers", help="A row for every layer too.")] = False,
    module: Modules = None,
) -> None:
    """What a network costs, folded: parameters, multiply-adds, activations, bytes moved, by stage and by slot."""
    from metamixer.cost_table import print_costs
    from metamixer.modules import load_module
    from metamixer.networks import find_network

    for source in module or []:
        load_module(source)
    print_costs(find_network(name, resolution), layers)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A timm model, a recipe, or a run's folder (then its reported weights).")],
    format: Annotated[str, typer.Option(help="coreml, executorch or onnx.")],
    resolution: Resolution = None,
    out: Annotated[Optional[Path], typer.Option(help="The file; named after the network if not given.")] = None,
    quantize: Annotated[
        Optional[str], typer.Option(help="Core ML's weights: int8, palette8, palette6 or palette4.")
    ] = None,
    labels: Annotated[Optional[Path], typer.Option(help="Names of the classes for Core ML, one a line.")] = None,
    delegate: Annotated[
        Optional[str], typer.Option(help="ExecuTorch's: xnnpack (if not given), or coreml for Apple's devices.")
    ] = None,
    weights: Annotated[
        Optional[str], typer.Option(help="A timm model's checkpoint, or `pretrained`; its initial values if not given.")
    ] = None,
    module: Modules = None,
) -> None:
    """Fold a network, write it for a phone or another runtime, and check what was written."""
    from metamixer.deploy.export import export as write
    from metamixer.deploy.export import read_labels
    from metamixer.modules import load_module
    from metamixer.networks import find_network

    for source in module or []:
        load_module(source)
    network = find_network(name, resolution, trained=True, source=weights)
    written = write(network, format, out, quantize, read_labels(labels) if labels else None, delegate)
    print(f"{written.path}: {written.size / 1e6:.2f} MB")
    for line in written.checks:
        print(line)


@app.command()
def ship(
    grids: Annotated[list[str], typer.Argument(help="Grids that have finished runs, or searches.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="The folder for the packs.")] = Path("notebooks/results"),
    weights: Annotated[
        Optional[str], typer.Option(help="Variants whose weights go along, of each grid that has them: a,b.")
    ] = None,
) -> None:
    """Pack the finished runs of grids, without checkpoints, into a file each that the notebooks open."""
    from analysis.frame import load
    from analysis.results import of_grid, of_search, write
    from sweeps.follow import is_search

    wanted = weights.split(",") if weights else []
    packs = []  # all of them before one is written
    for name in grids:
        grid = Path(name).stem
        if is_search(runs, grid, data):
            folders = sorted((runs / "searches").glob(f"{grid}@{data or '*'}"))
            packs += [of_search(runs, grid, folder.name.partition("@")[2]) for folder in folders]
        else:
            settings = dict.fromkeys(load(runs, grid, data)["data"])
            packs += [of_grid(runs, grid, setting, wanted) for setting in settings]
    for variant in wanted:
        if not any(variant in pack.weights for pack in packs):
            there = ", ".join(pack.name for pack in packs)
            raise ValueError(f"--weights {variant}: no finished run of this variant in {there}")
    for pack, path in zip(packs, write(out, packs), strict=True):
        along = f", with weights of {', '.join(pack.weights)}" if pack.weights else ""
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB{along}")


@app.command()
def bench(
    models: Annotated[
        Optional[list[str]],
        typer.Argument(help="timm models, recipes, mixers, runs' folders, or grids (then each of its variants)."),
    ] = None,
    backend: Annotated[
        Optional[list[str]],
        typer.Option(
            help="eager, eager-channels-last, compile, onnxruntime, executorch, coreml, or all that run here."
        ),
    ] = None,
    resolution: Resolution = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads; more than one is several times noisier.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network in a session.")] = 5,
    sessions: Annotated[int, typer.Option(min=1, help="Fresh processes of each runtime; 3 or more show noise.")] = 5,
    unfolded: Annotated[bool, typer.Option("--unfolded", help="Time each network as it was trained too.")] = False,
    data: DataName = None,
    set: Overrides = None,
    only: Only = None,
    match: Match = None,
    runs: Runs = Path("runs"),
    module: Modules = None,
    file: Annotated[
        Optional[Path], typer.Option("--import", help="Keep what a phone measured: an Xcode report, or a CSV.")
    ] = None,
) -> None:
    """Latency on runtimes, beside costs; kept in latency.jsonl of the runs' folder."""
    from rich.console import Console

    from analysis.latency import imports, rows, table

    console = Console()
    uncounted: list[str] = []
    problems: list[str] = []
    if file is not None:
        if models and len(models) > 1:
            raise ValueError(f"--import: one model for a report, not {len(models)}")
        timing = {"--backend": backend, "--unfolded": unfolded, "--data": data, "--set": set, "--only": only,
                  "--match": match, "--module": module, "--threads": threads != 1, "--batch": batch != 1}  # fmt: skip
        if given := [option for option, value in timing.items() if value]:
            raise ValueError(f"--import: {given[0]} is for what is timed here; a file says how it was measured")
        found = imports.read(file, runs, models[0] if models else None, resolution)
        uncounted = imports.add_costs(found, runs)
    else:
        from analysis.latency.bench import time_with_progress
        from analysis.latency.measure import Subject

        if not models:
            raise ValueError("give the models to time, or a file with --import")

        def planned(name: str) -> Plan:
            options = (data, set, "0", only, runs, match, module)
            return plan_of(name, *options, timer=_time_runs, runtimes=_runtimes)  # type: ignore[no-any-return]

        networks = _networks(models, resolution, planned)
        subjects = [Subject(network, folded) for network in networks for folded in ([True, False][: 1 + unfolded])]
        report = time_with_progress(subjects, backend or ["all"], threads, batch, rounds, sessions)
        found, problems = report.rows, report.refused
    if found:
        path = rows.append(runs, found)
        console.print(table.render(rows.to_frame(found)))
        console.print(f"kept in {path}", soft_wrap=True, highlight=False)
    for line in [*uncounted, *problems]:
        console.print(line, style="yellow", soft_wrap=True, highlight=False)
    if problems:
        raise typer.Exit(1)


def _time_runs(runtime: str, runs: Sequence[RunConfig]) -> list[float]:
    from analysis.latency.bench import time_runs

    return time_runs(runtime, runs)


def _runtimes() -> Sequence[str]:
    from analysis.latency.backends import BACKENDS

    return list(BACKENDS)


def _networks(names: list[str], resolution: Optional[int], planned: Callable[[str], Plan]) -> list[Network]:
    """The networks that names stand for; a grid's variants are taken from its plan."""
    from metamixer.networks import find_network, of_run
    from sweeps import grid_questions

    found = []
    for name in names:
        if name.endswith(".py") or name in grid_questions():
            found += [of_run(run.variant, run.config, resolution) for run in planned(name).runs]
        else:
            found.append(find_network(name, resolution))
    return found


def _print_visible(planned) -> None:  # type: ignore[no-untyped-def]
    """How small a difference the planned seeds can see."""
    from rich.console import Console

    from analysis.power import visible_effect

    variants, seeds = (
        {run.variant for run in planned.runs},
        {run.seed if run.pair is None else run.pair for run in planned.runs},
    )
    for line in visible_effect(planned.root, planned.loaded.name, planned.setting, len(seeds), len(variants) - 1):
        Console().print(line, highlight=False)


def _collect(root: Path, grid: str, setting: Optional[str]) -> None:
    from rich.console import Console

    from analysis.frame import describe, load
    from analysis.plots import picture, save
    from analysis.statistics import declared
    from analysis.tables import render, to_csv

    runs = load(root, grid, setting, remember=True)
    comparisons, meta = declared(runs), describe(runs)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    stem = root / "grids" / f"{grid}@{meta.data}"
    for comparison, path in zip(comparisons, (f"{stem}.csv", f"{stem}-best.csv"), strict=False):
        console.print(render(comparison, meta))
        to_csv(comparison, meta, path)
    save(picture(comparisons[0], meta), f"{stem}.png")
    console.print(f"picture: {stem}.png   table: {stem}.csv", soft_wrap=True, highlight=False)


def _show_search(root: Path, name: str, setting: Optional[str]) -> None:
    from rich.console import Console

    from analysis.plots import save
    from analysis.search import front_picture, importances, importances_picture, load_trials, render_trials

    trials = load_trials(root, name, setting)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(render_trials(trials))
    folder = Path(trials.attrs["folder"])
    trials.to_csv(folder / "trials.csv", index=False)
    save(front_picture(trials), folder / "front.png")
    save(importances_picture(importances(trials)), folder / "importances.png")
    console.print(f"{folder}: trials.csv, front.png, importances.png", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line; what a user got wrong is one line on stderr and exit code 2."""
    # OpenMP's threads otherwise spin while another process has the core, at a tenth of the speed and less
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app()
    except ValueError as error:
        # ConfigError, and the ValueErrors of operations whose sizes do not fit
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        if sys.argv[1:2] not in (["plan"], ["collect"]) or not isinstance(ended.code, int):
            raise
        # they leave nothing to clear up, and taking torch down at the end would be a fifth of their time
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code)
