"""What SLURM says about jobs, by squeue and, where it works, sacct. Bounded in time, and read-only."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from metamixer.config import ConfigError

TIMEOUT = 15.0  # seconds for each command: a busy controller must not hold up who only looks
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


@dataclass(frozen=True)
class Job:
    """A job's state in SLURM's words, its node, its time so far, the code and signal that it ended with, its reason."""

    state: str
    node: str = ""
    elapsed: str = ""
    exit_code: str = ""
    reason: str = ""  # why it waits; squeue alone knows

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True)
class Answer:
    """Jobs by number (123 or 123_4); `problem` says why SLURM could not be asked. A job that is not in it is gone."""

    jobs: dict[str, Job]
    problem: str = ""


def call(*command: str, timeout: float = TIMEOUT) -> str:
    """Output of a SLURM command.

    Raises:
        ConfigError: it is not there, takes too long or fails; one line.
    """
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


def ask(numbers: Iterable[str]) -> Answer:
    """Where jobs stand; a number is 123, or 123_4 for a task of an array."""
    wanted = set(numbers)
    if not wanted:
        return Answer({})
    listed = ",".join(sorted({number.split("_")[0] for number in wanted}))
    try:
        known = _rows(call("sacct", "-X", "-n", "-P", "-j", listed, "-o", "JobID,State,NodeList,Elapsed,ExitCode"))
    except ConfigError:
        known = {}  # no accounting here
    try:
        current = _rows(call("squeue", "-h", "-r", "-t", "all", "-j", listed, "-o", "%i|%T|%N|%M||%r"))
    except ConfigError as error:
        # of one job that is gone squeue says this, of several it says nothing
        if "Invalid job id" not in str(error):
            return Answer(known, "" if wanted <= known.keys() else str(error))
        current = {}
    # sacct learns of jobs a moment late, calls one cancelled whose processes still write, and one that a controller
    # lost running for ever: what lives, squeue knows
    ended = {number: job for number, job in known.items() if not (job.waiting or job.alive)}
    living = {number: job for number, job in current.items() if job.waiting or job.alive}
    return Answer({**current, **ended, **living})


def find(name: str, since: float) -> str | None:
    """Number of the job with this name, which no other has; None if SLURM took none.

    Raises:
        ConfigError: SLURM can't be asked.
    """
    try:
        rows = call("squeue", "-h", "-t", "all", f"--name={name}", "-o", "%F|%T|%N").splitlines()
        # what SLURM refuses stays visible for a while, failed and without a node
        numbers = [number for number, state, node in (row.split("|") for row in rows) if state != "FAILED" or node]
    except ConfigError as error:
        problem, numbers = str(error), []
    else:
        problem = ""
    if not numbers:
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
        try:
            text = call("sacct", "-X", "-n", "-P", f"--name={name}", "-S", start, "-o", "JobID")
        except ConfigError:
            if problem:
                raise ConfigError(problem) from None
            return None
        numbers = [line.split("_")[0] for line in text.split()]
    return numbers[0] if numbers else None


def cancel(numbers: list[str]) -> None:
    """Cancel jobs.

    Raises:
        ConfigError: scancel fails.
    """
    for start in range(0, len(numbers), 500):  # a command line has a length limit
        call("scancel", *numbers[start : start + 500], timeout=60)


def max_array_size() -> int:
    """Tasks that one array may have.

    Raises:
        ConfigError: SLURM can't be asked.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1001


def _rows(text: str) -> dict[str, Job]:
    jobs = {}
    for line in text.splitlines():
        number, state, node, elapsed, exit_code, reason = (*line.split("|"), "", "", "", "", "")[:6]
        # CANCELLED by 0
        job = Job((state.split() or [""])[0].rstrip("+"), node, elapsed, exit_code, reason)
        for each in _expand(number.strip()):
            jobs[each] = job
    return jobs


def _expand(number: str) -> list[str]:
    """12_[0-2,5%4] → 12_0, 12_1, 12_2, 12_5."""
    found = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", number)
    if not found:
        return [number]
    indices: list[int] = []
    for part in found[2].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()  # type: ignore[union-attr]
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{found[1]}_{index}" for index in indices]
