"""What a job of a cluster does: train its run in the run's folder, or go on with it, and note how that ended.

Of several runs that share a job's GPU, each has a process and handles its own end; the first that must go on later
requeues the job for all.

SIGUSR2 announces a time limit or a preemption: the job writes its checkpoint and is requeued, within its limits.
SIGTERM alone (scancel, a shutdown) leaves a checkpoint and an interrupted run. After SIGKILL or a lost node SLURM
itself starts the job again, and the run goes on from its newest whole checkpoint.

Each process of a run does this; the first one speaks for all. An error that only another process meets is recorded by
that one, and the first process sees that it is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from metamixer.training.folder import RunFolder

    from .attempts import Attempts
    from .profiles import Profile
    from .submissions import Submission

SIGNAL_SECONDS = 90  # how long before its time limit a job is told
LAST_WORD = 10  # seconds that the first process has to say how a run ended, before another one takes it down
SLACK = 75  # SLURM keeps time by the minute, and tells early rather than late
STARTS = 5  # in a row without a checkpoint, until a job gives up


def signal_delay(minutes: int) -> int:
    """Seconds before the time limit at which SIGUSR2 comes: 90, less in a very short job."""
    return min(SIGNAL_SECONDS, minutes * 60 // 4)


def timed_out(ran: float, minutes: int) -> bool:
    """Whether SIGUSR2 after `ran` seconds meant the time limit; sooner it is a preemption."""
    limit = minutes * 60
    return ran >= max(limit - signal_delay(minutes) - SLACK, limit / 2)


@dataclass(frozen=True)
class Payload:
    """One run as a job, or several that share its GPU; all that they need besides this is in the runs' folder."""

    root: str
    hashes: tuple[str, ...]
    submission: str

    def __call__(self) -> str:
        from metamixer.training.distributed import ProcessLost
        from metamixer.training.folder import RunFolder
        from metamixer.training.signals import Interrupted
        from metamixer.training.state import State, ended
        from sweeps.attempts import Attempts, outcome_of
        from sweeps.snapshot import PROJECT
        from sweeps.states import is_settled
        from sweeps.submissions import newest, read_submission, read_submissions

        root = Path(self.root)
        mine = read_submission(root, self.submission)
        if (root / "snapshots" / mine.snapshot).resolve() != PROJECT:
            raise RuntimeError(f"the job runs the code in {PROJECT}, not its snapshot {mine.snapshot}")
        rank, shared = int(os.environ.get("SLURM_PROCID", "0")), mine.profile.runs_per_gpu > 1
        if shared:
            if rank >= len(self.hashes):
                return "no run for this process"
            hash, rank = self.hashes[rank], 0
            os.environ |= {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}  # it trains its run alone
        else:
            (hash,) = self.hashes
        latest = newest(read_submissions(root)).get(hash)
        if latest is not None and latest[0].id != self.submission:
            return f"left to the newer submission {latest[0].id}"
        folder = RunFolder(root / hash)
        if shared and is_settled(ended(folder), mine):
            return "ended before the job was queued again"
        log_to(folder.path / (f"log-{rank}.txt" if rank else "log.txt"))
        attempts = Attempts(folder, self.submission, rank)
        answer_signals(_stop)  # SIGUSR2 is blocked until training listens
        try:
            if rank == 0 and attempts.idle() >= STARTS:
                raise RuntimeError(f"{STARTS} starts in a row wrote no checkpoint")
            attempts.start(job=job_number(), snapshot=mine.snapshot)
            result = _train(folder, mine.profile)
        except Exception as error:
            answer_signals(signal.SIG_IGN)  # the end takes time, and SLURM sends SIGTERM to a job that it requeues
            if isinstance(error, Interrupted | ProcessLost):
                end_job(attempts, mine, str(error) if isinstance(error, ProcessLost) else "")
            state, note = outcome_of(error)
            if state == State.FAILED and not attempts.failed():  # training records its own errors
                folder.fail(note, 1)
            attempts.stop(state, note=note.removeprefix(f"{folder.path}: "))
            if rank:
                time.sleep(LAST_WORD)
            raise
        attempts.stop(result["state"])
        if result["state"] != State.DONE:
            raise RuntimeError(result.get("error", "the run failed"))  # SLURM is to call it FAILED too
        return str(result["state"])


def answer_signals(handler: Any) -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, handler)


def _stop(number: int, _: Any) -> NoReturn:
    """What a signal does before and after training, which handles it itself."""
    from metamixer.training.signals import Interrupted, received

    received.append(number)
    answer_signals(signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}")


def _train(folder: RunFolder, profile: Profile) -> dict[str, Any]:
    from metamixer.training.train import train

    # a node whose GPUs don't work must not train on its CPU for days
    device = "cuda" if profile.gpus_per_node else "auto"
    config = folder.config()
    return train(config, folder.path, device, max(0, profile.cpus_per_task - config.threads))


def end_job(attempts: Attempts, mine: Submission, lost: str) -> NoReturn:
    """End a job after a signal or a lost process; after SIGUSR2 it is requeued, within its limits.

    A RuntimeError if it is not queued again: SLURM must not call this COMPLETED.
    """
    from metamixer.training.signals import received

    profile, told = mine.profile, received[:1] == [signal.SIGUSR2]
    if attempts.rank:  # the first process speaks for all
        time.sleep(LAST_WORD if lost else 0)
        sys.exit(0)
    if lost and not told:
        time.sleep(LAST_WORD / 2)  # for the other's own words, if it has any
        if attempts.failed():
            raise RuntimeError(lost)
        lost = attempts.last_note() or lost
    reason = "a process was lost" if lost else "stopped"
    if told:
        ran = time.time() - float(os.environ["METAMIXER_JOB_START"])
        reason = "time limit" if timed_out(ran, profile.minutes) else "preempted"
    refusal = ""
    if reason == "time limit" and attempts.time_limits() >= profile.continuations:
        refusal = f"after its {profile.continuations} continuations"
    again = told and not refusal
    attempts.stop(reason, requeue=again, note=lost or refusal or reason)
    if again:
        if profile.runs_per_gpu > 1:
            time.sleep(LAST_WORD)  # the other runs of the job write their checkpoints
            if not is_first(attempts.folder.path.parent / "jobs" / mine.id):
                sys.exit(0)
        refusal = requeue()
        if not refusal:
            sys.exit(0)  # SLURM ends this job and queues it again
        attempts.stop(reason, refused=refusal, note=f"{reason}; {refusal}")
    raise RuntimeError(f"interrupted ({reason}{'; ' + refusal if refusal else ''}); `launch.py retry` goes on")


def is_first(folder: Path) -> bool:
    """Whether this process is the first of its job, since the job began, that wants to have it requeued."""
    begun = os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        (folder / f"requeued-{job_number()}-{begun}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def requeue() -> str:
    """Ask SLURM to queue this job again; returns why it could not."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_number()], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol: {error}"
    return " ".join(done.stderr.split()) if done.returncode else ""


def job_number() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def log_to(path: Path) -> None:
    """From here on this process writes to the run's own log, one for all its attempts."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
