"""What was submitted to a cluster: one small file for each job array in `jobs/` of the runs' folder.

A record is written before sbatch is called, so that no job can exist unrecorded. A job has its record's name, by which
SLURM is asked for it, whether or not the launch lived to write down the job's number.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from metamixer.config import Config, ConfigError, parse
from metamixer.training.folder import RunFolder

from .profiles import Profile


class Submission(Config, extra="ignore"):  # older records hold more
    """One call of sbatch: a job, or an array of jobs, each for `profile.runs_per_gpu` runs."""

    id: str
    time: float
    snapshot: str
    profile: Profile
    hashes: tuple[str, ...]
    job: str | None = None  # SLURM's number, once sbatch has given it

    @property
    def jobs(self) -> list[tuple[str, ...]]:
        """The runs of each job."""
        size = self.profile.runs_per_gpu
        return [self.hashes[start : start + size] for start in range(0, len(self.hashes), size)]

    def number_of(self, index: int) -> str | None:
        """SLURM's number of a job, e.g. 123_4."""
        return self.job if self.job is None or len(self.jobs) == 1 else f"{self.job}_{index}"

    def runs_of(self, number: str) -> tuple[str, ...]:
        """The runs of the job that has SLURM's number."""
        return self.jobs[int(number.partition("_")[2] or 0)]


def jobs_folder(root: Path) -> Path:
    return root / "jobs"


def record(root: Path, submission: Submission) -> None:
    """Write or replace a record."""
    folder = jobs_folder(root) / submission.id
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).write("submission.json", submission.to_dict())


def read_submissions(root: Path) -> list[Submission]:
    """All records, the oldest first."""
    ids = [path.parent.name for path in jobs_folder(root).glob("*/submission.json")]
    return sorted((read_submission(root, id) for id in ids), key=lambda each: each.time)


def read_submission(root: Path, id: str) -> Submission:
    """One record by its own path: a listing of the folder may be stale on a node."""
    path = jobs_folder(root) / id / "submission.json"
    content = RunFolder(path.parent).read(path.name)
    if content is None:
        raise ConfigError(f"{path}: no whole record of a submission")
    return parse(Submission, content, str(path))


def newest(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, int]]:
    """For each run its last submission, and the index of its job there."""
    return {
        hash: (submission, index)
        for submission in submissions
        for index, hashes in enumerate(submission.jobs)
        for hash in hashes
    }


@contextmanager
def launch_lock(root: Path) -> Iterator[None]:
    """One launch at a time decides what to submit; the others wait for it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "launch.lock").open("a") as file:
        # POSIX locks hold across the machines of an NFS; the kernel frees them
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"waiting for another launch that is submitting in {root}", file=sys.stderr)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
