"""What a launch shows in the terminal: the plan, and progress while runs are trained."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from metamixer.branches import probed, token_range
from metamixer.config import ConfigError
from metamixer.cost import Cost, readable
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

from .grid import PlannedRun, blaming
from .iso_cost import cost
from .local import Outcome, places_of, run_all, run_here
from .plan import Plan
from .states import State, find_standings
from .submissions import launch_lock

LARGE = 2.0  # GiB of one tensor from which a plan warns
LITTLE_WORK = 1e10  # multiply-adds that a plan may spend to see how branches start, about a second
ROWS = 100  # of a plan's table: nobody reads more
BETWEEN_LOOKS = 1.0  # seconds, at runs of another launch


def print_plan(plan: Plan) -> None:
    """The variants of a plan with what differs, what they cost, how they start and where their runs stand."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(f"[bold]{plan.loaded.name}[/bold] on {plan.data}: {plan.loaded.question}", highlight=False)
    variants = dict[str, list[PlannedRun]]()
    for run in plan.runs:
        variants.setdefault(run.variant, []).append(run)
    costs, warned = dict[str, Cost](), dict[str, str]()
    for name in track(variants, "counting", console=console, transient=True, disable=len(variants) < 20):
        run = variants[name][0]
        with blaming(name):
            costs[name] = cost(run.config)
        for warning in [*run.config.warnings(), *_two_worlds(run), *_large(run.config, costs[name])]:
            warned.setdefault(warning, name)
    work = sum(spent.macs * probed(variants[name][0].config.data.input_size) for name, spent in costs.items())
    table = Table("variant", "changes", box=None, pad_edge=False)
    for heading in ("widths", "params", "MACs", *(["branch"] if work <= LITTLE_WORK else []), "runs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, runs in list(variants.items())[:ROWS]:
        variant, states = runs[0].declared, Counter(plan.states[run.hash] for run in runs)
        with blaming(name):
            branch = [_branch(runs[0].config)] if work <= LITTLE_WORK else []
        table.add_row(
            name,
            _changes(variant.changes, variant.on, name == plan.loaded.grid.base),
            ", ".join(str(stage.width) for stage in runs[0].config.model.stages),
            readable(costs[name].parameters),
            readable(costs[name].macs),
            *branch,
            " ".join(f"{number} {state}" for state, number in states.items()),
        )
    console.print(table)
    if len(variants) > ROWS:
        console.print(f"and {len(variants) - ROWS} more variants")
    counts = plan.count()
    by_state = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    console.print(f"{_product(plan)}{len(plan.states)} runs: {by_state}", highlight=False)
    for warning, name in warned.items():
        console.print(f"note: {name}: {warning}", style="yellow", highlight=False)
    if plan.changed:
        files = sorted({file for files in plan.changed.values() for file in files})
        shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        console.print(
            f"note: {len(plan.changed)} finished runs were trained by other code ({shown}); `run --retrain` trains "
            "them again",
            style="yellow",
            highlight=False,
        )
    for name, reason in plan.loaded.grid.left_out.items():
        console.print(f"left out: {name}: {reason}", style="yellow", highlight=False)


def _branch(config: RunConfig) -> str:
    """The token mixers' branches at initialisation over their inputs: the ratio of the spreads, or its range."""
    low, high = (f"{ratio:.2g}" for ratio in token_range(config.build(), config.data.input_size))
    return low if low == high else f"{low}–{high}"


def _product(plan: Plan) -> str:
    """What a set of learning rates makes of a grid, e.g. `9 variants × 3 learning rates (…) × 3 seeds = `."""
    rates = sorted({run.lr for run in plan.runs if run.lr is not None})
    sizes = {"variants": len({run.variant for run in plan.runs}), "rates": len(rates),
             "seeds": len({run.seed for run in plan.runs})}  # fmt: skip
    if not rates or prod(sizes.values()) != len(plan.states):
        return ""
    shown = ", ".join(f"{rate:g}" for rate in rates)
    return f"{sizes['variants']} variants × {len(rates)} learning rates ({shown}) × {sizes['seeds']} seeds = "


def _two_worlds(run: PlannedRun) -> list[str]:
    """A warning that a variant changes, e.g., its model and its recipe; or its own reason to do more than it names."""
    if run.declared.also is not None:
        return [f"it changes more than it names: {run.declared.also}"]
    worlds = {key.split(".")[0] for key in run.declared.changes} - {"seed", "modules"}
    if len(worlds) < 2:
        return []
    return [f"it changes {' and '.join(sorted(worlds))} at once: the effect of each can't be told apart"]


def _large(config: RunConfig, spent: Cost) -> list[str]:
    """A warning where a single tensor of a forward pass takes gigabytes; training keeps several of them."""
    images = config.recipe.micro_batch or config.recipe.batch_size
    size = spent.largest_bytes(images, 32 if config.recipe.precision == "float32" else 16) / 2**30
    if size < LARGE:
        return []
    return [f"its largest tensor takes {size:.1f} GiB in a pass of {images} images: lower recipe.micro_batch"]


def run_with_progress(
    plans: Sequence[Plan], workers: int, device: str, retry: bool, debug: bool = False
) -> bool:  # fmt: skip
    """Run the missing runs of plans with one folder on this machine; returns whether all runs are done.

    With `debug`, in this process and one after another.
    """
    console = Console()
    missing = {run.hash: run for plan in plans for run in plan.missing(retry)}
    say_left_alone(sum((plan.count() for plan in plans), Counter[State]()), retry)
    root = plans[0].root
    with launch_lock(root):
        for plan in plans:
            plan.write_manifest()
            plan.put_aside()
    runs, stopped = list(missing.values()), False
    if not runs:
        console.print("nothing to run")
    elif debug:
        _show_problems(console, run_here(runs, root, device), at_least=1)
    else:
        outcomes, stopped = show_training(runs, len(runs), root, workers, device)
        _show_problems(console, outcomes)
    if stopped:
        console.print("stopped; the same command goes on from here", style="yellow")
        return False
    return _all_done(console, root, {hash for plan in plans for hash in plan.states})


def _all_done(console: Console, root: Path, hashes: set[str]) -> bool:
    """Whether all runs are done, once those that another launch trains on this machine have ended."""
    said = False
    try:
        while True:
            now = find_standings(root, hashes).runs
            hashes = {hash for hash, each in now.items() if each.state != State.DONE}
            others = [hash for hash in hashes if now[hash].state == State.RUNNING and now[hash].job is None]
            if not others:
                return not hashes
            if not said:
                console.print(f"waiting for {len(others)} runs that another launch trains", style="yellow")
                said = True
            time.sleep(BETWEEN_LOOKS)
    except KeyboardInterrupt:
        return False


def say_left_alone(counts: Counter[State], retry: bool) -> None:
    """Say which runs a launch leaves alone, and why."""
    console = Console()
    if counts[State.FAILED] and not retry:
        console.print(f"{counts[State.FAILED]} failed runs are left alone; --retry runs them again", style="yellow")
    if counts[State.RUNNING]:
        console.print(f"{counts[State.RUNNING]} runs are being trained by another process", style="yellow")
    if counts[State.QUEUED]:
        console.print(f"{counts[State.QUEUED]} runs wait in a cluster's queue", style="yellow")


def show_training(
    runs: Iterable[PlannedRun],
    total: int,
    root: Path,
    workers: int,
    device: str,
    describe: Callable[[Outcome], str | None] | None = None,
) -> tuple[list[Outcome], bool]:
    """Train runs on this machine and show how they go; see `run_all` for what comes back.

    Args:
        total: how many runs there will be.
        describe: a line on how a run ended, where that of a grid's run does not do.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        return run_all(runs, root, workers, device, _View(root, progress, total, describe).update)


def _show_problems(console: Console, outcomes: list[Outcome], at_least: int = 2) -> None:
    """Print each problem that `at_least` so many runs had, once with their number."""
    problems = [outcome for outcome in outcomes if outcome.state not in (State.DONE, State.RUNNING)]
    for message, number in Counter(outcome.message for outcome in problems).items():
        if number >= at_least:
            first = next(outcome.run for outcome in problems if outcome.message == message)
            others = f" and {number - 1} more" if number > 1 else ""
            console.print(f"{first.name}{others}: {message}", style="red", highlight=False, soft_wrap=True)


def parallel_runs(device: str, runs_per_gpu: int | None = None, workers: int | None = None) -> int:
    """Runs at a time: `workers` in all, or so many for each GPU, or without GPUs one for each core of this process.

    Raises:
        ConfigError: runs for each GPU, where there is none or `workers` is given too.
    """
    if workers is not None:
        if runs_per_gpu is not None:
            raise ConfigError("--workers and --runs-per-gpu: give one of them")
        return workers
    places = places_of(device)
    if places[0] not in ("auto", "cpu"):
        return len(places) * (runs_per_gpu or 1)
    if runs_per_gpu is not None:
        raise ConfigError("--runs-per-gpu: there is no GPU here; --workers N trains N runs at a time")
    # macOS knows no affinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _View:
    """A bar for the grid and one for each active run; a line for each finished one, and for each problem once."""

    def __init__(
        self, root: Path, progress: Progress, total: int, describe: Callable[[Outcome], str | None] | None
    ) -> None:
        self.root, self.progress, self.describe = root, progress, describe or self._line
        self.all = progress.add_task("all runs", total=total, note="")
        self.tasks: dict[str, TaskID] = {}
        self.reported = 0
        self.said = set[str]()

    def update(self, active: list[PlannedRun], outcomes: list[Outcome]) -> None:
        for outcome in outcomes[self.reported :]:
            if line := self.describe(outcome):
                self.progress.console.print(line, highlight=False, soft_wrap=True)
        self.reported = len(outcomes)
        self.progress.update(self.all, completed=len(outcomes))
        for run in active:
            now = RunFolder(self.root / run.hash).read("progress.json") or {}
            if run.hash not in self.tasks:
                self.tasks[run.hash] = self.progress.add_task(run.name, total=None, note="")
            loss, score = now.get("loss"), now.get("score")
            note = [f"epoch {now.get('epoch', 0)}/{now.get('epochs', '?')}"]
            note += [f"loss {loss:.3f}"] if loss is not None else []
            note += [f"val {run.config.metrics[0].text(score)}"] if score is not None else []
            steps = {"completed": now.get("step", 0), "total": now.get("steps")}
            self.progress.update(self.tasks[run.hash], note=" ".join(note), **steps)
        for hash in self.tasks.keys() - {run.hash for run in active}:
            self.progress.remove_task(self.tasks.pop(hash))

    def _line(self, outcome: Outcome) -> str | None:
        run, result = outcome.run, RunFolder(self.root / outcome.run.hash).result() or {}
        if outcome.state == State.DONE:
            metric = run.config.metrics[0]
            return f"{run.name}: {metric.text(result[metric.name])} in {result['seconds']:.0f} s"
        if outcome.message in self.said:
            return None
        self.said.add(outcome.message)
        return f"{run.name}: {outcome.state}, {outcome.message}; log: {self.root / run.hash / 'log.txt'}"


def _changes(changes: dict[str, object], on: str | None, is_base: bool) -> str:
    if is_base:
        return "base"
    parts = []
    for key, value in changes.items():
        short = key.removeprefix("model.stages.*.")
        if isinstance(value, dict):
            name, rest = value.get("name"), [f"{k}={v}" for k, v in value.items() if k != "name"]
            # a mixer is shown by its operations, in the order of the slots
            value = f"{name}({', '.join(rest)})" if name else " · ".join(str(_name(v)) for v in value.values())
        parts.append(f"{short.removeprefix('token_mixer.')} → {value}")
    return (f"on {on}: " if on else "") + "; ".join(parts)


def _name(value: object) -> object:
    return value.get("name") if isinstance(value, dict) else value
