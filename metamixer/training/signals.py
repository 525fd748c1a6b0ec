"""The signals that ask a run to stop: Ctrl-C, a kill, and a scheduler's warning."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# They reach every process of a job: the main one saves and then ends its data workers.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written and it goes on from there."""


received: list[int] = []  # by this process, the first one first


class Stop:
    """Whether a signal asked to stop; no threading.Event, in whose `set` a second signal would wait for the first."""

    asked = False

    def __call__(self, number: int, *_: Any) -> None:
        self.asked = True
        received.append(number)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn the signals into a flag that the loop looks at between steps."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    # a launcher may have held it back until here, where it is safe (sweeps.payload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
