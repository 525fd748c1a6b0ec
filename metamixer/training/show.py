"""One run and one checkpoint's scores, as the terminal shows them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import digest
from ..tasks import Metric
from .data import default_workers
from .data_config import AnyData, DataConfig
from .distributed import world_of_environment
from .folder import RunFolder
from .run_config import RunConfig
from .score import score
from .train import Interrupted, train


def show_training(config: RunConfig, runs: Path, device: str, workers: int | None) -> bool:
    """Train a run in `runs`, with a line for every epoch and its scores at the end; returns whether it is done.

    Started by torchrun or srun, the first process alone shows anything.
    """
    console = _console()
    folder = RunFolder(runs / digest(config))
    console.print(f"run {folder.path}, {config.recipe.total_epochs} epochs")
    for warning in config.warnings():
        console.print(f"note: {warning}", style="yellow")
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, disable=console.quiet, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def moved(now: dict[str, Any]) -> None:
            loss = f" loss {now['loss']:.3f}" if now["loss"] is not None else ""
            text = f"epoch {now['epoch']}/{now['epochs']}{loss}"
            bar.update(task, completed=now["step"], total=now["steps"], description=text)

        def ended(row: dict[str, Any]) -> None:
            bar.console.print(_line(row, config.metrics[0]))

        try:
            count = _workers(config.data, device, workers)
            result = train(config, folder.path, device, count, after_epoch=ended, watch=moved)
        except Interrupted as error:
            console.print(f"{error}; the same command goes on from here", style="yellow")
            return False
    if result["state"] != "done":
        console.print(f"failed in epoch {result['epoch']}: {result['error']}", style="red")
        return False
    rows = {str(kind): result[kind] for kind in ("raw", "ema", "best") if kind in result}
    _print_scores(console, rows, config.data, folder.read("broken.json") or {}, result["weights"])
    return True


def show_scores(
    source: str, data: DataConfig, changes: dict[str, Any], network: str | None, device: str, workers: int | None
) -> None:
    """Evaluate a checkpoint (`score`) and show its rows."""
    rows, used, broken = score(source, data, changes, network, device, _workers(data, device, workers))
    _print_scores(_console(), rows, used, broken)


def _console() -> Console:
    return Console(quiet=not world_of_environment().first, highlight=False, soft_wrap=True)


def _workers(data: AnyData, device: str, asked: int | None) -> int:
    # torchrun starts several processes on a machine; srun gives each task its own cores
    return default_workers(data, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if asked is None else asked


def _line(row: dict[str, Any], metric: Metric) -> str:
    kinds = ((f"val_{metric.name}", "raw"), (f"val_{metric.name}_ema", "ema"))
    scores = [f"{kind} {row[key]:.{metric.decimals}f} {metric.unit}".rstrip() for key, kind in kinds if key in row]
    validation = f", validation {metric.label} {', '.join(scores)}" if scores else ""
    speed = f"{row['images_per_second']:.0f} samples/s"
    return f"epoch {row['epoch']}: loss {row['train_loss']:.4f}{validation}, lr {row['lr']:.3g}, {speed}"


def _print_scores(
    console: Console, rows: dict[str, Any], data: AnyData, broken: dict[str, str], reported: str | None = None
) -> None:
    console.print(f"test samples of {data.about}")
    table = Table("weights", box=None, pad_edge=False)
    metrics = data.built.metrics
    for heading in (*(f"{metric.label} {metric.unit}".rstrip() for metric in metrics), "loss", "samples"):
        table.add_column(heading, justify="right")
    for kind, row in rows.items():
        label = f"best of validation (epoch {row['epoch']}, {row['weights']})" if "epoch" in row else kind
        label += " (reported)" if kind == reported else ""
        values = [f"{row[metric.name]:.{metric.decimals}f}" for metric in metrics]
        table.add_row(label, *values, f"{row['loss']:.4f}", str(row["images"]))
    console.print(table)
    for name, reason in list(broken.items())[:10]:
        console.print(f"left out: {name} ({reason})", style="yellow")
    if len(broken) > 10:
        console.print(f"and {len(broken) - 10} more broken images", style="yellow")
