"""Grids on a real SLURM of two nodes; `.ci/slurm start` makes one on a Debian machine."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from small import write_grid
from typer.testing import CliRunner

from launch import app
from metamixer.tasks.fashion import FASHION_MNIST
from sweeps import State
from sweeps.follow import select, standings
from sweeps.profiles import Profile
from sweeps.snapshot import content_hash
from sweeps.submissions import read_submissions

ROOT = Path(__file__).parent.parent
CONF = Path(os.environ.get("SLURM_CONF", "/nowhere"))
IS_OURS = CONF.is_file() and "ClusterName=metamixer\n" in CONF.read_text()
pytestmark = [
    pytest.mark.skipif(not IS_OURS, reason='no SLURM of .ci/slurm: eval "$(.ci/slurm start)" starts one'),
    pytest.mark.timeout(1800),  # minutes where it has two cores to itself
]
FASHION = """
'''Does the activation matter?'''
import sys
sys.path.insert(0, "TESTS")
from small import RUN
from metamixer import override
from metamixer.recipes import FASHION_MNIST
from sweeps import Grid, Variant
BASE = override(RUN, {"data": {**FASHION_MNIST.to_dict(), "train_samples": 200, "val_samples": 40},
                      "model.stem_stride": 2, "recipe.epochs": 40})
KEY = "model.stages.*.token_mixer.activation"
GRID = Grid(bases={"fashion": BASE}, base="gelu", seeds=(0, 1),
            variants={name: Variant(changes={KEY: name}) for name in ("gelu", "relu", "silu")})
"""
# long enough to be met while it trains; two passes a step, which two processes can share
SHORT = ("--only", "gelu", "--seeds", "0", "--set", "recipe.micro_batch=16")
LONG = (*SHORT, "--set", "recipe.epochs=40")
PROFILE = ("--cluster", "slurm", "--profile", "cpu", "--resource", "cpus_per_task=1", "--resource", "memory_gb=2",
           "--resource", "minutes=60")  # fmt: skip


@pytest.fixture
def root(tmp_path):
    yield tmp_path / "runs"
    numbers = [each.job for each in read_submissions(tmp_path / "runs") if each.job]
    if numbers:
        subprocess.run(["scancel", *numbers], check=True)


def launch(*arguments):
    """A command of launch.py in this process: importing torch anew takes longer than most of them."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exception is None, done.output
    return done.output


def status(root):
    """What `status` shows, its lines joined."""
    return " ".join(launch("status", "--runs", root).split())


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def until(condition, seconds=900):
    """Wait for a condition; a requeued job, which SLURM holds back for two minutes, is let go in a few seconds.

    Not at once: in the second in which its node forgot the job, it takes the job for one that was killed already.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, slurm("squeue", "-a", "-t", "all")
        for row in slurm("squeue", "-h", "-r", "-t", "PD", "-o", "%i|%r|%S").splitlines():
            number, reason, start = row.split("|")
            soon = datetime.now() + timedelta(seconds=10)
            if reason == "BeginTime" and start != "N/A" and datetime.fromisoformat(start) > soon:
                command = ["scontrol", "update", f"JobId={number}", "StartTime=now+4"]
                subprocess.run(command, capture_output=True)
            elif reason == "launch failed requeued held":
                subprocess.run(["scontrol", "release", number], capture_output=True)
        time.sleep(0.3)
    return found


def states(root):
    entries = select(root, [])
    now = standings(root, entries)
    return {(e.variant, e.seed): now.runs[e.hash].state for e in entries}


def all_done(root):
    """Whether every run has its result and its job the last word on it, which comes after."""

    def ask():
        now = set(states(root).values())
        assert State.FAILED not in now, launch("status", "--runs", root)
        folders = [path.parent for path in root.glob("*/config.json")]
        return now == {State.DONE} and all(history(each)[-1]["event"] == "stop" for each in folders)

    return ask


def run_folder(root):
    (path,) = root.glob("*/config.json")
    return path.parent


def rows(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def history(folder):
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def figures(folder):
    """All of a run's figures that are not times."""
    times = ("seconds", "images_per_second")
    result = json.loads((folder / "result.json").read_text())
    kept = {key: value for key, value in result.items() if key not in (*times, "time")}
    return [{key: value for key, value in row.items() if key not in times} for row in rows(folder)], kept


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the long run, trained here without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    launch("run", write_grid(folder), *LONG, "--runs", folder / "runs")
    return run_folder(folder / "runs")


