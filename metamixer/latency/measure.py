"""Timing networks on runtimes: in fresh processes, interleaved, until the medians agree or it is said that they don't.

docs/latency.md says how. A session's median drifts by more than the times within it vary.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from .. import plugins
from ..config import ConfigError, from_text
from ..cost import count
from ..fold import fold
from ..networks import Network, of_run
from ..training.run_config import RunConfig
from .rows import Row, network_key
from .runtimes import RUNTIMES, Runtime, device, find_runtime, system

console = Console(highlight=False, soft_wrap=True)

QUIET = 0.05  # a spread up to this share of the median is small
MOST = 2  # times as many sessions as asked for, where it isn't
COSTS = ("parameters", "macs", "activations", "moved")


@dataclass(frozen=True)
class Subject:
    """A network to time, folded or as it was trained.

    Its key is the network's own, with the sides of a rectangle and ` unfolded` behind it.
    """

    network: Network
    folded: bool = True

    @property
    def key(self) -> str:
        run, (_, height, width) = self.network.run, self.network.input_size
        if run is None:
            return self.network.name + self._form
        own = run.data.input_size == self.network.input_size
        key = network_key(run.to_dict(), None if own else width if height == width else (height, width))
        return key if self.folded else f"{key} unfolded"

    @property
    def name(self) -> str:
        own = from_text(self.network.name)
        if isinstance(own, str):
            return Path(own).name + self._form  # of a run's folder
        slots = [own] if "name" in own else own.values()
        return " · ".join(slot if isinstance(slot, str) else slot["name"] for slot in slots) + self._form

    @property
    def _form(self) -> str:
        _, height, width = self.network.input_size
        return ("" if height == width else f" {height}×{width}") + ("" if self.folded else " unfolded")

    def costs(self) -> dict[str, int]:
        """The costs that a row has. Raises ValueError: an operation that nothing counts."""
        found = asdict(count(self.network.model, self.network.input_size))
        return {name: found[name] for name in COSTS}


@dataclass
class Report:
    """Rows; a line for each network that a runtime did not take; other notes."""

    rows: list[Row] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Task:
    """A subject on a runtime: what was written for it, and the samples of each session."""

    subject: Subject
    costs: dict[str, int]
    runtime: Runtime
    files: dict[str, str]
    sessions: list[list[float]] = field(default_factory=list)

    def medians(self) -> np.ndarray:
        return np.array([np.median(samples) for samples in self.sessions])

    def spread(self) -> float | None:
        """None for fewer than three sessions, which say nothing of it."""
        return float(np.subtract(*np.percentile(self.medians(), [90, 10]))) if len(self.sessions) > 2 else None

    def quiet(self) -> bool | None:
        spread = self.spread()
        return None if spread is None else spread <= QUIET * float(np.median(self.medians()))

    def row(self, threads: int, batch: int) -> Row:
        runtime = self.runtime
        return Row(
            network=self.subject.key,
            name=self.subject.name,
            resolution=self.subject.network.input_size[2],
            batch=batch,
            device=device(),
            os=system(),
            runtime=runtime.name,
            version=runtime.version(),
            precision="fp32",
            threads=threads,
            compute_units="CPU",
            median_ms=float(np.median(self.medians())),
            iqr_ms=float(np.subtract(*np.percentile(np.concatenate(self.sessions), [75, 25]))),
            sessions=len(self.sessions),
            spread_ms=self.spread(),
            quiet=self.quiet(),
            **self.costs,
            source="measured",
            samples_ms=tuple(tuple(float(f"{sample:.4g}") for sample in session) for session in self.sessions),
        )


def measure(
    subjects: Sequence[Subject],
    runtimes: Sequence[Runtime],
    threads: int = 1,
    batch: int = 1,
    rounds: int = 5,
    sessions: int = 5,
    show: Callable[[str], object] = lambda doing: None,
) -> Report:
    """Time all subjects on all runtimes.

    Ctrl-C ends it with what the finished sessions have measured. A runtime whose process ended before its work was done
    is left out from there on, and said.

    Args:
        rounds: turns that a network has in a session; a turn is some 60 ms of calls, three at least.
        sessions: fresh processes of each runtime; up to twice as many where the spread stays large. Fewer than three
            say nothing of the spread.
        show: called with what is being done.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        tasks = _prepare(subjects, runtimes, batch, Path(folder), show, report.refused)
        job = {"threads": threads, "rounds": rounds, "folder": folder}
        try:
            _sessions(tasks, job, sessions, show, report.refused)
        except KeyboardInterrupt:
            report.refused.append("stopped: rows are those of the sessions that had ended")
    report.rows = [task.row(threads, batch) for task in tasks if task.sessions]
    return report


