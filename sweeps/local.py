"""Runs on this machine: one process for each, several at a time, one thread each on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

from .attempts import Attempts, outcome_of
from .grid import PlannedRun
from .payload import log_to
from .states import State

POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """How a run's process ended: its state, and a line about what went wrong."""

    run: PlannedRun
    state: State
    message: str = ""


@contextmanager
def fork_server(stop: Callable[..., None]) -> Iterator[Any]:
    """A context of multiprocessing whose processes begin with torch imported; SIGINT and SIGTERM call `stop`."""
    # every process inherits them from the server
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metamixer.training.preload", "sweeps.local"])
    # Ctrl-C reaches the server too, which imports for seconds before it ignores the signal
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, stop)
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
    try:
        yield context
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(
    runs: Iterable[PlannedRun], root: Path, workers: int, device: str
) -> Iterator[tuple[list[PlannedRun], list[Outcome], bool]]:
    """Run everything in `runs`, `workers` at a time; each is taken from `runs` when a worker is free.

    A forked process that has its imports done starts in milliseconds and takes nothing else down when it dies.

    Yields:
        A few times a second the active runs, the outcomes since the last time, and whether SIGINT or SIGTERM came.
        Active runs are then asked to stop; each writes its checkpoint and goes on with the next launch.
    """
    waiting, ended = iter(runs), list[Outcome]()
    active: dict[Any, tuple[PlannedRun, Any, str]] = {}  # run, end of its pipe and device by process
    places = places_of(device)
    stopped, more = False, True

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        for process in active:
            process.terminate()

    with fork_server(stop) as context:
        while active or (more and not stopped):
            while more and not stopped and len(active) < workers:
                run = next(waiting, None)
                if run is None:
                    more = False
                    break
                try:
                    RunFolder(root / run.hash).create(run.config)
                except ConfigError as error:
                    ended.append(Outcome(run, State.INTERRUPTED, str(error)))
                    continue
                receiver, sender = context.Pipe(duplex=False)
                place = min(places, key=[used for _, _, used in active.values()].count)  # the GPU with the fewest runs
                process = context.Process(target=_run_one, args=(str(root / run.hash), place, workers, sender))
                process.start()
                sender.close()
                active[process] = run, receiver, place
                if stopped:  # while it started, which the first one does for seconds
                    process.terminate()
            time.sleep(POLL_SECONDS)
            for process in [p for p in active if not p.is_alive()]:
                run, receiver, _ = active.pop(process)
                ended.append(_outcome(run, receiver, process.exitcode))
            yield [run for run, _, _ in active.values()], ended, stopped
            ended = []


def places_of(device: str) -> list[str]:
    """The devices for runs: all GPUs if there are several, otherwise the given device.

    Raises ConfigError: it can't be used here, which every run would find out anew.
    """
    if device == "cpu":
        return [device]
    import torch

    if torch.cuda.is_available() and device in ("auto", "cuda"):
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch can use no GPU here")
    if device.partition(":")[0] not in ("auto", "cuda", "mps", "xpu"):
        raise ConfigError(f"--device {device}: give auto, cpu, cuda or cuda:N")
    return [device]


def _outcome(run: PlannedRun, receiver: Any, exitcode: int | None) -> Outcome:
    try:
        state, message = receiver.recv()
        return Outcome(run, State(state), message)
    except (EOFError, OSError):  # it died without a word
        name = signal.Signals(-exitcode).name if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
        return Outcome(run, State.INTERRUPTED, f"its process ended by {name}")


def attempt(config: RunConfig, path: str, device: str, beside: int = 1) -> tuple[State, str]:
    """Train a run as far as it goes, one of `beside` on this machine.

    Returns how it ended and a line about that. An error of the run's own prints its traceback.
    """
    from metamixer.training.data import default_workers
    from metamixer.training.folder import RunBusy
    from metamixer.training.train import train

    attempts = Attempts(RunFolder(path))
    if attempts.folder.is_locked():
        return State.RUNNING, "another launch trains it"
    try:
        workers = default_workers(config.data, device, beside)
        attempts.start()
        result = train(config, path, device, workers)
        state, note = State(result["state"]), result.get("error", "")
    except RunBusy as error:
        return State.RUNNING, str(error)
    except Exception as error:
        state, note = outcome_of(error)
        if state == State.FAILED:
            traceback.print_exc()
    note = note.removeprefix(f"{path}: ")
    attempts.stop(state, note=note)
    return state, note


def _run_one(path: str, device: str, beside: int, sender: Any) -> None:
    """Body of a run's process; sends its final state and a line about it."""
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        folder = RunFolder(path)
        config = folder.config()
        log_to(folder.path / "log.txt")
    except (ConfigError, OSError) as error:
        sender.send((State.INTERRUPTED, str(error)))
        return
    sender.send(attempt(config, path, device, beside))