def begun(root, epochs=2):
    until(lambda: any(len(rows(path.parent)) >= epochs for path in root.glob("*/config.json")))


def test_a_launch_returns_and_the_grid_is_followed_from_its_folder_alone(grid, root):
    """Situations 10 to 13: a launch that does not wait, a failing variant, its error and log, and its retry."""
    launch("run", grid, "--runs", root, *PROFILE)
    grid.unlink()  # from here on there is only the folder
    assert not any(root.glob("*/result.json")), "the launch waited for its runs"
    until(lambda: not {State.QUEUED, State.RUNNING} & set(states(root).values()))
    assert Counter(states(root).values()) == {State.DONE: 4, State.FAILED: 2}
    (submission,) = read_submissions(root)
    if accounting():
        sacct = ("sacct", "-X", "-n", "-P", "-j", submission.job, "-o", "State")
        until(lambda: Counter(slurm(*sacct).split()) == {"COMPLETED": 4, "FAILED": 2})
    shown = status(root)
    assert "the loss is not a number in epoch 1" in shown and "2 failed, 4 done" in shown
    assert "the loss is not a number" in launch("logs", "diverging", "--runs", root)
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    launch("retry", "tiny", "--runs", root)
    assert len(read_submissions(root)) == 2
    until(lambda: Counter(states(root).values()) == {State.DONE: 4, State.FAILED: 2})
    changed = {path.parent.name for path in root.glob("*/result.json") if before[path] != path.stat().st_mtime_ns}
    assert changed == set(read_submissions(root)[1].hashes) and len(changed) == 2
    assert "gelu" in launch("collect", "tiny", "--runs", root)


def accounting():
    return subprocess.run(["sacct", "-n"], capture_output=True).returncode == 0


def test_a_preemption_while_the_job_still_imports_is_not_lost(grid, root):
    launch("run", grid, "--only", "gelu", "--seeds", "0", "--runs", root, *PROFILE)
    (submission,) = read_submissions(root)
    log = root / "jobs" / submission.id / f"{submission.job}_0_log.out"
    until(lambda: log.exists() and "Loading pickle" in log.read_text())
    slurm("scancel", "--signal=USR2", submission.job)
    until(all_done(root))
    assert [row["reason"] for row in history(run_folder(root)) if row["event"] == "stop"] == ["preempted", "done"]


def test_a_run_that_reaches_its_time_limit_goes_on_so_often_and_no_further(grid, root):
    """Its clock is set back, so that SIGUSR2 means the time limit; SLURM's own comes by `--signal=USR2@90`."""
    back = 'setup=["export METAMIXER_JOB_START=0"]'
    launch("run", grid, *LONG, "--runs", root, *PROFILE, "--resource", back, "--resource", "continuations=1")
    (submission,) = read_submissions(root)
    for stops, requeue in ((1, True), (2, False)):
        before = len(rows(run_folder(root)))
        until(lambda before=before: len(rows(run_folder(root))) >= before + 2)
        slurm("scancel", "--signal=USR2", submission.job)
        until(lambda stops=stops: sum(row["event"] == "stop" for row in history(run_folder(root))) == stops)
        last = history(run_folder(root))[-1]
        assert (last["reason"], last["requeue"]) == ("time limit", requeue)
    until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    epochs = [row["epoch"] for row in rows(run_folder(root))]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_a_grid_comes_through_a_preemption_a_kill_and_a_lost_node_bit_for_bit(root, tmp_path):
    """Situations 5 and 8: of six runs one is told to go, one gets SIGKILL, and a node goes down with two."""
    grid = tmp_path / "fashion.py"
    grid.write_text(textwrap.dedent(FASHION).replace("TESTS", str(ROOT / "tests")))
    launch("run", grid, "--runs", tmp_path / "undisturbed")
    launch("run", grid, "--runs", root, *PROFILE)
    (submission,) = read_submissions(root)
    folder = {submission.number_of(i): root / hash for i, hash in enumerate(submission.hashes)}

    def at_work():
        listed = [row.split() for row in slurm("squeue", "-h", "-r", "-t", "R", "-o", "%i %N").splitlines()]
        return {job: node for job, node in listed if job in folder and len(rows(folder[job])) >= 2}

    nodes = until(lambda: len(now := at_work()) == 4 and now)
    told, killed = (job for job, node in nodes.items() if node == "n1")
    lost = [job for job, node in nodes.items() if node == "n2"]
    telling = subprocess.Popen(["scancel", "--signal=USR2", told])
    os.kill(json.loads((folder[killed] / "progress.json").read_text())["pid"], signal.SIGKILL)
    slurm("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        telling.wait(timeout=3)
    except subprocess.TimeoutExpired:  # of an array's task it may wait for the restart, and tell it again
        telling.kill()
    try:
        until(lambda: all(starts(folder[job]) == 2 for job in lost))
    finally:
        # it may have come back by itself, which this refuses
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], capture_output=True)
    until(lambda: not {State.QUEUED, State.RUNNING} & set(states(root).values()))
    assert Counter(states(root).values()) == {State.DONE: 5, State.INTERRUPTED: 1}
    launch("retry", "fashion", "--runs", root)
    until(all_done(root))
    assert [row["reason"] for row in history(folder[told]) if row["event"] == "stop"] == ["preempted", "done"]
    assert {starts(folder[job]) for job in (told, killed, *lost)} == {2}
    for path in folder.values():
        assert figures(path) == figures(tmp_path / "undisturbed" / path.name)
        ours, theirs = (torch.load(p / "last.pt")["model"] for p in (path, tmp_path / "undisturbed" / path.name))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def starts(folder):
    return sum(row["event"] == "start" for row in history(folder))


