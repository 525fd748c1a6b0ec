"""Batches by their keys, made by data workers or in this process."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..tasks import Task
from .signals import STOP_SIGNALS
from .surroundings import SurroundingsError

Batch = tuple[Tensor, Tensor]
Made = tuple[Tensor, Tensor, dict[str, str]] | ConfigError
_DIED = ("DataLoader worker (pid", "received 0 items of ancdata")
Key = tuple[int, str, range]  # seed, split and the samples' numbers: what a batch is made from


class Samples(torch.utils.data.Dataset):
    """A batch by its key: inputs, answers, and the broken images that were met; or the error of a user."""

    def __init__(self, task: Task, device: torch.device | str) -> None:
        self.task, self.device = task, device

    def __getitem__(self, key: Key) -> Made:
        seed, split, numbers = key
        indices = torch.arange(numbers.start, numbers.stop, device=self.device)
        try:
            return *self.task.samples(seed, split, indices), self.task.broken
        except ConfigError as error:
            return error  # torch would wrap a worker's exception in a traceback


class Loader:
    """One set of data workers for all splits and epochs. One iteration at a time: a new one ends the one before."""

    def __init__(self, samples: Samples, workers: int) -> None:
        self.keys = _Keys()
        self.loader = torch.utils.data.DataLoader(
            samples,
            batch_size=None,  # a worker makes whole batches
            sampler=self.keys,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_stop_signals,
        )
        # before the interpreter waits for its child processes
        weakref.finalize(self, _stop_workers, self.loader)

    def run(self, keys: Iterator[Key]) -> Iterator[Made]:
        self.keys.iterator = keys
        try:
            with _undisturbed_start():
                batches = iter(self.loader)
            yield from batches
        except (RuntimeError, EOFError, OSError) as error:
            # the last two when it died between a batch and its hand-over
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _DIED):
                raise
            raise SurroundingsError(
                "a data worker died, often because memory or space in /dev/shm ran out: launch again to go on, with "
                f"fewer data workers than {self.loader.num_workers} if it happens again"
            ) from None


class _Keys(torch.utils.data.Sampler):
    """What the loader makes next."""

    iterator: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.iterator


@contextmanager
def _undisturbed_start() -> Iterator[None]:
    """Hold signals back until workers ignore them, and keep SIGCHLD's handler: torch's raises in whatever runs then."""
    before = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _ignore_stop_signals(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop_workers(loader: Any) -> None:
    if getattr(loader, "_iterator", None) is not None:
        loader._iterator._shutdown_workers()
