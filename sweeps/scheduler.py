"""What SLURM says about jobs, by squeue and, where it works, sacct. Bounded in time, and read-only."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

from metamixer.config import ConfigError

TIMEOUT = 15.0  # seconds for each command: a busy controller must not delay `status`
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


class Job(NamedTuple):
    """A job as SLURM describes it."""

    number: str  # 123, or 123_4 in an array
    state: str
    exit_code: str = ""  # code and signal that it ended with
    reason: str = ""  # to wait; squeue alone knows it

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


Jobs = dict[tuple[str, int], Job]  # by name and index in the array


def call(*command: str, timeout: float = TIMEOUT) -> str:
    """Output of a SLURM command; a ConfigError if it is not there, takes too long or fails."""
    # an array of thousands is written out whole
    environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except OSError:
        raise ConfigError(f"no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} gave no answer in {timeout:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ConfigError(f"{command[0]}: {lines[-1]}")
    return done.stdout


def ask(names: Iterable[str], since: float) -> tuple[Jobs, str]:
    """Where the jobs of these names stand, and why SLURM could not be asked; a job that is not in it is gone.

    Args:
        since: all of them were submitted after this time, in seconds since the epoch.
    """
    wanted = ",".join(sorted(set(names)))
    if not wanted:
        return {}, ""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    form = "JobName,JobID,State,ExitCode"
    try:
        known = _rows(call("sacct", "-X", "-n", "-P", f"--name={wanted}", "-S", start, "-o", form))
    except ConfigError:
        known = {}  # no accounting here
    try:
        current = _rows(call("squeue", "-h", "-r", "-t", "all", f"--name={wanted}", "-o", "%j|%i|%T||%r"))
    except ConfigError as error:
        return known, str(error)
    # sacct learns of jobs a moment late, calls one cancelled whose processes still write, and one that a controller
    # lost running for ever: squeue knows what lives
    ended = {key: job for key, job in known.items() if not (job.waiting or job.alive)}
    living = {key: job for key, job in current.items() if job.waiting or job.alive}
    return {**current, **ended, **living}, ""


def cancel(numbers: list[str]) -> None:
    """Cancel jobs."""
    for start in range(0, len(numbers), 500):  # a command line has a length limit
        call("scancel", *numbers[start : start + 500], timeout=60)


def max_array_size() -> int:
    """Jobs that one array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1001


def _rows(text: str) -> Jobs:
    jobs = {}
    for line in text.splitlines():
        name, number, state, *rest = line.split("|")
        index = number.partition("_")[2] or "0"
        if index.isdigit():  # sacct has one row, 12_[0-5], for all tasks that were cancelled before they began
            # CANCELLED by 0
            jobs[name, int(index)] = Job(number, (state.split() or [""])[0].rstrip("+"), *rest)
    return jobs
