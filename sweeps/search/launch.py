"""Launching a search: workers on this machine, with progress, or as jobs of a cluster."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from metamixer.config import ConfigError
from metamixer.cost import readable
from metamixer.training.folder import RunFolder

from .. import scheduler, slurm, snapshot
from ..cluster import check_budget
from ..follow import Entry
from ..latency import Clock, Timer
from ..local import fork_server
from ..profiles import Profile
from ..submissions import Submission, launch_lock, read_submissions
from .definition import Definition
from .space import dimensions
from .study import create_study, open_study, search_folder
from .trials import TRAINED, Nothing, Owner, Trials, has_finished
from .worker import SearchPayload, work_here

POLL_SECONDS = 0.5
BASE_LATENCY = "base_latency_ms"


@dataclass(frozen=True)
class Launch:
    """A search that is ready for workers."""

    root: Path
    definition: Definition
    trials: Trials
    wanted: int

    @property
    def folder(self) -> Path:
        return search_folder(self.root, self.definition.label)


def prepare(
    root: Path, definition: Definition, wanted: int, storage: str | None = None, timer: Timer | None = None
) -> Launch:
    """Make the study or find it, put into it what is known, deal with what dead workers left; and say so.

    Raises:
        ConfigError: see `study.create_study`; or latency is sought and there is no `timer`, as on a cluster.
    """
    if definition.times and timer is None:
        raise ConfigError("latency is measured on one machine: search it locally, or limit macs and params instead")
    folder = search_folder(root, definition.label)
    base, milliseconds = definition.base_run(), None
    if definition.runtime is not None and timer is not None and not (folder / "search.json").exists():
        # before there is a study: it would hold on to a runtime that can't be used here
        milliseconds = timer(definition.runtime, [base])[0]
    study, _ = create_study(root, definition, storage)
    measure = None
    if definition.runtime is not None and timer is not None:
        known = study.user_attrs.get(BASE_LATENCY, milliseconds)  # of the first launch: one scale for all trials
        measure = Clock(timer, definition.runtime, base, known or timer(definition.runtime, [base])[0])
        study.set_user_attr(BASE_LATENCY, measure.milliseconds)
    trials = Trials(root, folder, Owner.here(f"launch-{uuid.uuid4().hex[:8]}"), measure)
    console = Console(highlight=False, soft_wrap=True)
    came_in = trials.prepare(wanted)
    if came_in:
        console.print(f"{came_in} finished runs in {root} lie in the space and count as trials")
    trials.bury()
    finished = sum(map(has_finished, trials.all()))
    console.print(f"{definition.label}: {finished} of {wanted} trials have finished, in {folder}")
    return Launch(root, definition, trials, wanted)


def print_search(definition: Definition) -> None:
    """What a search asks, its dimensions, what it seeks and within what. Writes nothing."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(f"[bold]{definition.name}[/bold] on {definition.setting}: {definition.question}", highlight=False)
    table = Table("dimension", "range", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, span in dimensions(definition.space):
        table.add_row(escape(name.removeprefix("model.stages.")), escape(span))
    console.print(table)
    on = f"; latency on {definition.runtime}" if definition.runtime else ""
    console.print(f"sought: {', '.join(definition.objectives)}{on}", highlight=False)
    for name, limit in definition.constraints.items():
        console.print(f"{name} at most {readable(limit)}", highlight=False)
    base = definition.base_run()
    words = ", ".join(f"{readable(value)} {name}" for name, value in definition.costs(base).items())
    console.print(f"the base costs {words}; {base.recipe.total_epochs} epochs", highlight=False)


def search_here(launch: Launch, workers: int, device: str) -> bool:
    """Run the search on this machine, one process a worker; returns whether all trials have finished."""
    if sum(map(has_finished, launch.trials.all())) >= launch.wanted:
        return True
    console = Console()
    active = dict[Any, tuple[str, Any]]()
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        for process in active:
            process.terminate()

    with fork_server("sweeps.search.worker", stop) as context:
        for index, place in enumerate(_devices(device, workers)):
            name = f"{index}-{uuid.uuid4().hex[:8]}"
            receiver, sender = context.Pipe(duplex=False)
            root = str(launch.root.resolve())
            arguments = (root, launch.definition.label, name, place, workers, launch.trials.measure, sender)
            process = context.Process(target=work_here, args=arguments)
            if not stopped:
                process.start()
                active[process] = name, receiver
                if stopped:  # while it started, which takes seconds
                    process.terminate()
            sender.close()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            view = _View(launch, progress)
            while active:
                for process in [p for p in active if not p.is_alive()]:
                    name, receiver = active.pop(process)
                    if not (stopped and process.exitcode == -signal.SIGTERM):  # told before it could listen
                        _report(console, launch.folder / "workers" / name, receiver, process.exitcode)
                view.update()
                time.sleep(POLL_SECONDS)
            view.update()
    launch.trials.bury()
    trials = launch.trials.all()
    if stopped:
        console.print("stopped; the same command goes on from here", style="yellow")
    _print_counts(console, trials)
    return sum(map(has_finished, trials)) >= launch.wanted


def _devices(device: str, workers: int) -> list[str]:
    """A device for each worker, the GPUs in turn."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{index % torch.cuda.device_count()}" for index in range(workers)]
    return [device] * workers


def _report(console: Console, folder: Path, receiver: Any, exitcode: int | None) -> None:
    """A line for a worker that ended otherwise than it should."""
    try:
        said, is_error = receiver.recv()
    except (EOFError, OSError):
        name = signal.Signals(-exitcode).name if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
        said, is_error = f"a worker ended by {name}; see {folder / 'log.txt'}", True
    if is_error or said == Nothing.EXHAUSTED.value:
        console.print(said, style="red" if is_error else "yellow", highlight=False, soft_wrap=True, markup=False)


class _View:
    """A bar for the trials and one for each that is being trained; a line for each that has ended."""

    def __init__(self, launch: Launch, progress: Progress) -> None:
        self.launch, self.progress = launch, progress
        self.tasks = dict[int, TaskID]()
        self.ended = {trial.number for trial in launch.trials.all() if trial.state.is_finished()}
        self.whole = progress.add_task("trials", total=launch.wanted, note="")

    def update(self) -> None:
        trials = self.launch.trials.all()
        self.progress.update(self.whole, completed=sum(map(has_finished, trials)))
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.ended:
                self.ended.add(trial.number)
                self.progress.console.print(line(trial, self.launch.definition), highlight=False, soft_wrap=True)
        running = {trial.number: trial for trial in trials if trial.state == TrialState.RUNNING}
        for number, trial in running.items():
            now = RunFolder(self.launch.root / trial.user_attrs["hash"]).read("progress.json") or {}
            if number not in self.tasks:
                self.tasks[number] = self.progress.add_task(f"trial {number}", total=None, note="")
            accuracy = f"val top-1 {now['top1']:.1f}" if now.get("top1") is not None else ""
            self.progress.update(
                self.tasks[number],
                completed=now.get("step", 0),
                total=now.get("steps"),
                note=f"epoch {now.get('epoch', 0)}/{now.get('epochs', '?')} {accuracy}",
            )
        for number in [number for number in self.tasks if number not in running]:
            self.progress.remove_task(self.tasks.pop(number))


def line(trial: FrozenTrial, definition: Definition) -> str:
    """How a trial ended, and what it cost."""
    known = {name: trial.user_attrs[name] for name in ("macs", "params", "latency") if name in trial.user_attrs}
    costs = ", ".join(
        f"{value:.3g} ms" if name == "latency" else f"{readable(value)} {name}" for name, value in known.items()
    )
    source = trial.user_attrs.get("source", "sampler")
    about = f"trial {trial.number}{f' ({source})' if source != 'sampler' else ''}"
    if trial.state == TrialState.COMPLETE and trial.values:
        return f"{about}: val top-1 {trial.values[0]:.2f} %, {costs}"
    if trial.state == TrialState.FAIL or "error" in trial.user_attrs:
        return f"{about}: {'lost' if trial.state == TrialState.FAIL else 'failed'}, {trial.user_attrs.get('error')}"
    if not trial.user_attrs.get(TRAINED):
        over = " and ".join(name for name, value in trial.constraints.items() if value > 0)
        return f"{about}: too costly by {over}, {costs}"
    epoch = max(trial.intermediate_values, default=0)
    return f"{about}: pruned after epoch {epoch}, val top-1 {trial.intermediate_values.get(epoch, 0.0):.2f} %"


def _print_counts(console: Console, trials: list[FrozenTrial]) -> None:
    counts = Counter(outcome(trial) for trial in trials)
    console.print(f"{len(trials)} trials: {', '.join(f'{n} {name}' for name, n in counts.items())}", highlight=False)


def outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return (
            "too costly" if not trial.user_attrs.get(TRAINED) else "failed" if "error" in trial.user_attrs else "pruned"
        )
    return {
        TrialState.COMPLETE: "done",
        TrialState.FAIL: "lost",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }[trial.state]


def search_on_slurm(launch: Launch, workers: int, profile: Profile, max_gpu_hours: float | None = None) -> bool:
    """Submit workers, as many as are missing of those wanted, and return; whether SLURM took them.

    Raises:
        ConfigError: SLURM can't be asked what it already has, a worker would be several processes, or they may take
            more GPU-hours than `max_gpu_hours`.
    """
    if profile.processes > 1:
        raise ConfigError(
            f"a worker is one process, the profile asks for {profile.processes}: take --resource gpus_per_node=1 "
            "and more workers"
        )
    console = Console(highlight=False, soft_wrap=True)
    size = scheduler.max_array_size()
    label = launch.definition.label
    left = launch.wanted - sum(map(has_finished, launch.trials.all()))
    with launch_lock(launch.root):
        alive = _alive(slurm.settle(launch.root, read_submissions(launch.root)), f"search {label}")
        missing = min(workers - alive, left)
        if alive:
            console.print(f"{alive} workers are there already")
        if missing <= 0:
            console.print("nothing to submit")
            return True
        check_budget([(profile, missing)], max_gpu_hours)
        code = snapshot.take(launch.root)
        names = [uuid.uuid4().hex[:12] for _ in range(missing)]
        submitted = slurm.submit(
            launch.root, names, f"search {label}", launch.definition.setting, profile, code, size,
            payload=partial(SearchPayload, label),
        )  # fmt: skip
    for each in submitted:
        if each.job:
            console.print(
                f"job {each.job}: {len(each.hashes)} workers of {label}; "
                f"`launch.py cancel {launch.definition.name}` stops them"
            )
        if each.error:
            console.print(f"sbatch: {each.error}; the same command submits the rest", style="red", markup=False)
    return all(each.error is None for each in submitted)


def _alive(submissions: list[Submission], grid: str) -> int:
    """Workers of this search that SLURM has or will start."""
    numbers = [
        number
        for each in submissions
        if each.grid == grid
        for index in range(len(each.hashes))
        if (number := each.job_of(index))
    ]
    answer = scheduler.ask(numbers)
    if answer.problem:
        raise ConfigError(f"{answer.problem}; what is queued can't be told, so nothing was submitted")
    jobs = (answer.jobs.get(number) for number in numbers)
    return sum(job is not None and (job.waiting or job.alive) for job in jobs)


def entries_of(root: Path, name: str, data: str | None) -> list[Entry]:
    """The trials of the searches of this name, as runs; those that were too costly are none."""
    found = []
    for folder in sorted((root / "searches").glob(f"{name}@{data or '*'}")):
        study, definition = open_study(folder)
        seed = definition.base_run().seed
        found += [
            Entry(trial.user_attrs["hash"], f"trial {trial.number}", seed, definition.name, definition.setting)
            for trial in study.get_trials(deepcopy=False)
            if "hash" in trial.user_attrs and outcome(trial) not in ("too costly", "lost")
        ]
    return found
