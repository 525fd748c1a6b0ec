"""Launches on a cluster, against commands that stand in for SLURM's: what is submitted, refused, recorded and shown."""

import errno
import json
import multiprocessing
import socket
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import fake_slurm
import pytest
from small import RUN
from typer.testing import CliRunner

from launch import app
from metamixer import ConfigError, digest, override
from metamixer.training.folder import RunFolder
from sweeps import Grid, State, Variant, make_plan, scheduler
from sweeps.attempts import Attempts
from sweeps.cluster import check_budget, launch_plans, show_hours
from sweeps.cluster import retry as retry_runs
from sweeps.follow import cancel, select, show_logs, show_status, standings
from sweeps.grid import LoadedGrid
from sweeps.local import attempt, places_of, run_all
from sweeps.payload import Payload, signal_delay, timed_out
from sweeps.profiles import PROFILES, Profile, load_profile
from sweeps.states import find_states
from sweeps.submissions import launch_lock, read_submissions
from sweeps.terminal import parallel_runs, run_with_progress

KEY = "model.stages.*.token_mixer.activation"
VARIANTS = {"gelu": Variant(), "relu": Variant(changes={KEY: "relu"}), "silu": Variant(changes={KEY: "silu"})}
TWO = override(RUN, {"recipe.micro_batch": 16})  # two passes a step, which two processes can share
LOADED = LoadedGrid("tiny", "Why?", Grid(bases={"tiny": TWO}, base="gelu", variants=VARIANTS, seeds=(0, 1)))
PROFILE = Profile(minutes=60, gpus_per_node=2)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def launch(root, retry=False, profile=PROFILE, max_gpu_hours=None, **plan):
    return launch_plans([make_plan(LOADED, root, **plan)], profile, retry, max_gpu_hours)


def states(root):
    return make_plan(LOADED, root).count()


