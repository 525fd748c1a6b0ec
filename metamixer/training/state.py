"""Where a run stands by what its own folder says: the one place that works it out."""

from __future__ import annotations

import socket
import time
from enum import StrEnum
from typing import Any

from .folder import RunFolder

SILENT_AFTER = 15 * 60  # seconds without a heartbeat until a run on another machine counts as dead


class State(StrEnum):
    """Where a run stands."""

    NEW = "new"  # it never began
    QUEUED = "queued"  # submitted to a cluster, not begun or about to go on
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # it goes on from its checkpoint when it is launched again
    FAILED = "failed"  # ended with an error of its own, or diverged
    DONE = "done"


def ended(folder: RunFolder) -> dict[str, Any] | None:
    """The result of a run that is done or failed."""
    result = folder.result()
    return result if isinstance(result, dict) and result.get("state") in (State.DONE, State.FAILED) else None


def state_of(folder: RunFolder) -> State:
    """The state of a run, from its folder alone; reading writes nothing."""
    result = ended(folder)
    if result is not None:
        return State(result["state"])
    if not folder.path.is_dir():
        return State.NEW
    if folder.is_locked():
        return State.RUNNING
    progress = folder.read("progress.json")
    if progress is None:
        traces = ("progress.json", "result.json", "attempts.jsonl")  # one may be half-written
        return State.INTERRUPTED if any((folder.path / name).exists() for name in traces) else State.NEW
    elsewhere = progress.get("host") not in (None, socket.gethostname())
    fresh = time.time() - progress.get("time", 0) < SILENT_AFTER
    # a lock does not reach across machines everywhere
    return State.RUNNING if elsewhere and fresh and progress.get("state") == "running" else State.INTERRUPTED
