"""Where runs stand: what SLURM says of their jobs, and what their own files say. Reading writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamixer.training.folder import RunFolder
from metamixer.training.state import State, ended, state_of

from . import scheduler
from .attempts import Attempts
from .scheduler import Job
from .submissions import Submission, newest, read_submissions

USUAL = ("", "None", "Priority", "Resources")  # reasons to wait that nobody needs to look into


@dataclass(frozen=True)
class Standing:
    """A run's state and what it was read from."""

    state: State
    submission: Submission | None = None
    number: str | None = None  # SLURM's, of the job that the run was last submitted as; None once it has a result
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


def find_standings(root: Path, hashes: Collection[str]) -> Standings:
    """Where runs stand; SLURM is asked only about those that it may still hold."""
    latest = newest(read_submissions(root))
    results = {hash: ended(RunFolder(root / hash)) for hash in hashes}
    open_ = {hash: latest[hash] for hash in hashes if hash in latest and not is_settled(results[hash], latest[hash][0])}
    submissions = [submission for submission, _ in open_.values()]
    jobs, problem = scheduler.ask(
        {submission.id for submission in submissions}, min((each.time for each in submissions), default=0.0)
    )
    standings = {}
    for hash, result in results.items():
        submission, index = latest.get(hash, (None, 0))
        folder = RunFolder(root / hash)
        if result and hash not in open_:
            standings[hash] = Standing(State(result["state"]), submission, result=result)
        elif submission is None:
            state = state_of(folder)
            standings[hash] = Standing(state, note=Attempts(folder).last_note() if state == State.INTERRUPTED else "")
        else:
            job = jobs.get((submission.id, index))
            state, note = _of_job(folder, job, problem)
            number = job.number if job else submission.number_of(index)
            standings[hash] = Standing(state, submission, number, job, result, note)
    return Standings(standings, problem)


def in_words(counts: Counter[State]) -> str:
    """E.g. `2 failed, 4 done`."""
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def is_settled(result: dict[str, Any] | None, submission: Submission) -> bool:
    """Whether a result is final: done, or a failure of the newest submission and not of one before."""
    return result is not None and (result["state"] == "done" or result.get("time", 0) > submission.time)


def _of_job(folder: RunFolder, job: Job | None, problem: str) -> tuple[State, str]:
    """State of a run that was submitted and has no result since, and a note about it."""
    if job is not None and job.waiting:
        # a job that failed to start on a broken node waits until somebody lets it go
        held = "held" in job.reason.lower()
        advice = f"; `scontrol release {job.number.split('_')[0]}` lets it go" if held else ""
        return State.QUEUED, "" if job.reason in USUAL else f"it waits, says SLURM: {job.reason}{advice}"
    if job is not None and job.alive:
        return State.RUNNING, ""
    own = state_of(folder)
    if job is None and problem:
        # it may well wait there: nothing is known but what its files say
        return (State.QUEUED if own == State.NEW else own), "SLURM does not answer"
    # the process of a job that ended is gone, whatever its last heartbeat said; another launch may train the run here
    if own in (State.DONE, State.FAILED) or folder.is_locked():
        return own, ""
    never_began = own == State.NEW
    if never_began and (job is None or job.state == "CANCELLED"):
        return State.NEW, ""
    note = f"its job ended{' before the run began' if never_began else ''}: " + (
        f"{job.state}, exit code {job.exit_code}" if job else "SLURM no longer knows it"
    )
    return State.INTERRUPTED, Attempts(folder).last_note() or note