def test_runs_that_share_a_job_come_through_a_preemption_bit_for_bit(grid, root, undisturbed):
    """One has failed before; the other writes its checkpoint and requeues the job, which trains it alone."""
    arguments = ["run", grid, "--runs", root, *PROFILE, "--runs-per-gpu", "2", "--set", "recipe.micro_batch=16"]
    launch(*arguments, "--only", "gelu,diverging", "--seeds", "0", "--set", "recipe.epochs=40")
    (submission,) = read_submissions(root)
    assert len(submission.jobs) == 1 and len(submission.hashes) == 2
    long = root / next(entry.hash for entry in select(root, ["gelu"]))
    until(lambda: len(rows(long)) >= 2 and states(root)["diverging", 0] == State.FAILED)
    slurm("scancel", "--signal=USR2", submission.job)
    until(lambda: states(root)["gelu", 0] == State.DONE)
    assert [row["reason"] for row in history(long) if row["event"] == "stop"] == ["preempted", "done"]
    assert figures(long) == figures(undisturbed)
    (failed,) = set(submission.hashes) - {long.name}
    assert starts(root / failed) == 1, "the run that had failed was not trained again"


def test_requeued_without_warning_it_goes_on_from_its_checkpoint(grid, root, undisturbed):
    """Situation 8: the original payload is started again and goes on, no epoch twice.

    With the `cpu` profile's own two cores: a run's threads are its own, on a node as here.
    """
    profile = [argument.replace("cpus_per_task=1", "cpus_per_task=2") for argument in PROFILE]
    launch("run", grid, *LONG, "--runs", root, *profile)
    begun(root)
    pid = json.loads((run_folder(root) / "progress.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    (submission,) = read_submissions(root)
    slurm("scontrol", "requeue", submission.job)
    until(all_done(root))
    assert [row["event"] for row in history(run_folder(root))] == ["start", "start", "stop"]
    assert figures(run_folder(root)) == figures(undisturbed)


def test_where_nothing_can_be_requeued_it_is_interrupted_and_retried(grid, root, undisturbed):
    """Situation 6: no scontrol on the node."""
    empty = root.parent / "bin"
    empty.mkdir()
    (empty / "scontrol").write_text("#!/bin/sh\necho 'scontrol: error: no requeue here' >&2\nexit 1\n")
    (empty / "scontrol").chmod(0o755)
    launch("run", grid, *LONG, "--runs", root, *PROFILE, "--resource", f'setup=["export PATH={empty}:$PATH"]')
    begun(root)
    slurm("scancel", "--signal=USR2", read_submissions(root)[0].job)
    until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    assert "no requeue here" in history(run_folder(root))[-1]["refused"]
    assert "no requeue here" in status(root)
    launch("retry", "gelu", "--runs", root)
    until(all_done(root))
    assert figures(run_folder(root)) == figures(undisturbed)


def test_a_partition_that_cancels_what_it_preempts_leaves_an_interrupted_run(grid, root, undisturbed):
    """Situation 6 with PreemptMode=CANCEL: another job takes both nodes."""
    launch("run", grid, *LONG, "--runs", root, *PROFILE, "--resource", "partition=scavenge")
    begun(root)
    urgent = slurm("sbatch", "--parsable", "-p", "urgent", "-N", "2", "--exclusive", "-t", "5", "-o", "/dev/null",
                   "--wrap", "sleep 300").strip()  # fmt: skip
    try:
        until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    finally:
        slurm("scancel", urgent)
    launch("retry", "gelu", "--runs", root)
    until(all_done(root))
    assert figures(run_folder(root)) == figures(undisturbed)


def test_a_signal_to_everything_in_the_job_leaves_a_whole_checkpoint(grid, root, undisturbed):
    """Situation 7: batch script, srun and the run's own processes all get SIGTERM."""
    launch("run", grid, *LONG, "--runs", root, *PROFILE)
    begun(root)
    slurm("scancel", "--full", "--signal=TERM", read_submissions(root)[0].job)
    until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    with (run_folder(root) / "last.pt").open("r+b") as file:  # and the newest one half-written
        file.truncate(1000)
    launch("run", grid, *LONG, "--runs", root, *PROFILE)
    until(all_done(root))
    assert figures(run_folder(root)) == figures(undisturbed)


def test_a_job_runs_the_code_it_was_launched_with(grid, root):
    """Situation 9: the tree is edited while the job waits in a partition that is closed."""
    tree = root.parent / "tree"
    for part in ("metamixer", "sweeps", "ablations"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("launch.py", "slurm.toml"):
        shutil.copy(ROOT / file, tree)
    arguments = ("run", grid, "--only", "gelu", "--seeds", "0", "--runs", root, *PROFILE)
    command = [sys.executable, tree / "launch.py", *arguments, "--resource", "partition=closed"]
    subprocess.run(list(map(str, command)), check=True, cwd=tree, timeout=300)
    expected = content_hash(tree)
    for path in (tree / "metamixer").rglob("*.py"):
        path.write_text("raise RuntimeError('edited')\n")
    (submission,) = read_submissions(root)
    assert states(root) == {("gelu", 0): State.QUEUED}
    slurm("scontrol", "update", f"JobId={submission.job}", "Partition=main")
    until(all_done(root))
    recorded = json.loads((run_folder(root) / "environment.json").read_text())["snapshot"]
    assert recorded == history(run_folder(root))[0]["snapshot"] == submission.snapshot == expected


def test_ten_launches_at_once_submit_each_run_once(grid, root):
    """Situation 3."""
    arguments = ("run", grid, "--runs", root, *PROFILE, "--resource", "partition=closed")
    context = multiprocessing.get_context("fork")
    launches = [context.Process(target=launch, args=arguments) for _ in range(10)]
    for each in launches:
        each.start()
    for each in launches:
        each.join(timeout=300)
    assert [each.exitcode for each in launches] == [0] * 10
    submitted = Counter(hash for each in read_submissions(root) for hash in each.hashes)
    assert len(submitted) == 6 and set(submitted.values()) == {1}
    numbers = ",".join(each.job for each in read_submissions(root))
    assert len(slurm("squeue", "-h", "-r", "-p", "closed", "-j", numbers, "-o", "%i").split()) == 6
    assert launch("cancel", "tiny", "--runs", root) == "cancelled 6 jobs\n"
    assert set(states(root).values()) == {State.NEW}


def test_2500_runs_are_three_arrays_within_the_cap(root):
    """Situation 1: MaxArraySize 1001 caps the index, and the arrays share the number that may run at a time."""
    from sweeps import slurm as submitting

    hashes = [f"{i:016x}" for i in range(2500)]
    profile = Profile(minutes=5, partition="closed", parallel=10)
    root.mkdir()
    assert submitting.submit(root, hashes, profile)
    made = read_submissions(root)
    assert [len(each.hashes) for each in made] == [1001, 1001, 498]
    assert [hash for each in made for hash in each.hashes] == hashes
    listed = slurm("squeue", "-h", "-r", "-p", "closed", "-o", "%i", "-j", ",".join(each.job for each in made)).split()
    assert sorted(listed) == sorted(each.number_of(i) for each in made for i in range(len(each.hashes)))
    throttles = [part for each in made for part in slurm("scontrol", "show", "job", each.job).split()
                 if part.startswith("ArrayTaskThrottle=")]  # fmt: skip
    assert throttles == ["ArrayTaskThrottle=4", "ArrayTaskThrottle=3", "ArrayTaskThrottle=3"]


TWO_NODES = ("--resource", "nodes=2")


def same_up_to_float_error(folder, other):
    """Losses step for step the same; BatchNorm's running statistics alone depend on who meets which pass."""
    ours, theirs = rows(folder), rows(other)
    assert [row["epoch"] for row in ours] == [row["epoch"] for row in theirs] == list(range(1, 41))
    for mine, its in zip(ours[:5], theirs[:5], strict=True):
        assert mine["train_loss"] == pytest.approx(its["train_loss"], rel=1e-3)
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (folder, other))
    assert ours["raw"]["images"] == theirs["raw"]["images"] and abs(ours["top1"] - theirs["top1"]) < 3


def test_two_nodes_train_a_run_as_one_process_does_through_a_preemption(grid, root, undisturbed):
    launch("run", grid, *LONG, *TWO_NODES, "--runs", root, *PROFILE)
    begun(root)
    (submission,) = read_submissions(root)
    assert len(slurm("squeue", "-h", "-j", submission.job, "-o", "%N").strip()) == len("n[1-2]")
    slurm("scancel", "--signal=USR2", submission.job)
    until(all_done(root))
    assert [row["reason"] for row in history(run_folder(root)) if row["event"] == "stop"] == ["preempted", "done"]
    assert json.loads((run_folder(root) / "environment.json").read_text())["processes"] == 2
    same_up_to_float_error(run_folder(root), undisturbed)


def test_a_preemption_while_two_processes_look_for_each_other_is_not_lost(grid, root):
    """Told while they import, a second before they meet."""
    launch("run", grid, *SHORT, *TWO_NODES, "--runs", root, *PROFILE)
    (submission,) = read_submissions(root)
    until(lambda: (run_folder(root) / "log-1.txt").exists())
    slurm("scancel", "--signal=USR2", submission.job)
    until(all_done(root))
    assert [row["reason"] for row in history(run_folder(root)) if row["event"] == "stop"] == ["preempted", "done"]


def test_where_one_of_two_processes_dies_the_job_ends_and_the_run_goes_on(grid, root, undisturbed):
    launch("run", grid, *LONG, *TWO_NODES, "--runs", root, *PROFILE)
    begun(root)
    (submission,) = read_submissions(root)
    (second,) = (p for p in processes_of(submission.job) if environment_of(p).get("SLURM_PROCID") == "1")
    os.kill(second, signal.SIGKILL)
    until(lambda: set(states(root).values()) == {State.INTERRUPTED}, seconds=120)
    launch("retry", "gelu", "--runs", root)
    until(all_done(root))
    same_up_to_float_error(run_folder(root), undisturbed)


def environment_of(pid):
    try:
        pairs = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)


def processes_of(job):
    """The Python processes of a job's tasks, and no shell or srun."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_task = (
                b"submitit.core._submit" in (path / "cmdline").read_bytes() and (path / "comm").read_text() != "srun\n"
            )
        except OSError:
            continue
        if is_task and environment_of(path.name).get("SLURM_JOB_ID") == job:
            found.append(int(path.name))
    return found


def test_srun_trains_one_run_with_several_processes_on_each_node(root, undisturbed):
    """What a job with several GPUs a node starts: four tasks of `launch.py train` on two nodes."""
    command = ["srun", "-N2", "--ntasks-per-node=2", "-t5", "--kill-on-bad-exit=1", sys.executable, ROOT / "launch.py"]
    command += ["train", undisturbed / "config.json", "--set", "recipe.batch_size=64", "--set", "recipe.epochs=3"]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command), "--runs", str(root)], check=True, timeout=300, cwd=root.parent, env=environment)
    assert json.loads((run_folder(root) / "environment.json").read_text())["processes"] == 4
    assert len(rows(run_folder(root))) == 3


def test_a_job_that_asked_for_gpus_does_not_train_on_a_cpu(grid, root):
    """A node without working GPUs is the surroundings' fault, not the run's."""
    launch("run", grid, *SHORT, "--runs", root, *PROFILE, "--resource", "gpus_per_node=2")
    until(lambda: set(states(root).values()) == {State.INTERRUPTED})
    assert "device 'cuda' can't be used" in status(root)


def test_a_full_disk_interrupts_a_run_and_the_same_launch_goes_on(grid, root):
    """The runs' folder is a small file system with no room for a checkpoint."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)], check=True)
    try:
        launch("run", grid, *SHORT, "--runs", root, *PROFILE, "--resource", "partition=closed")
        (root / "filler").write_bytes(bytes(shutil.disk_usage(root).free - 50_000))
        slurm("scontrol", "update", f"JobId={read_submissions(root)[0].job}", "Partition=main")
        until(lambda: set(states(root).values()) == {State.INTERRUPTED})
        assert "No space left on device" in status(root)
        (root / "filler").unlink()
        launch("run", grid, *SHORT, "--runs", root, *PROFILE)
        until(all_done(root))
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
