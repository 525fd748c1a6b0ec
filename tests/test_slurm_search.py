"""A search on a real SLURM of two nodes: workers that are killed, preempted and cancelled; see `test_slurm`."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from small_search import write_search
from test_slurm import IS_OURS, PROFILE, launch, until

from metamixer.training.folder import RunFolder
from sweeps import scheduler
from sweeps.search.known import metrics, top1
from sweeps.search.launch import outcome
from sweeps.search.study import search_folder
from sweeps.search.trials import Owner, Trials, has_finished
from sweeps.submissions import read_submissions

pytestmark = [
    pytest.mark.skipif(not IS_OURS, reason='no SLURM of .ci/slurm: eval "$(.ci/slurm start)" starts one'),
    pytest.mark.timeout(1200),  # minutes where it has two cores to itself
]
WANTED = 12


@pytest.fixture
def root(tmp_path):
    yield tmp_path / "runs"
    numbers = [each.job for each in read_submissions(tmp_path / "runs") if each.job]
    if numbers:
        subprocess.run(["scancel", *numbers], check=True)


def search(tmp_path, root, workers, *more):
    file = tmp_path / "tiny.py"
    if not file.exists():
        write_search(tmp_path, trials=WANTED, epochs=8)
    launch("search", file, "--runs", root, "--workers", workers, *PROFILE, *more)
    return Trials(root, search_folder(root, "tiny@tiny"), Owner.here("test"))


def jobs(root):
    return [each.job_of(i) for each in read_submissions(root) if each.job for i in range(len(each.hashes))]


def at_work(root):
    """Process of each worker that trains or has trained, by its pid."""
    found = {(RunFolder(path.parent).read(path.name) or {}).get("pid") for path in root.glob("*/progress.json")}
    return {pid for pid in found if pid and os.path.exists(f"/proc/{pid}")}


def all_ended(root):
    answer = scheduler.ask(jobs(root))
    return not any(job.alive or job.waiting for job in answer.jobs.values())


def check(root, trials):
    """No trial is lost or left running, as many as were wanted have finished, and each is what its run says."""
    found = trials.all()
    assert {outcome(trial) for trial in found} <= {"done", "lost", "too costly"}
    finished = [trial for trial in found if has_finished(trial)]
    assert len(finished) == WANTED == len({trial.user_attrs["hash"] for trial in finished})
    for trial in finished:
        rows = metrics(root / trial.user_attrs["hash"])
        assert [row["epoch"] for row in rows] == list(range(1, 9)), "an epoch is there twice or not at all"
        assert trial.values[0] == top1(rows[-1])
    followed = {trial.user_attrs.get("again") for trial in found}
    assert all(trial.number in followed for trial in found if outcome(trial) == "lost")


def test_two_of_four_workers_are_killed_and_no_trial_is_lost(tmp_path, root):
    """Situation 14."""
    trials = search(tmp_path, root, 4)
    draws = random.Random(time.time_ns())
    killed = set[int]()
    for _ in range(2):
        pids = until(lambda: len(now := at_work(root) - killed) >= 2 and now)
        time.sleep(draws.uniform(0, 3))
        pid = draws.choice(sorted(pids))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    until(lambda: all_ended(root))
    check(root, trials)


def test_preempted_and_cancelled_workers_give_their_trials_back_and_the_search_goes_on(tmp_path, root):
    trials = search(tmp_path, root, 2)
    until(lambda: len(at_work(root)) >= 2)
    (submission,) = read_submissions(root)
    subprocess.Popen(["scancel", "--signal=USR2", submission.job_of(0)])
    attempts = trials.folder / "workers" / submission.hashes[0] / "attempts.jsonl"
    until(attempts.exists)
    assert json.loads(attempts.read_text().splitlines()[0])["reason"] == "preempted"
    until(lambda: sum(map(has_finished, trials.all())) >= 3)
    shown = launch("status", "tiny", "--runs", root)
    assert "trial" in shown and " done" in shown
    assert launch("cancel", "tiny", "--runs", root) in ("cancelled 2 jobs\n", "cancelled 1 jobs\n")
    # one that was about to be queued again may be known to SLURM only a moment later
    until(lambda: all_ended(root) or not launch("cancel", "tiny", "--runs", root))
    until(lambda: "running" not in (found := {outcome(trial) for trial in trials.all()}) and found)  # they save
    assert "lost" not in {outcome(trial) for trial in trials.all()}
    assert 3 <= sum(map(has_finished, trials.all())) < WANTED
    before = {trial.number: trial.values for trial in trials.all() if has_finished(trial)}
    search(tmp_path, root, 2)
    until(lambda: all_ended(root))
    check(root, trials)
    assert {number: trials.all()[number].values for number in before} == before
