"""`attempts.jsonl` of a run's folder: each start of the run, and each end that was still able to say why."""

from __future__ import annotations

import socket
import time
from typing import Any

from metamixer import jsonl
from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder
from metamixer.training.state import State


class Attempts:
    """The starts and stops of one run, here and on clusters.

    Args:
        submission: the cluster's submission that this process belongs to, if any.
        rank: of several processes the first one alone writes.
    """

    def __init__(self, folder: RunFolder, submission: str | None = None, rank: int = 0) -> None:
        self.folder, self.submission, self.rank = folder, submission, rank
        self.path = folder.path / "attempts.jsonl"

    def start(self, **more: Any) -> None:
        """Note a start; the result of an earlier failure is removed."""
        if self.rank:
            return
        if self.failed():
            (self.folder.path / "result.json").unlink()
        self._append(event="start", checkpoint=self._checkpoint(), **more)

    def stop(self, reason: str, **more: Any) -> None:
        """Note an end: the first process does, and another one that met an error of the surroundings."""
        if not self.rank or reason == "interrupted":
            try:
                self._append(event="stop", reason=reason, **more)
            except OSError as error:  # e.g. the disk is full
                print(f"{self.path}: {error.strerror or error}; this end is not noted: {reason} {more}", flush=True)

    def idle(self) -> int:
        """Starts of this submission in a row, the last ones, that wrote no checkpoint."""
        now, idle = self._checkpoint(), 0
        for row in reversed(self.rows()):
            if row.get("event") == "start" and row.get("submission") == self.submission:
                if row.get("checkpoint") != now:
                    break
                idle += 1
        return idle

    def time_limits(self) -> int:
        """How often a time limit led to a new job of this submission."""
        mine = [row for row in self.rows() if row.get("submission") == self.submission]
        return sum(row.get("reason") == "time limit" and bool(row.get("requeue")) for row in mine)

    def last_note(self) -> str:
        """What the last attempt said about its end; nothing if it was killed."""
        rows = self.rows()
        return str(rows[-1].get("note") or "") if rows and rows[-1].get("event") == "stop" else ""

    def rows(self) -> list[dict[str, Any]]:
        return jsonl.read(self.path, report=lambda _: None)  # a kill may tear one

    def failed(self) -> bool:
        return (self.folder.result() or {}).get("state") == "failed"

    def _checkpoint(self) -> int:
        """What tells the newest checkpoint from those before; 0 without one."""
        try:
            return (self.folder.path / "last.pt").stat().st_mtime_ns
        except OSError:
            return 0

    def _append(self, **row: Any) -> None:
        own = {"submission": self.submission} if self.submission else {}
        jsonl.append(self.path, {"time": time.time(), "host": socket.gethostname(), **own, **row})


def outcome_of(error: BaseException) -> tuple[State, str]:
    """How an error ends a run, and a line about it: a signal and the surroundings only interrupt it."""
    from metamixer.training.signals import Interrupted
    from metamixer.training.surroundings import surroundings

    if isinstance(error, Interrupted | ConfigError):
        return State.INTERRUPTED, str(error)
    if (known := surroundings(error)) is not None:  # e.g. the start can't be noted on a full disk
        return State.INTERRUPTED, known
    return State.FAILED, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