def content(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_launch_submits_what_is_missing_once(slurm, root):
    assert launch(root, only=["gelu"])
    assert states(root) == {State.QUEUED: 2, State.NEW: 4}
    assert launch(root) and launch(root)
    (first, second) = read_submissions(root)
    assert [len(first.hashes), len(second.hashes)] == [2, 4]
    assert fake_slurm.read(slurm)["calls"] == 2
    options = fake_slurm.read(slurm)["arrays"][1]["options"]
    assert options["time"] == "60" and options["gpus-per-node"] == "2" and options["ntasks-per-node"] == "2"
    assert options["array"] == "0-3%4" and options["signal"] == "USR2@90" and "requeue" in options
    # without it SLURM 22.05 with task/affinity lets each process of the step have one core
    assert options["cpus-per-task"] == "1" and "--cpus-per-task=1 " in fake_slurm.read(slurm)["arrays"][1]["step"]


def _launch(root):
    launch(root)


def test_ten_launches_at_once_submit_each_run_once(slurm, root):
    """Situation 3."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_launch, args=(root,)) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * 10
    assert Counter(hash for each in read_submissions(root) for hash in each.hashes) == dict.fromkeys(
        {run.hash for run in make_plan(LOADED, root).runs}, 1
    )
    assert sum(array["size"] for array in fake_slurm.read(slurm)["arrays"]) == 6


def test_a_refused_chunk_is_shown_and_a_rerun_submits_the_rest(slurm, root, capsys):
    """Situation 2: the second of three arrays is refused."""
    fake_slurm.change(slurm, max_array_size=2, refuse=[2])
    assert not launch(root)
    assert "Job violates accounting/QOS policy; the same command submits the rest" in capsys.readouterr().out
    assert [each.job for each in read_submissions(root)] == ["1", None]
    assert states(root) == {State.QUEUED: 2, State.NEW: 4}
    assert launch(root)
    assert states(root) == {State.QUEUED: 6}
    submitted = Counter(hash for each in read_submissions(root) if each.job for hash in each.hashes)
    assert len(submitted) == 6 and set(submitted.values()) == {1}


def test_a_job_that_slurm_took_without_saying_so_is_not_submitted_again(slurm, root):
    fake_slurm.change(slurm, unsaid=[1])
    assert not launch(root)
    assert states(root) == {State.QUEUED: 6}
    assert launch(root) and fake_slurm.read(slurm)["calls"] == 1


def test_jobs_of_a_launch_that_died_after_sbatch_are_known(slurm, root):
    assert launch(root)
    (submission,) = read_submissions(root)
    RunFolder(root / "jobs" / submission.id).write("submission.json", {**submission.to_dict(), "job": None})
    assert states(root) == {State.QUEUED: 6}
    assert launch(root) and fake_slurm.read(slurm)["calls"] == 1
    assert cancel(root, ["tiny"], None) == ["cancelled 6 jobs"]
    RunFolder(root / "jobs" / submission.id).write("submission.json", {**submission.to_dict(), "job": None, "id": "x"})
    assert states(root) == {State.NEW: 6}, "no job has this name"


def test_a_busy_controller_never_leads_to_a_second_submission(slurm, root, monkeypatch):
    assert launch(root)
    fake_slurm.change(slurm, broken=["squeue"])
    with pytest.raises(ConfigError, match=r"Unable to contact slurm controller.*nothing was submitted"):
        launch(root)
    fake_slurm.change(slurm, broken=[], mute=["squeue"])
    monkeypatch.setattr(scheduler, "TIMEOUT", 1.0)
    monkeypatch.setattr(scheduler.call, "__kwdefaults__", {"timeout": 1.0})
    with pytest.raises(ConfigError, match="squeue gave no answer in 1 s"):
        launch(root)
    assert fake_slurm.read(slurm)["calls"] == 1


def test_status_never_hangs_and_never_writes(slurm, root, monkeypatch, capsys):
    """Situation 4: no sacct; where squeue does not answer either, the runs' own files speak; no state is waited for."""
    assert launch(root)
    first, second, third = (run.hash for run in make_plan(LOADED, root).runs[:3])
    RunFolder(root / first).write("result.json", {"state": "done", "top1": 91.5, "seconds": 61, "time": time.time()})
    beat = {"state": "running", "epoch": 4, "epochs": 9, "score": 50.0, "host": "elsewhere", "time": time.time()}
    RunFolder(root / second).write("progress.json", beat)
    RunFolder(root / third).write("progress.json", {**beat, "state": "interrupted", "host": socket.gethostname()})
    monkeypatch.setattr(scheduler.call, "__kwdefaults__", {"timeout": 1.0})
    for told, expected in (
        ({"mute": ["sacct", "squeue"]}, {State.DONE: 1, State.RUNNING: 1, State.INTERRUPTED: 1, State.QUEUED: 3}),
        ({"broken": ["sacct", "squeue"]}, {State.DONE: 1, State.RUNNING: 1, State.INTERRUPTED: 1, State.QUEUED: 3}),
        ({"jobs": {"1": "RUNNING"}}, {State.DONE: 1, State.RUNNING: 5}),
        ({"jobs": {"1": "SUSPENDED"}}, {State.DONE: 1, State.RUNNING: 5}),
        ({"jobs": {"1": "REQUEUE_HOLD"}}, {State.DONE: 1, State.QUEUED: 5}),
        ({"jobs": {"1": "TIMEOUT"}}, {State.DONE: 1, State.INTERRUPTED: 5}),
        ({"jobs": {"1": "A_STATE_OF_TOMORROW"}}, {State.DONE: 1, State.INTERRUPTED: 5}),
        ({"jobs": {"1": ""}}, {State.DONE: 1, State.INTERRUPTED: 2, State.NEW: 3}),
    ):
        fake_slurm.change(slurm, **{"mute": [], "broken": [], "jobs": {}} | told)
        before = content(root)
        show_status(root, [], None, every=False)
        shown = capsys.readouterr().out
        for state, number in expected.items():
            assert f"{number} {state}" in shown, (told, shown)
        assert ("runs' own files" in shown) == ("mute" in told or "broken" in told)
        assert content(root) == before
    assert "50.00" in shown and "1:01" in shown and "4/9" in shown


@pytest.mark.parametrize(
    "reason, said",
    [
        ("launch failed requeued held", "launch failed requeued held; `scontrol release 1` lets it go"),
        ("ReqNodeNotAvail", "ReqNodeNotAvail"),
        ("QOSMaxGRESPerUser", "QOSMaxGRESPerUser"),
        ("Priority", None),
        ("Resources", None),
    ],
)
def test_why_a_job_waits_is_said_unless_others_are_just_before_it(slurm, root, capsys, reason, said):
    assert launch(root)
    fake_slurm.change(slurm, reason=reason)
    capsys.readouterr()
    show_status(root, [], None, every=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert (f"(and 5 more): it waits, says SLURM: {said}" if said else "6 runs: 6 queued") in shown
    assert said or "says SLURM" not in shown


def test_what_sacct_calls_ended_while_its_processes_write_is_still_running(slurm, root):
    assert launch(root)
    fake_slurm.change(slurm, ended=[f"1_{i}|CANCELLED by 0|0:15" for i in range(6)], jobs={"1": "COMPLETING"})
    assert states(root) == {State.RUNNING: 6}
    fake_slurm.change(slurm, jobs={"1": "CANCELLED"})
    assert states(root) == {State.NEW: 6}
    fake_slurm.change(slurm, jobs={"1": ""}, ended=[f"1_{i}|RUNNING|0:0" for i in range(6)])
    assert states(root) == {State.NEW: 6}, "of a job that the controller lost"
    fake_slurm.change(slurm, ended=[f"1_{i}|CANCELLED by 0|0:15" for i in range(6)])
    fake_slurm.change(slurm, broken=["squeue"])
    assert states(root) == {State.NEW: 6} and "contact" in standings(root, select(root, [])).problem


def test_in_100_columns_names_give_way_and_no_figure_or_state_is_cut(root, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    name = "parallel_branch_with_softmax"
    grid = Grid(bases={"tiny": RUN}, base=name, variants={name: Variant()}, seeds=(0,))
    plan = make_plan(LoadedGrid("tiny", "Why?", grid), root)
    plan.write_manifest()
    RunFolder(plan.root / plan.runs[0].hash).create(plan.runs[0].config)
    progress = {"epoch": 120, "epochs": 300, "score": 71.25, "host": "gpu-node-012", "time": 0}
    RunFolder(plan.root / plan.runs[0].hash).write("progress.json", progress)
    show_status(root, [], None, every=False)
    cells = capsys.readouterr().out.split("logs: ")[0].splitlines()[1:]
    assert cells[0].split()[1:] == ["0", "interrupted", "120/300", "71.25", "gpu-node-012", plan.runs[0].hash]
    assert "".join(line.split()[0] for line in cells) == name and max(map(len, cells)) <= 100


def test_many_runs_are_a_row_for_each_variant_and_an_error_is_said_once(root, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    plan = make_plan(LOADED, root, seeds=[*range(20), 30, 32, 33])
    plan.write_manifest()
    for run in plan.runs:
        RunFolder(plan.root / run.hash).create(run.config)
        RunFolder(plan.root / run.hash).write("result.json", {"state": "done", "top1": 90.0, "seconds": 60})
    for run in plan.runs[-30:]:
        RunFolder(plan.root / run.hash).fail("RuntimeError: no memory", 1)
    show_status(root, [], None, every=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        "gelu 23 done", "relu 7 failed, 16 done", "silu 23 failed"
    ]  # fmt: skip
    assert [line for line in lines if "no memory" in line] == ["relu seed 16 (and 29 more): RuntimeError: no memory"]
    assert lines[-1] == "69 runs: 30 failed, 39 done"
    show_status(root, [], None, every=True)
    assert len(capsys.readouterr().out.splitlines()) > 69


def test_of_many_different_notes_the_most_frequent_are_shown(root, capsys):
    plan = make_plan(LOADED, root, seeds=list(range(10)))
    plan.write_manifest()
    for index, run in enumerate(plan.runs):
        RunFolder(plan.root / run.hash).create(run.config)
        RunFolder(plan.root / run.hash).fail(f"RuntimeError: number {max(index - 10, 0):03}", 1)
    show_status(root, [], None, every=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    said = [line for line in lines if "RuntimeError" in line]
    assert said[0] == "gelu seed 0 (and 10 more): RuntimeError: number 000" and len(said) == 10
    assert any(line.startswith("and 10 other notes") for line in lines)


def test_runs_are_named_by_grid_hash_or_variant(slurm, root):
    assert launch(root)
    runs = make_plan(LOADED, root).runs
    assert [entry.hash for entry in select(root, ["relu"])] == [run.hash for run in runs if run.variant == "relu"]
    assert [entry.seed for entry in select(root, [runs[3].hash[:8]])] == [1]
    assert len(select(root, ["tiny", "relu"])) == len(select(root, [])) == 6
    with pytest.raises(ConfigError, match=r"no grid, run or variant 'gelo' was launched in .*tiny@tiny"):
        select(root, ["gelo"])


def test_cancel_takes_the_jobs_of_what_is_named(slurm, root):
    assert launch(root, only=["relu"]) and launch(root, only=["gelu", "relu"])
    assert launch(root)
    assert cancel(root, ["relu"], None) == ["cancelled 2 jobs"]
    assert states(root) == {State.NEW: 2, State.QUEUED: 4}


def test_a_run_that_is_trained_here_after_its_job_ended_is_not_called_cancelled(slurm, root):
    assert launch(root)
    fake_slurm.change(slurm, jobs={"1": "FAILED"})
    run = make_plan(LOADED, root).runs[0]
    with RunFolder(root / run.hash).lock():
        lines = cancel(root, ["tiny"], None)
    assert lines == ["cancelled 0 jobs", "1 runs are trained outside SLURM; stop their launch where it runs"]
    assert "scancel" not in (slurm / "calls.log").read_text()


def test_what_an_earlier_launch_still_has_in_the_queue_stays_in_sight(slurm, root, capsys):
    assert launch(root) and launch(root, seeds=[0, 2])
    assert Counter(entry.seed for entry in select(root, ["tiny"])) == {0: 3, 1: 3, 2: 3}
    manifest = json.loads(make_plan(LOADED, root).manifest_path.read_text())
    assert {row["seed"] for row in manifest["runs"]} == {0, 2}, "tables have the launch's own runs alone"
    gone = next(entry for entry in select(root, ["relu"]) if entry.seed == 1)
    assert cancel(root, [gone.hash], None) == ["cancelled 1 jobs"]  # of the stand-in's array, all
    assert launch(root, seeds=[0, 2])
    assert Counter(entry.seed for entry in select(root, ["tiny"])) == {0: 3, 2: 3}


def test_retry_takes_failed_and_interrupted_runs_within_their_attempts(slurm, root, capsys):
    """Situation 10."""
    assert launch(root)
    fake_slurm.change(slurm, jobs={"1": "CANCELLED"})
    first, second = (run for run in make_plan(LOADED, root).runs[:2])
    RunFolder(root / first.hash).fail("RuntimeError: no memory", 2)
    RunFolder(root / second.hash).write("progress.json", {"epoch": 1})
    assert retry_runs(root, ["tiny"], None, None, {"memory_gb": 8.0}, None)
    again = read_submissions(root)[1]
    assert again.hashes == (first.hash, second.hash) and again.profile == PROFILE.model_copy(update={"memory_gb": 8.0})
    assert states(root) == {State.QUEUED: 2, State.NEW: 4}


def test_what_was_never_submitted_is_not_retried_on_a_cluster_unasked(slurm, root, capsys):
    plan = make_plan(LOADED, root)
    plan.write_manifest()
    RunFolder(plan.root / plan.runs[0].hash).create(plan.runs[0].config)
    RunFolder(plan.root / plan.runs[0].hash).fail("RuntimeError: no memory", 1)
    assert retry_runs(root, [], None, None, {}, None) and not read_submissions(root)
    assert "gelu seed 0: failed, was never submitted: --profile submits it" in capsys.readouterr().out
    assert retry_runs(root, [], None, PROFILE, {}, None) and len(read_submissions(root)) == 1


def test_two_launches_at_once_lose_nothing_from_sight(slurm, root):
    """Each writes the manifest with other seeds, at any moment of the other's."""
    context = multiprocessing.get_context("fork")
    for number in range(5):
        place = root / str(number)
        both = [context.Process(target=launch, args=(place,), kwargs={"seeds": [seed]}) for seed in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join(timeout=240)
        submitted = {hash for each in read_submissions(place) for hash in each.hashes}
        assert len(submitted) == 6 and {entry.hash for entry in select(place, [])} == submitted


def test_a_run_that_the_surroundings_stopped_is_interrupted_and_submitted_again(slurm, root, capsys):
    """A node without GPUs, or a full disk: the run has not failed, and the same launch goes on with it."""
    assert launch(root, only=["gelu"], seeds=[0])
    (run,) = make_plan(LOADED, root, only=["gelu"], seeds=[0]).runs
    attempts = Attempts(RunFolder(root / run.hash), "mm-1")
    attempts.start()
    attempts.stop("interrupted", note="torch finds no GPU here")
    fake_slurm.change(slurm, jobs={"1": "FAILED"})
    show_status(root, [], None, every=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "gelu seed 0: torch finds no GPU here" in shown and "1 runs: 1 interrupted" in shown
    assert launch(root, only=["gelu"], seeds=[0]) and len(read_submissions(root)) == 2


def test_a_job_that_can_not_note_its_start_has_not_failed(slurm, root, monkeypatch):
    """A disk that is full before anything is trained, on a node as here."""
    assert launch(root, only=["gelu"], seeds=[0])
    (submission,) = read_submissions(root)
    (hash,) = submission.hashes

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Attempts, "start", full)
    monkeypatch.setattr("sweeps.payload.log_to", lambda _: None)
    monkeypatch.setattr("sweeps.snapshot.PROJECT", (root / "snapshots" / submission.snapshot).resolve())
    job = Payload(str(root), (hash,), submission.id)
    process = multiprocessing.get_context("fork").Process(target=job)  # it takes over the signals
    process.start()
    process.join(timeout=240)
    assert process.exitcode == 1 and RunFolder(root / hash).result() is None
    assert Attempts(RunFolder(root / hash)).last_note().startswith("No space left on device; free some space")


def test_a_launch_says_what_it_leaves_alone(slurm, root, capsys):
    assert launch(root, only=["gelu"])
    run = make_plan(LOADED, root, only=["relu"]).runs[0]
    RunFolder(root / run.hash).create(run.config)
    RunFolder(root / run.hash).fail("RuntimeError: no memory", 1)
    capsys.readouterr()
    assert launch(root)
    shown = capsys.readouterr().out
    assert "left alone: 2 queued, 1 failed; --retry" in shown


def test_processes_that_cannot_share_a_run_are_refused_at_launch(slurm, root):
    """Two passes a step, four nodes: told before anything is submitted or written for the run."""
    with pytest.raises(ConfigError, match=r"2 passes .* shared by 4 processes; recipe.micro_batch 8 would do"):
        launch(root, profile=Profile(minutes=60, nodes=4))
    assert not read_submissions(root) and not list(root.glob("*/config.json"))


def test_free_options_of_sbatch_reach_it(slurm, root, monkeypatch, capsys):
    monkeypatch.setenv("SBATCH_RESERVATION", "course")
    options = {"gres": "gpu:a100:4", "exclude": "n7", "reservation": "mine", "exclusive": True}
    assert launch(root, only=["gelu"], profile=Profile(minutes=60, gpus_per_node=1, options=options))
    given = fake_slurm.read(slurm)["arrays"][0]["options"]
    assert {key: given[key] for key in options} == {**options, "exclusive": ""} and "gpus-per-node" not in given
    assert "SBATCH_RESERVATION: not used" in capsys.readouterr().out


def test_a_launch_that_waits_for_another_says_so(root, capsys):
    """A suspended one may hold the lock for hours."""
    begun = threading.Event()

    def second():
        with launch_lock(root):
            begun.set()

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def first():
        with launch_lock(root):
            theirs.send("held")
            theirs.recv()

    holder = context.Process(target=first)  # a process of its own: these locks are a process's
    holder.start()
    assert ours.recv() == "held"
    waiting = threading.Thread(target=second)
    waiting.start()
    while "waiting for another launch" not in capsys.readouterr().err:
        time.sleep(0.01)
    assert not begun.is_set()
    ours.send("let go")
    waiting.join(timeout=60)
    holder.join(timeout=60)
    assert begun.is_set()


def test_a_job_that_ended_before_its_run_began_is_interrupted_and_its_log_is_shown(slurm, root, capsys):
    assert launch(root)
    (submission,) = read_submissions(root)
    (root / "jobs" / submission.id / "1_0_0_log.out").write_text("bash: python: command not found\n")
    failed = {(submission.id, i): scheduler.Job(f"1_{i}", "FAILED", "127:0") for i in range(6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "ask", lambda names, since: (failed, ""))
        assert states(root) == {State.INTERRUPTED: 6}
        show_logs(root, ["gelu"], None, lines=5)
    assert "command not found" in capsys.readouterr().out


def test_the_budget_is_checked_before_anything_is_written(slurm, root):
    """Situation 15."""
    with pytest.raises(ConfigError, match=r"6 runs may take 48 GPU-hours .* more than --max-gpu-hours 47"):
        launch(root, max_gpu_hours=47)
    assert not root.exists()
    assert launch(root, max_gpu_hours=48)
    check_budget([(PROFILE, 1000)], None)


def test_the_budget_of_a_retry_is_that_of_all_its_launches_together(slurm, root):
    assert launch(root, only=["gelu"]) and launch(root, profile=PROFILE.model_copy(update={"memory_gb": 8.0}))
    fake_slurm.change(slurm, jobs={"1": "FAILED", "2": "FAILED"})
    for run in make_plan(LOADED, root).runs:
        RunFolder(root / run.hash).fail("RuntimeError: no memory", 1)
    arguments = {"data": None, "profile": None, "changes": {}}
    with pytest.raises(ConfigError, match=r"6 runs may take 48 GPU-hours \(8 for each job\), more than"):
        retry_runs(root, [], max_gpu_hours=47, **arguments)
    assert len(read_submissions(root)) == 2
    assert retry_runs(root, [], max_gpu_hours=48, **arguments) and len(read_submissions(root)) == 4


def test_the_estimate_comes_from_finished_runs(root, capsys):
    plan = make_plan(LOADED, root)
    show_hours(plan, PROFILE)
    assert "no estimate before a run is done" in capsys.readouterr().out
    for run, seconds in zip(plan.runs, (1800, 5400), strict=False):
        RunFolder(plan.root / run.hash).create(run.config)
        RunFolder(plan.root / run.hash).write("result.json", {"state": "done", "seconds": seconds})
    show_hours(make_plan(LOADED, root), PROFILE)
    assert "the 4 missing runs take 32 GPU-hours at worst" in (shown := capsys.readouterr().out)
    assert "about 8.0 by the runs done so far" in shown  # 4 runs of 2 GPUs for an hour


def test_variants_of_the_same_configuration_are_counted_as_the_one_run_that_they_are(root, capsys):
    twins = {**VARIANTS, "relu_again": VARIANTS["relu"]}
    plan = make_plan(LoadedGrid("twins", "Why?", Grid(bases={"tiny": RUN}, base="gelu", variants=twins)), root)
    show_hours(plan, PROFILE)
    assert "the 9 missing runs take 72 GPU-hours at worst" in capsys.readouterr().out


def test_without_slurm_nothing_is_written(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no scontrol on this machine"):
        launch(root)
    assert not root.exists()


def test_another_cluster_is_refused(grid, root):
    refused = CliRunner().invoke(app, ["run", str(grid), "--runs", str(root), "--cluster", "pbs"])
    assert refused.exit_code == 2 and "'local', 'slurm'" in refused.output and not root.exists()


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_no_launch_waits_for_runs_that_none_may_start(grid, root, workers):
    refused = CliRunner().invoke(app, ["run", str(grid), "--runs", str(root), "--workers", workers])
    assert refused.exit_code == 2 and "--workers" in refused.output and not root.exists()


def test_a_failed_run_is_failed_until_it_is_tried_again_here(tmp_path):
    config = override(RUN, {"data.name": "folder", "data.root": str(tmp_path / "nowhere")})
    folder = RunFolder(tmp_path / digest(config))
    folder.create(config)
    folder.fail("RuntimeError: no memory", 2)
    state, message = attempt(config, str(folder.path), "cpu")
    assert state == State.INTERRUPTED and "nowhere" in message
    assert find_states(tmp_path, [folder.path.name]) == {folder.path.name: State.INTERRUPTED}


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_a_device_that_is_not_there_is_no_fault_of_the_run(tmp_path, device):
    folder = RunFolder(tmp_path / digest(RUN))
    folder.create(RUN)
    state, message = attempt(RUN, str(folder.path), device)
    assert state == State.INTERRUPTED and f"device '{device}'" in message and "\n" not in message
    assert find_states(tmp_path, [folder.path.name]) == {folder.path.name: State.INTERRUPTED}


def test_arrays_share_the_jobs_at_a_time(slurm, root):
    """Situation 1."""
    fake_slurm.change(slurm, max_array_size=2)
    assert launch(root, profile=PROFILE.model_copy(update={"parallel": 4}))
    arrays = [array["options"]["array"] for array in fake_slurm.read(slurm)["arrays"]]
    assert [array.partition("%")[2] for array in arrays] == ["2", "1", "1"]


def test_a_short_job_told_early_was_preempted():
    """Situation 5: five minutes, told after ten seconds."""
    assert not timed_out(10, minutes=5) and timed_out(5 * 60 - signal_delay(5), minutes=5)
    assert not timed_out(3600, minutes=240) and timed_out(240 * 60 - 90 - 60, minutes=240)


def test_starts_without_a_checkpoint_are_counted_until_there_is_one_or_another_launch(tmp_path):
    attempts = Attempts(RunFolder(tmp_path), "mm-1")
    for _ in range(3):
        attempts.start()
    assert attempts.idle() == 3 and Attempts(RunFolder(tmp_path), "mm-2").idle() == 0
    (tmp_path / "last.pt").write_text("")
    assert attempts.idle() == 0
    attempts.start()
    assert attempts.idle() == 1


@pytest.mark.parametrize(
    "count, devices", [(0, ["auto"]), (1, ["cuda:0"]), (4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"])]
)
def test_runs_are_spread_over_the_gpus(monkeypatch, count, devices):
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert places_of("auto") == devices and places_of("cpu") == ["cpu"]
    for wrong in ("gpu", "cuda:1") if count == 0 else ("gpu",):
        with pytest.raises(ConfigError, match=f"--device {wrong}: "):
            places_of(wrong)
    if count:
        assert places_of("cuda:1") == ["cuda:1"]
        assert [parallel_runs("auto"), parallel_runs("auto", 3), parallel_runs("cuda:1", 3)] == [count, 3 * count, 3]


def test_runs_for_each_gpu_need_a_gpu():
    with pytest.raises(ConfigError, match="there is no GPU here; --workers N"):
        parallel_runs("cpu", 2)
    with pytest.raises(ConfigError, match="give one of them"):
        parallel_runs("cuda", 2, 3)


def test_a_launch_waits_for_the_runs_that_another_one_trains(root, monkeypatch, capsys):
    """It ends well when those end well."""
    plan = make_plan(LOADED, root, only=["gelu"])
    first, second = (RunFolder(plan.root / run.hash) for run in plan.runs)
    first.create(plan.runs[0].config)
    second.create(plan.runs[1].config)
    second.write("result.json", {"state": "done"})
    waited = []

    def look(seconds):
        waited.append(seconds)
        first.write("result.json", {"state": "done" if len(waited) < 3 else "failed", "error": "no memory"})

    monkeypatch.setattr("sweeps.terminal.time.sleep", look)
    with first.lock():
        assert run_with_progress([make_plan(LOADED, root, only=["gelu"])], 1, "cpu", False)
    assert len(waited) == 1 and "waiting for the runs that another launch trains" in capsys.readouterr().out


def test_each_run_of_a_launch_gets_a_gpu_of_its_own(root, monkeypatch):
    """With processes that only write down the device that they were given."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("sweeps.local.fork_server", lambda *_: nullcontext(multiprocessing.get_context("fork")))
    monkeypatch.setattr("sweeps.local._run_one", _note_device)
    root.mkdir()
    looks = list(run_all(make_plan(LOADED, root).runs, root, 3, "auto"))
    assert sum(len(ended) for _, ended, _ in looks) == 6 and max(len(active) for active, _, _ in looks) == 3
    rows = [line.split() for line in (root / "devices").read_text().splitlines()]
    at_once = set[str]()
    for event, device in rows:
        assert event != "start" or device not in at_once, "two runs on one GPU"
        (at_once.add if event == "start" else at_once.remove)(device)
    assert {device for _, device in rows} == {"cuda:0", "cuda:1", "cuda:2"}


def _note_device(path, device, beside, sender):
    for event in ("start", "end"):
        with (Path(path).parent / "devices").open("a") as file:
            file.write(f"{event} {device}\n")
        time.sleep(0.3)
    sender.send((State.DONE, ""))


def test_a_run_that_another_launch_trains_is_left_to_it(tmp_path):
    """It is not called interrupted, and its file of attempts is not touched."""
    folder = RunFolder(tmp_path / digest(RUN))
    folder.create(RUN)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def hold():
        with folder.lock():
            theirs.send("held")
            theirs.recv()

    holder = context.Process(target=hold)
    holder.start()
    assert ours.recv() == "held"
    before = content(folder.path)
    assert attempt(RUN, str(folder.path), "cpu") == (State.RUNNING, "another launch trains it")
    assert content(folder.path) == before
    ours.send("let go")
    holder.join(timeout=60)


@pytest.mark.parametrize(
    "text, name, changes, message",
    [
        ("[a]\nminutes = 1", "b", {}, "no profile 'b'; there are a"),
        ("[a]\nminutes = 1\ngpu = 2", "a", {}, "unknown key 'gpu'"),
        ("[a]\nnodes = 1", "a", {}, "missing key 'minutes'"),
        ("[a]\nminutes = '1:00'", "a", {}, "minutes: input should be a valid integer"),
        ("[a]\nminutes = 1", "a", {"environment.FOO": "1"}, "no key 'FOO'; it is empty: set it as a whole"),
        ("[a]\nminutes = 1\nenvironment = {MY-VAR = 'x'}", "a", {}, "environment.MY-VAR"),
        ("[a", "a", {}, "profiles.toml: "),
        ("[a]\nminutes = 1\noptions = {time = '1:00'}", "a", {}, "option 'time': a field of the profile gives it"),
        ("[a]\nminutes = 1\noptions = {Gres = 'gpu:1'}", "a", {}, "options.Gres"),
        ("[a]\nminutes = 1", "a", {"minuts": 2}, "no key 'minuts'"),
    ],
)
def test_profile_mistakes_are_one_line(tmp_path, text, name, changes, message):
    file = tmp_path / "profiles.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(name, file, changes)
    assert "\n" not in str(caught.value)


def test_runs_that_share_a_gpu_are_one_job(slurm, root, capsys):
    """Each has a process there; the last job has fewer, and cancelling one of them says what goes with it."""
    shared = Profile(minutes=60, gpus_per_node=1, runs_per_gpu=4, parallel=2)
    assert launch(root, profile=shared, max_gpu_hours=2 * 4)
    (submission,), (array,) = read_submissions(root), fake_slurm.read(slurm)["arrays"]
    assert [len(runs) for runs in submission.jobs] == [4, 2] and array["size"] == 2
    options = array["options"]
    assert (options["ntasks-per-node"], options["gpus-per-node"], options["array"]) == ("4", "1", "0-1%2")
    assert "--kill-on-bad-exit=0 " in array["step"] and states(root) == {State.QUEUED: 6}
    runs = {run.hash: run for run in make_plan(LOADED, root).runs}
    RunFolder(root / submission.hashes[0]).write("result.json", {"state": "done", "time": time.time()})
    assert cancel(root, [submission.hashes[1]], None) == [
        "cancelled 1 jobs", "2 other runs that shared these jobs are cancelled too"
    ]  # fmt: skip
    assert Counter(find_states(root, runs).values()) == {State.DONE: 1, State.NEW: 5}
    with pytest.raises(ValueError, match=r"runs_per_gpu 2: .* set nodes=1 and gpus_per_node=1"):
        Profile(minutes=60, gpus_per_node=2, runs_per_gpu=2)


def test_the_shipped_profiles_are_whole():
    import tomllib

    assert {name: load_profile(name).gpus for name in tomllib.loads(PROFILES.read_text())}["imagenet"] == 8


def test_rows_of_sacct_for_tasks_that_never_began_are_passed_over():
    rows = scheduler._rows("a|7_[0-2,5%4]|CANCELLED by 0|\na|7_12|FAILED|1:0\nb|8|CANCELLED+|0:15\n")
    assert {key: (job.number, job.state) for key, job in rows.items()} == {
        ("a", 12): ("7_12", "FAILED"), ("b", 0): ("8", "CANCELLED")
    }  # fmt: skip
