"""Timing networks on runtimes: in fresh processes, interleaved, until the medians agree or it is said that they don't.

A session is a process of one runtime, in which all networks take turns in shuffled rounds. Sessions of the runtimes
take turns too. A network's latency is the median of its sessions' medians; its spread is how far those lie apart
(10th to 90th percentile), for a session's median drifts by more than the times within it vary.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .. import plugins
from ..cost import Cost, count
from ..fold import fold
from ..networks import Network
from .rows import network_key
from .runtimes import Backend, device, system

PROJECT = Path(__file__).resolve().parents[2]
QUIET = 0.05  # a spread up to this share of the median is small
MOST = 2  # times as many sessions as asked for, where it isn't

Json = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A network to time, folded or as it was trained.

    Its key is the network's own, with ` unfolded` behind it where it isn't folded.
    """

    network: Network
    folded: bool = True

    @property
    def key(self) -> str:
        network = self.network
        channels, _, size = network.input_size
        key = network.name
        if network.run is not None:
            run = network.run.to_dict()
            key = network_key(run["model"], channels, size, run["data"]["num_classes"], run["modules"])
        return key if self.folded else f"{key} unfolded"

    @property
    def name(self) -> str:
        name = Path(self.network.name).name  # of a run's folder
        return name if self.folded else f"{name} (unfolded)"


@dataclass
class Report:
    """Rows as `rows.append` takes them; a line for each network that a runtime did not take; and other notes."""

    rows: list[Json] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Ended(Exception):
    """A session ended before its work was done."""


@dataclass
class _Task:
    """A subject on a runtime: what was written for it, and the samples of each session."""

    subject: Subject
    cost: Cost
    backend: Backend
    files: Json
    sessions: list[list[float]] = field(default_factory=list)
    refused: str = ""

    def medians(self) -> list[float]:
        return [float(np.median(samples)) for samples in self.sessions]

    def spread(self) -> float:
        """NaN for fewer than three sessions, which say nothing of it."""
        medians = self.medians()
        return float(np.subtract(*np.percentile(medians, [90, 10]))) if len(medians) > 2 else float("nan")

    def quiet(self) -> bool | None:
        """None where the spread isn't known."""
        spread = self.spread()
        return None if np.isnan(spread) else spread <= QUIET * float(np.median(self.medians()))


