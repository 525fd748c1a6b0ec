"""Commands on one network or one run: train, evaluate, statistics, check, cost, export."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer()

RunName = Annotated[str, typer.Argument(help="A recipe (`launch.py recipes`), or the config.json of a run.")]
Changes = Annotated[
    Optional[list[str]], typer.Option("--set", help="KEY=VALUE changed in the run, e.g. data.root=/data/imagenet.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
DataWorkers = Annotated[
    Optional[int], typer.Option("--workers", min=0, help="Data workers of each process; by the cores if not given.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Size = Annotated[
    Optional[str],
    typer.Option(help="Pixels of the images, 224 or HEIGHTxWIDTH (224x320); the network's own if not given."),
]
Modules = Annotated[
    Optional[list[str]], typer.Option("--module", help="File that registers operations or tasks of your own.")
]


@app.command()
def recipes() -> None:
    """List the named runs, with the figure expected of each."""
    import sys

    from rich.console import Console
    from rich.table import Table

    from metamixer.recipes import RECIPES

    table = Table("recipe", "what it trains", "expected", "source", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.about, recipe.expected, recipe.source)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)


@app.command()
def train(
    name: RunName,
    set: Changes = None,
    runs: Runs = Path("runs"),
    workers: DataWorkers = None,
    device: Device = "auto",
    module: Modules = None,
) -> None:
    """Train one run, or go on with it.

    On several GPUs, start it under torchrun or srun.
    """
    from metamixer.recipes import configured_run
    from metamixer.training.show import show_training

    load(module)
    config = configured_run(name, changes_of(set), runs)
    if not show_training(config, runs, device, workers):
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
        Optional[str],
        typer.Option("--model", help="timm name of a checkpoint's network, if the file's name is not one."),
    ] = None,
    workers: DataWorkers = None,
    device: Device = "auto",
) -> None:
    """Score a checkpoint on the evaluation images.

    Raw and averaged weights are scored apart.
    """
    from metamixer.config import ConfigError
    from metamixer.recipes import IMAGENET
    from metamixer.training.show import show_scores

    changes = {"data.root": data, **changes_of(set)} if data else changes_of(set)
    foreign = [key for key in changes if not key.startswith("data.")]
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: an evaluation has keys of data only, e.g. data.image_size=384")
    of_data = {key.removeprefix("data."): value for key, value in changes.items()}
    show_scores(checkpoint, IMAGENET, of_data, model, device, workers)


@app.command()
def statistics(
    name: RunName,
    set: Changes = None,
    samples: Annotated[int, typer.Option(min=1, help="Training samples to measure.")] = 5000,
    module: Modules = None,
) -> None:
    """Measure mean and std of a run's inputs, for each channel."""
    from metamixer.recipes import configured_run
    from metamixer.training.statistics import statistics

    load(module)
    mean, std = statistics(configured_run(name, changes_of(set), Path("runs")), samples)
    for key, values in (("mean", mean), ("std", std)):
        print(f"{key}={','.join(f'{value:.4g}' for value in values)}")


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A preset, a baseline, an operation or a task; as JSON with parameters, or a mixer's four slots."
        ),
    ],
    module: Modules = None,
    width: Annotated[int, typer.Option(help="Channels to check and cost it at.")] = 64,
) -> None:
    """Check a mixer, operation or task."""
    from metamixer.checks import check as check_mixer
    from metamixer.checks import report
    from metamixer.config import from_text
    from metamixer.tasks import TASKS
    from metamixer.tasks.checks import check_task

    value = from_text(name)
    load(module)
    task = (value if isinstance(value, str) else value.get("name")) in TASKS
    if not report(check_task(value) if task else check_mixer(value, width)):
        raise typer.Exit(1)


@app.command()
def cost(
    name: Annotated[str, typer.Argument(help="A timm model, a recipe, a mixer of the catalogue, or a run's folder.")],
    size: Size = None,
    layers: Annotated[bool, typer.Option("--layers", help="A row for every layer too.")] = False,
    module: Modules = None,
) -> None:
    """Count what a network costs, by stage and by slot.

    Parameters, multiply-adds, activations and bytes moved, all of the folded network.
    """
    from metamixer.cost_table import print_costs
    from metamixer.networks import find_network, size_of

    load(module)
    print_costs(find_network(name, size_of(size)), layers)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A timm model, a recipe, or a run's folder (then its reported weights).")],
    format: Annotated[str, typer.Option(help="coreml, executorch or onnx.")],
    size: Size = None,
    out: Annotated[Optional[Path], typer.Option(help="The file; named after the network if not given.")] = None,
    weights: Annotated[
        Optional[str], typer.Option(help="A timm model's checkpoint, or `pretrained`; its initial values if not given.")
    ] = None,
    module: Modules = None,
) -> None:
    """Write a network for a phone or a runtime.

    It is folded first, and the written file is checked.
    """
    from metamixer.deploy.export import export as write
    from metamixer.networks import find_network, size_of

    load(module)
    network = find_network(name, size_of(size), trained=True, source=weights)
    written = write(network, format, out)
    print(f"{written.path}: {written.size / 1e6:.2f} MB")
    for line in written.checks:
        print(line)


def import_latency(
    file: Annotated[Path, typer.Argument(help="A CSV file (docs/latency.md).")], runs: Runs = Path("runs")
) -> Any:
    """Keep the latencies that a phone measured, beside costs."""
    from metamixer.latency import imports, rows
    from metamixer.latency.measure import Report

    report = Report(imports.read_csv(file))
    report.notes += imports.add_costs(report.rows, runs)
    print(f"kept in {rows.append(runs, report.rows)}")
    return report


def load(modules: list[str] | None) -> None:
    """Import the user's modules, which registers their operations."""
    from metamixer.plugins import load_module

    for source in modules or []:
        load_module(source)


def changes_of(assignments: list[str] | None) -> dict[str, Any]:
    """Values by key of a command line's KEY=VALUE."""
    from metamixer.config import parse_assignments

    return parse_assignments(assignments or [])
