"""A launch on this machine, as its terminal shows it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

from .grid import PlannedRun
from .local import Outcome, places_of, run_all
from .plan import Plan
from .states import State, find_standings, in_words
from .submissions import launch_lock

BETWEEN_LOOKS = 5.0  # seconds, at runs of another launch


def run_with_progress(plans: Sequence[Plan], workers: int, device: str, retry: bool) -> bool:
    """Run the missing runs of plans with one folder on this machine; returns whether all runs are done."""
    console, root = Console(highlight=False, soft_wrap=True), plans[0].root
    runs = list({run.hash: run for plan in plans for run in plan.missing(retry)}.values())
    say_left_alone(sum((plan.count() for plan in plans), Counter[State]()), retry)
    with launch_lock(root):
        for plan in plans:
            plan.write_manifest()
            plan.put_aside()
    if not runs:
        console.print("nothing to run")
    elif show_training(runs, len(runs), root, workers, device):
        console.print("stopped; the same command goes on from here", style="yellow")
        return False
    return _all_done(console, root, {hash for plan in plans for hash in plan.states})


def _all_done(console: Console, root: Path, hashes: set[str]) -> bool:
    """Whether all runs are done, once those that another launch trains on this machine have ended."""
    said = False
    try:
        while True:
            now = find_standings(root, hashes).runs
            if not any(each.state == State.RUNNING and each.job is None for each in now.values()):
                break
            if not said:
                console.print("waiting for the runs that another launch trains", style="yellow")
                said = True
            time.sleep(BETWEEN_LOOKS)
    except KeyboardInterrupt:
        return False
    counts = Counter(each.state for each in now.values())
    console.print(f"{len(hashes)} runs: {in_words(counts)}")
    return counts[State.DONE] == len(hashes)


def say_left_alone(counts: Counter[State], retry: bool) -> None:
    """Say which runs a launch leaves alone, and why."""
    alone = {State.RUNNING, State.QUEUED} | (set() if retry else {State.FAILED})
    if said := in_words(Counter({state: number for state, number in counts.items() if state in alone})):
        Console(style="yellow").print(f"left alone: {said}" + ("" if retry else "; --retry trains failed runs again"))


def show_training(runs: Iterable[PlannedRun], total: int, root: Path, workers: int, device: str) -> bool:
    """Train runs on this machine and show how they go; returns whether a signal stopped it early.

    A bar shows all runs and one each active run. A line says how a run ended; the same problem is said once.

    Args:
        total: how many runs there will be.
    """
    said, stopped = set[str](), False
    bars = dict[str, TaskID]()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        all_runs = progress.add_task("all runs", total=total, note="")
        for active, ended, signalled in run_all(runs, root, workers, device):
            stopped = signalled
            for outcome in ended:
                if outcome.state == State.DONE or outcome.message not in said:
                    progress.console.print(_line(root, outcome), highlight=False, soft_wrap=True)
                said.add(outcome.message)
                progress.advance(all_runs)
            for run in active:
                if run.hash not in bars:
                    bars[run.hash] = progress.add_task(run.name, total=None, note="")
                now = RunFolder(root / run.hash).read("progress.json") or {}
                steps = {"completed": now.get("step", 0), "total": now.get("steps")}
                progress.update(bars[run.hash], note=_note(run, now), **steps)
            for hash in bars.keys() - {run.hash for run in active}:
                progress.remove_task(bars.pop(hash))
    return stopped


def _note(run: PlannedRun, now: dict[str, float]) -> str:
    """Where an active run is, by its `progress.json`."""
    loss, score = now.get("loss"), now.get("score")
    note = f"epoch {now.get('epoch', 0)}/{now.get('epochs', '?')}"
    note += f" loss {loss:.3f}" if loss is not None else ""
    return note + (f" val {run.config.metrics[0].text(score)}" if score is not None else "")


def _line(root: Path, outcome: Outcome) -> str:
    """How a run ended: its score on the validation samples, or on the test samples where it has no others."""
    run, folder = outcome.run, RunFolder(root / outcome.run.hash)
    if outcome.state == State.DONE:
        metric, result = run.config.metrics[0], folder.result() or {}
        score = (folder.read("progress.json") or {}).get("score")
        text = f"val {metric.text(score)}" if score is not None else metric.text(result[metric.name])
        return f"{run.name}: {text} in {result['seconds']:.0f} s"
    return f"{run.name}: {outcome.state}, {outcome.message}; log: {root / run.hash / 'log.txt'}"


def parallel_runs(device: str, runs_per_gpu: int | None = None, workers: int | None = None) -> int:
    """Runs at a time: `workers` in all, or so many for each GPU, or without GPUs one for each core of this process."""
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
