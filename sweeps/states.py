"""Where runs stand: what SLURM says of their jobs, and what their own files say. Reading writes nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

from . import scheduler
from .scheduler import Answer, Job
from .submissions import Submission, newest, read_submissions

SILENT_AFTER = 15 * 60  # seconds without a heartbeat until a run on another machine counts as dead


class State(StrEnum):
    """Where a run stands."""

    NEW = "new"  # nothing there
    QUEUED = "queued"  # submitted to a cluster, not begun or about to go on
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # begun; it goes on from its checkpoint
    FAILED = "failed"  # ended with an error or diverged
    DONE = "done"


@dataclass(frozen=True)
class Standing:
    """A run's state and what it was read from."""

    state: State
    submission: Submission | None = None
    number: str | None = None  # SLURM's, of the job that the run was last submitted as
    job: Job | None = None
    result: dict[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Standings:
    """Every run's standing by hash; `problem` says why SLURM could not be asked, if it had to be."""

    runs: dict[str, Standing]
    problem: str = ""


def find_states(root: Path, hashes: Collection[str]) -> dict[str, State]:
    return {hash: standing.state for hash, standing in find_standings(root, hashes).runs.items()}


def find_standings(root: Path, hashes: Collection[str], submissions: list[Submission] | None = None) -> Standings:
    """Where runs stand; SLURM is asked only about those that it may still hold."""
    found, problem = _with_jobs(read_submissions(root) if submissions is None else submissions)
    latest = newest(found)
    results = {hash: RunFolder(root / hash).result() for hash in hashes}
    numbers = {
        hash: latest[hash][0].job_of(latest[hash][1])
        for hash in hashes
        if hash in latest and not _settled(results[hash], latest[hash][0])
    }
    answer = scheduler.ask(number for number in numbers.values() if number)
    now = time.time()
    standings = {}
    for hash in hashes:
        folder, result = RunFolder(root / hash), results[hash]
        number = numbers.get(hash)
        submission = latest[hash][0] if hash in latest else None
        if hash not in numbers:
            state, note = _from_files(folder, result, now), ""
        else:
            state, note = _from_job(folder, result, number, answer, problem, now)
        standings[hash] = Standing(state, submission, number, answer.jobs.get(number or ""), result, note)
    return Standings(standings, problem or answer.problem)


def _with_jobs(submissions: list[Submission]) -> tuple[list[Submission], str]:
    """The records, each with its job if SLURM has one: the launch may have died before it could write it down."""
    found, problem = [], ""
    for submission in submissions:
        if submission.job is None and submission.error is None:
            try:
                submission = submission.model_copy(update={"job": scheduler.find(submission.id, submission.time)})
            except ConfigError as error:
                problem = str(error)
        found.append(submission)
    return found, problem


def _settled(result: dict[str, Any] | None, submission: Submission) -> bool:
    """Whether a result is final: done, or a failure of the newest submission and not of one before."""
    if result is None:
        return False
    return result["state"] == "done" or result.get("time", 0) > submission.time


def _from_job(
    folder: RunFolder, result: dict[str, Any] | None, number: str | None, answer: Answer, problem: str, now: float
) -> tuple[State, str]:
    """State of a run that was submitted and has no result since."""
    job = answer.jobs.get(number or "")
    if job is not None and job.waiting:
        # e.g. after a failed start on a broken node; it waits until somebody lets it go
        release = f"SLURM holds its job ({job.reason}); `scontrol release {(number or '').split('_')[0]}` lets it go"
        return State.QUEUED, release if "held" in job.reason.lower() else ""
    if job is not None and job.alive:
        return State.RUNNING, ""
    own = _from_files(folder, result, now)
    if job is None and (problem or answer.problem):
        # it may well be waiting there: nothing is known but what its files say
        return (State.QUEUED if own == State.NEW else own), "SLURM does not answer"
    if own in (State.INTERRUPTED, State.RUNNING):
        # its process is gone, whatever its last heartbeat said, unless another launch trains it on this machine
        state = State.RUNNING if folder.is_locked() else State.INTERRUPTED
        return state, f"its job ended: {job.state if job else 'SLURM no longer knows it'}"
    if own == State.FAILED or job is None or job.state == "CANCELLED":
        return own, ""
    # it ended before it could say anything of its own
    if job.state in ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "COMPLETED") or not job.exit_code.endswith(":0"):
        return State.NEW, f"its job ended before it began: {job.state}"
    return State.FAILED, f"its job ended before it began: {job.state}"


def _from_files(folder: RunFolder, result: dict[str, Any] | None, now: float) -> State:
    if result is not None:
        return State(result["state"])
    if not folder.path.is_dir():
        return State.NEW
    if folder.is_locked():
        return State.RUNNING
    progress = folder.read("progress.json")
    if progress is None:
        return State.NEW
    elsewhere = progress.get("host") not in (None, socket.gethostname())
    fresh = now - progress.get("time", 0) < SILENT_AFTER
    # a lock does not reach across machines everywhere
    return State.RUNNING if elsewhere and fresh and progress.get("state") == "running" else State.INTERRUPTED