def _prepare(
    subjects: Sequence[Subject],
    runtimes: Sequence[Runtime],
    batch: int,
    folder: Path,
    show: Callable[[str], object],
    refused: list[str],
) -> list[_Task]:
    """Each subject written for each runtime, with an image and the scores that eager PyTorch gives, not folded.

    A subject with an operation that nothing counts or that a runtime does not take is left out; `refused` gets a line.
    """
    tasks = []
    plugins.write_copies(folder, [plugin.digest for plugin in plugins.loaded()])
    for i, subject in enumerate(subjects):
        model = subject.network.model.eval()
        image = torch.randn(batch, *subject.network.input_size, generator=torch.Generator().manual_seed(0))
        try:
            costs = subject.costs()
        except ValueError as error:
            refused.append(f"{subject.name}: {error}")
            continue
        with torch.no_grad():
            reference = model(image)
        files = {"image": str(folder / f"{i}-image.npy"), "reference": str(folder / f"{i}-reference.npy")}
        np.save(files["image"], image.numpy())
        np.save(files["reference"], reference.numpy())
        timed = (fold(model) if subject.folded else model).requires_grad_(False)
        for runtime in runtimes:
            show(f"preparing {subject.name} for {runtime.name}")
            path = folder / f"{i}-{runtime.name}"
            try:
                runtime.prepare(timed, image, path)
                tasks.append(_Task(subject, costs, runtime, {**files, "path": str(path)}))
            except ConfigError as error:
                refused.append(f"{subject.name} on {runtime.name}: {error}")
    return tasks


def _sessions(
    tasks: list[_Task], job: dict[str, Any], sessions: int, show: Callable[[str], object], refused: list[str]
) -> None:
    """Sessions of all runtimes in turn, shuffled, until each has its number and its networks are quiet."""
    live: dict[str, list[_Task]] = {}
    for task in tasks:
        live.setdefault(task.runtime.name, []).append(task)
    draws = random.Random(0)
    for session in range(MOST * sessions):
        asked = session < sessions
        waiting = [name for name, some in live.items() if some and (asked or any(t.quiet() is False for t in some))]
        draws.shuffle(waiting)
        for name in waiting:
            show(f"{name}, session {session + 1}" + (f" of {sessions}" if asked else ", one more: too noisy"))
            try:
                lines = _session({**job, "runtime": name, "seed": session}, live[name])
            except RuntimeError as error:
                refused.append(f"{name}: {error}")
                del live[name]
                continue
            live[name] = [task for i, task in enumerate(live[name]) if _keep(task, i, lines, refused)]


def _keep(task: _Task, index: int, lines: list[dict[str, Any]], refused: list[str]) -> bool:
    """Add a session's samples to its task; whether it was not refused."""
    own = [line for line in lines if line["model"] == index]
    why = [line["refused"] for line in own if "refused" in line]
    if why:
        refused.append(f"{task.subject.name} on {task.runtime.name}: {why[0]}")
        task.sessions.clear()
    else:
        task.sessions.append([sample for line in own for sample in line["samples"]])
    return not why


def _session(job: dict[str, Any], tasks: Sequence[_Task]) -> list[dict[str, Any]]:
    """What one process says. Raises RuntimeError: it ended before its work was done."""
    modules = [(plugin.name, plugin.digest) for plugin in plugins.loaded()]
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job["threads"]))
    # this package is found where this process found it, also where it is not installed
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "metamixer.latency.session"],
        input=json.dumps({**job, "modules": modules, "models": [task.files for task in tasks]}),
        capture_output=True,
        text=True,
        env={**os.environ, **numbers, "PYTHONPATH": path},
    )
    if done.returncode:
        last = ([line.strip() for line in done.stderr.splitlines() if line.strip()] or [""])[-1]
        raise RuntimeError(f"its process ended with code {done.returncode}: {last[:300]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def time_networks(subjects: Sequence[Subject], names: Sequence[str], **options: Any) -> Report:
    """`measure` on the runtimes of these names; "all" are those that run here, and the others are named.

    Raises ConfigError: a runtime that was asked for by name and can't run here.
    """
    chosen: dict[str, Runtime] = {}
    for name in [each for given in names for each in (RUNTIMES if given == "all" else [given])]:
        try:
            chosen[name] = find_runtime(name)
        except ConfigError as error:
            if name in names:
                raise
            console.print(f"left out, {name}: {error}", style="dim")
    with console.status("starting") as status:
        show = status.update if console.is_terminal else console.print  # a log has no status
        return measure(subjects, list(chosen.values()), **options, show=show)


def time_runs(name: str, runs: Sequence[RunConfig]) -> list[float]:
    """Milliseconds of runs' networks on a runtime, one thread, one image, timed together.

    Raises ConfigError: the runtime can't run here, or does not take one of the networks.
    """
    subjects = [Subject(of_run(f"network {i}", run)) for i, run in enumerate(runs)]
    report = time_networks(subjects, [name], sessions=3)
    if report.refused:
        raise ConfigError(report.refused[0])
    if not all(row.quiet for row in report.rows):
        console.print("note: this machine is noisy, the widths found here may be off", style="yellow")
    return [row.median_ms for row in report.rows]