def measure(
    subjects: Sequence[Subject],
    backends: Sequence[Backend],
    threads: int = 1,
    batch: int = 1,
    rounds: int = 5,
    sessions: int = 5,
    progress: Callable[[str, float], None] = lambda doing, share: None,
) -> Report:
    """Time all subjects on all runtimes.

    Ctrl-C ends it with what the finished sessions have measured; a runtime whose process ended before its work was done
    is left out from there on, and said.

    Args:
        rounds: turns that a network has in a session; a turn is some 60 ms of calls, three at least.
        sessions: fresh processes of each runtime; up to twice as many where the spread stays large. Fewer than three
            say nothing of the spread.
        progress: told what is being done, and the share of the work that is done.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        tasks = _prepare(subjects, backends, batch, Path(folder), progress, report.refused)
        try:
            report.refused += _sessions(tasks, threads, rounds, sessions, progress)
        except KeyboardInterrupt:
            report.refused.append("stopped: rows are those of the sessions that had ended")
    for task in tasks:
        name = f"{task.subject.name} on {task.backend.name}"
        if task.refused:
            report.refused.append(f"{name}: {task.refused}")
        elif task.sessions:
            report.rows.append(_row(task, threads, batch))
    return report


def _prepare(
    subjects: Sequence[Subject],
    backends: Sequence[Backend],
    batch: int,
    folder: Path,
    progress: Callable[[str, float], None],
    refused: list[str],
) -> list[_Task]:
    """Each subject written for each runtime, with an image and the scores that eager PyTorch gives, not folded.

    A subject with an operation that nothing counts is left out; `refused` gets a line on it.
    """
    tasks = []
    for i, subject in enumerate(subjects):
        network = subject.network
        model = network.model.eval()
        image = torch.randn(batch, *network.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            reference = model(image)
        files = {"image": str(folder / f"{i}-image.npy"), "reference": str(folder / f"{i}-reference.npy")}
        np.save(files["image"], image.numpy())
        np.save(files["reference"], reference.numpy())
        try:
            cost = count(model, network.input_size)
        except ValueError as error:  # its operations have no count
            refused.append(f"{subject.name}: {error}")
            continue
        timed = (fold(model) if subject.folded else model).requires_grad_(False)
        for j, backend in enumerate(backends):
            progress(f"preparing {subject.name} for {backend.name}", (i + j / len(backends)) / len(subjects))
            path = folder / f"{i}-{backend.name}"
            task = _Task(subject, cost, backend, {**files, "path": str(path)})
            try:
                backend.prepare(timed, image, path)
            except ValueError as error:
                task.refused = str(error)
            tasks.append(task)
    return tasks


def _sessions(
    tasks: list[_Task], threads: int, rounds: int, sessions: int, progress: Callable[[str, float], None]
) -> list[str]:
    """Sessions of all runtimes in turn, shuffled, until each has its number and its networks are quiet.

    Returns:
        A line for each runtime that could not go on.
    """
    backends = {task.backend.name: task.backend for task in tasks}
    ended = []
    draws = random.Random(0)
    for session in range(MOST * sessions):
        waiting = [
            name
            for name in backends
            if (live := [task for task in tasks if task.backend.name == name and not task.refused])
            and (session < sessions or any(task.quiet() is False for task in live))
        ]
        draws.shuffle(waiting)
        for i, name in enumerate(waiting):
            live = [task for task in tasks if task.backend.name == name and not task.refused]
            more = "" if session < sessions else ", once more: too noisy"
            doing = f"{name}, session {session + 1}{more}"
            done, share = (session + i / len(waiting)) / sessions, 1 / len(waiting) / sessions

            def report(part: float, doing: str = doing, done: float = done, share: float = share) -> None:
                progress(doing, min(done + part * share, 1))

            report(0)
            try:
                _session(live, threads, rounds, session, report)
            except _Ended as error:
                ended.append(f"{name}: {error}")
                del backends[name]
    return ended


def _session(tasks: list[_Task], threads: int, rounds: int, seed: int, progress: Callable[[float], None]) -> None:
    """One process; its samples are kept if it comes to its end."""
    modules = dict.fromkeys(source for task in tasks for source in _modules(task.subject.network))
    job = {
        "backend": tasks[0].backend.name,
        "threads": threads,
        "rounds": rounds,
        "seed": seed,
        "modules": list(modules),
        "models": [task.files for task in tasks],
    }
    samples: list[list[float]] = [[] for _ in tasks]
    now = "starting"
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(threads, errors)
        try:
            assert process.stdin and process.stdout
            with process.stdin:
                json.dump(job, process.stdin)
            visits = 0
            for line in process.stdout:
                said = json.loads(line)
                if "refused" in said:
                    tasks[said["refused"]].refused = said["why"]
                elif "loaded" in said:
                    now = f"timing, {tasks[said['loaded']].subject.name} loaded last"
                else:
                    samples[said["model"]] += said["samples"]
                    visits += 1
                    progress(visits / (rounds * len(tasks)))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code:
            errors.seek(0)
            last = ([line.strip() for line in errors if line.strip()] or [""])[-1]
            raise _Ended(f"its process ended with code {code} ({now}): {last[:300]}")
    for task, found in zip(tasks, samples, strict=True):
        if not task.refused:
            task.sessions.append(found)


def _start(threads: int, errors: IO[str]) -> subprocess.Popen[str]:
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "metamixer.latency.session"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        # inductor's pool of compilers would live on beside what is timed
        env={**os.environ, **numbers, "PYTHONPATH": path, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )


def _modules(network: Network) -> Iterable[str]:
    return [] if network.run is None else [str(plugins.path_of(module.digest)) for module in network.run.modules]


def _row(task: _Task, threads: int, batch: int) -> Json:
    backend, network, cost = task.backend, task.subject.network, task.cost
    samples = np.concatenate(task.sessions)
    spread = task.spread()
    return {
        "network": task.subject.key,
        "name": task.subject.name,
        "resolution": network.input_size[2],
        "batch": batch,
        "device": device(),
        "os": system(),
        "runtime": backend.name,
        "version": backend.version(),
        "precision": backend.precision,
        "threads": threads if backend.takes_threads else None,
        "compute_units": backend.compute_units,
        "median_ms": float(np.median(task.medians())),
        "iqr_ms": float(np.subtract(*np.percentile(samples, [75, 25]))),
        "sessions": len(task.sessions),
        "spread_ms": None if np.isnan(spread) else spread,
        "quiet": task.quiet(),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
        "moved": cost.moved,
        "source": "measured",
        "samples_ms": [[float(f"{sample:.4g}") for sample in session] for session in task.sessions],
    }
