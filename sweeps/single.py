"""One run by its name, and one checkpoint's scores, as the terminal shows them."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from metamixer.config import SCHEMA_VERSION, ConfigError, digest, override, parse
from metamixer.recipes import RECIPES, named_run
from metamixer.training.data_config import DataConfig
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

POLL_SECONDS = 0.5


def print_recipes() -> None:
    """The named runs, what they train, and what to expect of them."""
    table = Table("recipe", "what it trains", "expected top-1", "source", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.about, recipe.expected, recipe.source)
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)


def configured_run(name: str, overrides: dict[str, Any], runs: Path) -> RunConfig:
    """A named run, or the one in a `config.json`, with some keys changed.

    Raises:
        ConfigError: no such name or file, or one that does not make a run.
    """
    path = Path(name)
    if not name.endswith(".json"):
        return named_run(name, overrides, runs)
    try:
        content = json.loads(path.read_text())
        schema, values = content["schema"], content["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: no configuration of a run ({type(error).__name__}: {error})") from None
    if schema != SCHEMA_VERSION:
        raise ConfigError(f"{name}: configuration of schema {schema}, this version reads {SCHEMA_VERSION}")
    return override(parse(RunConfig, values, name), overrides)


def train_one(
    config: RunConfig, runs: Path, device: str, workers: int | None, teacher_cache: Path | None = None
) -> bool:
    """Train a run in `runs`, show how it goes, then its scores; returns whether it is done.

    Started by torchrun or srun, the first process alone shows anything.
    """
    from metamixer.training.data import default_workers
    from metamixer.training.distributed import world_of_environment
    from metamixer.training.train import Interrupted, train

    world = world_of_environment()
    console = Console(quiet=not world.first)
    folder = RunFolder(runs / digest(config))
    if workers is None:
        workers = default_workers(config.data, device, _processes_here())
    console.print(f"run {folder.path}, {config.recipe.total_epochs} epochs", highlight=False, soft_wrap=True)
    for warning in config.warnings():
        console.print(f"note: {warning}", style="yellow", highlight=False)
    try:
        with _progress(folder, console):
            result = train(config, folder.path, device, workers, teacher_cache)
    except Interrupted as error:
        console.print(f"{error}; the same command goes on from here", style="yellow", highlight=False, soft_wrap=True)
        return False
    if result["state"] != "done":
        console.print(f"failed in epoch {result['epoch']}: {result['error']}", style="red", highlight=False)
        return False
    kinds = ["raw", "ema", "best"]
    rows = {kind: result[kind] for kind in kinds if kind in result}
    _print_scores(console, rows, config.data, result["weights"])
    _print_broken(console, folder.read("broken.json") or {})
    return True


def _processes_here() -> int:
    """Processes that torchrun started here; srun gives each task its own cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def _progress(folder: RunFolder, console: Console) -> Iterator[None]:
    """A bar over the run's steps and a line for every epoch while the body trains."""
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
    with Progress(*columns, console=console, disable=console.quiet, transient=True) as progress:
        task = progress.add_task("", total=None, note="starting")
        ended = threading.Event()
        shown = len(_rows(folder))

        def look() -> None:
            nonlocal shown
            rows = _rows(folder)
            # a run that goes on from a checkpoint drops the rows behind it
            for row in rows[min(shown, len(rows)) :]:
                console.print(_line(row), highlight=False, soft_wrap=True)
            shown = len(rows)
            now = folder.read("progress.json") or {}
            loss = f" loss {now['loss']:.3f}" if now.get("loss") is not None else ""
            note = f"epoch {now.get('epoch', 0)}/{now.get('epochs', '?')}{loss}"
            progress.update(task, completed=now.get("step", 0), total=now.get("steps"), note=note)

        def follow() -> None:
            while not ended.wait(POLL_SECONDS):
                look()

        follower = threading.Thread(target=follow, daemon=True)
        if not console.quiet:
            follower.start()
        try:
            yield
        finally:
            ended.set()
            if not console.quiet:
                follower.join()
                look()


def _rows(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):  # not there yet, or a line half written
        return []


def _line(row: dict[str, Any]) -> str:
    scores = [f"{name} {row[key]:.2f} %" for key, name in (("val_top1", "raw"), ("val_top1_ema", "ema")) if key in row]
    validation = f", validation top-1 {', '.join(scores)}" if scores else ""
    speed = f"{row['images_per_second']:.0f} images/s"
    return f"epoch {row['epoch']}: loss {row['train_loss']:.4f}{validation}, lr {row['lr']:.3g}, {speed}"


def print_scores(
    source: str,
    data: DataConfig,
    changes: dict[str, Any],
    network: str | None,
    device: str,
    workers: int | None,
) -> None:
    """Evaluate a checkpoint (`metamixer.training.score`) and show its rows."""
    from metamixer.training.data import default_workers
    from metamixer.training.distributed import world_of_environment
    from metamixer.training.score import score

    world = world_of_environment()
    if workers is None:
        workers = default_workers(data, device, _processes_here())
    rows, used, broken = score(source, data, changes, network, device, workers)
    console = Console(quiet=not world.first)
    _print_scores(console, rows, used)
    _print_broken(console, broken)


def _print_scores(console: Console, rows: dict[str, Any], data: DataConfig, reported: str | None = None) -> None:
    where = f"{data.name} {data.root or ''}".strip()
    size = f"{data.image_size} px, crop {data.eval_crop:g}"
    console.print(f"evaluation images of {where} at {size}", highlight=False, soft_wrap=True)
    table = Table("weights", box=None, pad_edge=False)
    for heading in ("top-1 %", "top-5 %", "loss", "images"):
        table.add_column(heading, justify="right")
    for kind, row in rows.items():
        label = f"best of validation (epoch {row['epoch']}, {row['weights']})" if "epoch" in row else kind
        label += " (reported)" if kind == reported else ""
        numbers = (f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}", str(row["images"]))
        table.add_row(label, *numbers)
    console.print(table)


def _print_broken(console: Console, broken: dict[str, str]) -> None:
    for name, reason in list(broken.items())[:10]:
        console.print(f"left out: {name} ({reason})", style="yellow", highlight=False, soft_wrap=True)
    if len(broken) > 10:
        console.print(f"and {len(broken) - 10} more broken images", style="yellow", highlight=False)


def profile_one(config: RunConfig, device: str, workers: int | None) -> None:
    """Where a step's time goes (`metamixer.training.profile`)."""
    from metamixer.training.data import default_workers
    from metamixer.training.profile import report

    workers = default_workers(config.data, device, _processes_here()) if workers is None else workers
    report(config, device=device, workers=workers)
