"""Launches on a cluster, against commands that stand in for SLURM's: what is submitted, refused, recorded and shown."""

import json
import multiprocessing
import socket
import threading
import time
from collections import Counter

import fake_slurm
import pytest
from small import RUN
from typer.testing import CliRunner

from launch import app
from metamixer import ConfigError, digest, override
from metamixer.training.folder import RunFolder
from sweeps import Grid, State, Variant, make_plan, scheduler
from sweeps.cluster import check_budget, estimate_gpu_hours, launch_plan, show_hours
from sweeps.cluster import retry as retry_runs
from sweeps.follow import cancel, select, show_logs, show_status, standings
from sweeps.grid import LoadedGrid
from sweeps.local import attempt
from sweeps.payload import History, signal_delay, timed_out
from sweeps.profiles import PROFILES, Profile, load_profile
from sweeps.slurm import chunks
from sweeps.states import find_states
from sweeps.submissions import launch_lock, read_submissions

KEY = "model.stages.*.token_mixer.activation"
VARIANTS = {"gelu": Variant(), "relu": Variant(changes={KEY: "relu"}), "silu": Variant(changes={KEY: "silu"})}
LOADED = LoadedGrid("tiny", "Why?", Grid(bases={"tiny": RUN}, base="gelu", variants=VARIANTS, seeds=(0, 1)))
PROFILE = Profile(minutes=60, gpus_per_node=2)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def launch(root, retry=False, max_attempts=3, profile=PROFILE, max_gpu_hours=None, **plan):
    return launch_plan(make_plan(LOADED, root, **plan), profile, retry, max_attempts, max_gpu_hours)


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
    first, second = read_submissions(root)
    assert first.job == "1" and second.job is None and "QOS policy" in second.error
    assert [path.name for path in (root / "jobs" / second.id).iterdir()] == ["submission.json"], "pickles left behind"
    assert states(root) == {State.QUEUED: 2, State.NEW: 4}
    assert launch(root)
    assert states(root) == {State.QUEUED: 6}
    submitted = Counter(hash for each in read_submissions(root) if each.job for hash in each.hashes)
    assert len(submitted) == 6 and set(submitted.values()) == {1}


def test_a_job_that_slurm_took_without_saying_so_is_not_submitted_again(slurm, root):
    fake_slurm.change(slurm, unsaid=[1])
    assert launch(root)
    assert [each.job for each in read_submissions(root)] == ["1"]
    assert launch(root) and fake_slurm.read(slurm)["calls"] == 1


def test_a_launch_that_died_after_sbatch_is_settled_by_the_next(slurm, root):
    assert launch(root)
    (submission,) = read_submissions(root)
    RunFolder(root / "jobs" / submission.id).write("submission.json", {**submission.to_dict(), "job": None})
    assert states(root) == {State.QUEUED: 6}
    assert launch(root)
    assert [each.job for each in read_submissions(root)] == ["1"] and fake_slurm.read(slurm)["calls"] == 1
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
    beat = {"state": "running", "epoch": 4, "epochs": 9, "top1": 50.0, "host": "elsewhere", "time": time.time()}
    RunFolder(root / second).write("progress.json", beat)
    RunFolder(root / third).write("progress.json", {**beat, "state": "interrupted", "host": socket.gethostname()})
    monkeypatch.setattr(scheduler.call, "__kwdefaults__", {"timeout": 1.0})
    for told, expected in (
        ({"mute": ["sacct", "squeue"]}, {State.DONE: 1, State.RUNNING: 1, State.INTERRUPTED: 1, State.QUEUED: 3}),
        ({"broken": ["sacct", "squeue"]}, {State.DONE: 1, State.RUNNING: 1, State.INTERRUPTED: 1, State.QUEUED: 3}),
        ({"jobs": {"1": "RUNNING"}}, {State.DONE: 1, State.RUNNING: 5}),
        ({"jobs": {"1": "SUSPENDED"}}, {State.DONE: 1, State.RUNNING: 5}),
        ({"jobs": {"1": "REQUEUE_HOLD"}}, {State.DONE: 1, State.QUEUED: 5}),
        ({"jobs": {"1": "TIMEOUT"}}, {State.DONE: 1, State.INTERRUPTED: 2, State.NEW: 3}),
        ({"jobs": {"1": "A_STATE_OF_TOMORROW"}}, {State.DONE: 1, State.INTERRUPTED: 2, State.NEW: 3}),
        ({"jobs": {"1": ""}}, {State.DONE: 1, State.INTERRUPTED: 2, State.NEW: 3}),
    ):
        fake_slurm.change(slurm, **{"mute": [], "broken": [], "jobs": {}} | told)
        before = content(root)
        show_status(root, [], None, every=False, watch=None)
        shown = capsys.readouterr().out
        for state, number in expected.items():
            assert f"{number} {state}" in shown, (told, shown)
        assert ("runs' own files" in shown) == ("mute" in told or "broken" in told)
        assert content(root) == before
    assert "91.50" in shown and "1:01" in shown and "4/9" in shown
    show_status(root, [], None, every=False, watch=0.01)  # ends, as nothing waits or runs
    assert "1 done" in capsys.readouterr().out


def test_a_job_that_slurm_holds_is_said_to_be_held(slurm, root, capsys):
    assert launch(root)
    fake_slurm.change(slurm, reason="launch failed requeued held")
    show_status(root, [], None, every=False, watch=None)
    shown = " ".join(capsys.readouterr().out.split())
    assert "(and 5 more): SLURM holds its job (launch failed requeued held); `scontrol release 1` lets it go" in shown
    assert "6 runs: 6 queued" in shown


def test_what_sacct_calls_ended_while_its_processes_write_is_still_running(slurm, root):
    assert launch(root)
    fake_slurm.change(slurm, ended=[f"1_{i}|CANCELLED by 0|n1|00:01|0:15" for i in range(6)], jobs={"1": "COMPLETING"})
    assert states(root) == {State.RUNNING: 6}
    fake_slurm.change(slurm, jobs={"1": "CANCELLED"})
    assert states(root) == {State.NEW: 6}
    fake_slurm.change(slurm, jobs={"1": ""}, ended=[f"1_{i}|RUNNING|n1|00:01|0:0" for i in range(6)])
    assert states(root) == {State.NEW: 6}, "of a job that the controller lost"
    fake_slurm.change(slurm, ended=[f"1_{i}|CANCELLED by 0|n1|00:01|0:15" for i in range(6)])
    fake_slurm.change(slurm, broken=["squeue"])
    assert states(root) == {State.NEW: 6} and not standings(root, select(root, [])).problem


def test_status_reads_well_in_100_columns(slurm, root, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert launch(root)
    capsys.readouterr()
    show_status(root, ["tiny"], None, every=False, watch=None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and lines[0].split() == [
        "variant", "seed", "state", "epoch", "top-1", "node", "time", "log"
    ]  # fmt: skip
    assert all(run.hash in line for run, line in zip(make_plan(LOADED, root).runs, lines[1:7], strict=True))
    assert lines[-1] == "6 runs: 6 queued"


def test_in_100_columns_names_give_way_and_no_figure_or_state_is_cut(root, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    name = "parallel_branch_with_softmax"
    grid = Grid(bases={"tiny": RUN}, base=name, variants={name: Variant()}, seeds=(0,))
    plan = make_plan(LoadedGrid("tiny", "Why?", grid), root)
    plan.write_manifest()
    plan.folder(plan.runs[0]).create(plan.runs[0].config)
    progress = {"epoch": 120, "epochs": 300, "top1": 71.25, "host": "gpu-node-012", "time": 0}
    plan.folder(plan.runs[0]).write("progress.json", progress)
    show_status(root, [], None, every=False, watch=None)
    cells = capsys.readouterr().out.split("logs: ")[0].splitlines()[1:]
    assert cells[0].split()[1:] == ["0", "interrupted", "120/300", "71.25", "gpu-node-012", plan.runs[0].hash]
    assert "".join(line.split()[0] for line in cells) == name and max(map(len, cells)) <= 100


def test_a_live_table_leaves_room_for_what_needs_a_look_and_the_counts(root, monkeypatch, capsys):
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "100")
    plan = make_plan(LOADED, root, seeds=list(range(10)))
    plan.write_manifest()
    for run in plan.runs:
        plan.folder(run).create(run.config)
        plan.folder(run).write("result.json", {"state": "done", "top1": 90.0, "seconds": 60})
    plan.folder(plan.runs[-1]).fail("RuntimeError: no memory", 1)
    show_status(root, [], None, every=False, watch=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24 and lines[1].split()[:3] == ["silu", "9", "failed"]
    assert lines[-1] == "30 runs: 1 failed, 29 done"
    show_status(root, [], None, every=False, watch=None)
    assert len(capsys.readouterr().out.splitlines()) > 30


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
    assert launch(root) and launch(root, only=["gelu"], seeds=[0, 2])
    by_variant = Counter(entry.variant for entry in select(root, ["tiny"]))
    assert by_variant == {"gelu": 3, "relu": 2, "silu": 2}
    manifest = json.loads(make_plan(LOADED, root).manifest_path.read_text())
    assert [row["seed"] for row in manifest["runs"]] == [0, 2], "tables have the launch's own runs alone"
    gone = next(entry for entry in select(root, ["relu"]))
    assert cancel(root, [gone.hash], None) == ["cancelled 1 jobs"]  # of the stand-in's array, all
    assert launch(root, only=["gelu"], seeds=[0, 2])
    assert Counter(entry.variant for entry in select(root, ["tiny"])) == {"gelu": 2}


def test_retry_takes_failed_and_interrupted_runs_within_their_attempts(slurm, root, capsys):
    """Situation 10."""
    assert launch(root)
    fake_slurm.change(slurm, jobs={"1": "FAILED"})
    first, second = (run for run in make_plan(LOADED, root).runs[:2])
    RunFolder(root / first.hash).fail("RuntimeError: no memory", 2)
    RunFolder(root / second.hash).write("progress.json", {"epoch": 1})
    arguments = {"profile": None, "changes": {"memory_gb": 8.0}, "max_gpu_hours": None}
    before = content(root)
    assert retry_runs(root, ["tiny"], None, max_attempts=3, dry_run=True, **arguments)
    shown = capsys.readouterr().out
    assert shown.count("failed") == 1 and shown.count("interrupted") == 1 and content(root) == before
    assert retry_runs(root, ["tiny"], None, max_attempts=3, dry_run=False, **arguments)
    again = read_submissions(root)[1]
    assert again.hashes == (first.hash, second.hash) and again.profile == PROFILE.model_copy(update={"memory_gb": 8.0})
    assert states(root) == {State.QUEUED: 2, State.NEW: 4}
    fake_slurm.change(slurm, jobs={"1": "FAILED", "2": "FAILED"})
    assert retry_runs(root, ["tiny"], None, max_attempts=2, dry_run=True, **arguments)
    assert capsys.readouterr().out.count("has had its attempts") == 2
    assert retry_runs(root, ["tiny"], None, max_attempts=2, dry_run=False, **arguments)
    assert "2 runs have had their attempts" in capsys.readouterr().out and len(read_submissions(root)) == 2


def test_resources_are_not_ignored_where_there_is_no_job(root):
    plan = make_plan(LOADED, root)
    plan.write_manifest()
    plan.folder(plan.runs[0]).create(plan.runs[0].config)
    plan.folder(plan.runs[0]).fail("RuntimeError: no memory", 1)
    with pytest.raises(ConfigError, match="--resource: gelu seed 0 was never submitted: give --profile"):
        retry_runs(root, [], None, None, {"memory_gb": 8.0}, 3, None, True)


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


def test_a_job_that_ended_before_its_run_began_is_failed_and_its_log_is_shown(slurm, root, capsys):
    assert launch(root)
    (submission,) = read_submissions(root)
    (root / "jobs" / submission.id / "1_0_0_log.out").write_text("bash: python: command not found\n")
    answer = scheduler.Answer({f"1_{i}": scheduler.Job("FAILED", "n1", "0:01", "127:0") for i in range(6)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "ask", lambda numbers: answer)
        assert states(root) == {State.FAILED: 6}
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
    arguments = {"data": None, "profile": None, "changes": {}, "max_attempts": 3, "dry_run": False}
    with pytest.raises(ConfigError, match=r"6 runs may take 48 GPU-hours \(2 GPUs, 4 h each\), more than"):
        retry_runs(root, [], max_gpu_hours=47, **arguments)
    assert len(read_submissions(root)) == 2
    assert retry_runs(root, [], max_gpu_hours=48, **arguments) and len(read_submissions(root)) == 4


def test_the_estimate_comes_from_finished_runs(root):
    plan = make_plan(LOADED, root)
    hashes = [run.hash for run in plan.runs]
    assert estimate_gpu_hours(root, hashes, 4, PROFILE) is None
    for hash, seconds in zip(hashes, (1800, 5400), strict=False):
        (root / hash).mkdir(parents=True)
        RunFolder(root / hash).write("result.json", {"state": "done", "seconds": seconds})
    assert estimate_gpu_hours(root, hashes, 4, PROFILE) == 4 * 2 * 1.0


def test_variants_of_the_same_configuration_are_counted_as_the_one_run_that_they_are(root, capsys):
    twins = {**VARIANTS, "relu_again": VARIANTS["relu"]}
    plan = make_plan(LoadedGrid("twins", "Why?", Grid(bases={"tiny": RUN}, base="gelu", variants=twins)), root)
    show_hours(plan, PROFILE)
    assert "9 runs: 9 new. On a cluster the 9 missing ones" in capsys.readouterr().out


def test_without_slurm_nothing_is_written(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no scontrol on this machine"):
        launch(root)
    assert not root.exists()


def test_debug_trains_in_this_process_and_other_clusters_are_refused(root, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "'''Why?'''\nfrom small import RUN\nfrom sweeps import Grid, Variant\n"
        "GRID = Grid(bases={'tiny': RUN}, base='gelu', variants={'gelu': Variant()}, seeds=(0,))\n"
    )
    arguments = ["run", str(tmp_path / "tiny.py"), "--runs", str(root), "--cluster"]
    refused = CliRunner().invoke(app, [*arguments, "pbs"]).exception
    assert isinstance(refused, ConfigError) and "local, debug or slurm" in str(refused) and not root.exists()
    done = CliRunner().invoke(app, [*arguments, "debug"])
    assert done.exception is None and "gelu" in done.output
    result = json.loads(next(root.glob("*/result.json")).read_text())
    assert result["state"] == "done" and not (root / "jobs").exists()


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
    assert find_states(tmp_path, [folder.path.name]) == {folder.path.name: State.NEW}


@pytest.mark.parametrize(
    "runs, size, parallel, expected",
    [
        (2500, 1001, 10, [(1001, 4, None), (1001, 3, None), (498, 3, None)]),
        (5, 2, 2, [(2, 1, None), (2, 1, None), (1, 1, 0)]),
        (1, 1001, 64, [(1, 64, None)]),
        (0, 1001, 64, []),
    ],
)
def test_chunks_share_the_runs_at_a_time(runs, size, parallel, expected):
    """Situation 1."""
    made = chunks([str(i) for i in range(runs)], size, parallel)
    assert [(len(chunk.hashes), chunk.parallel, chunk.after) for chunk in made] == expected
    assert [hash for chunk in made for hash in chunk.hashes] == [str(i) for i in range(runs)]


def test_more_arrays_than_runs_at_a_time_wait_for_each_other(slurm, root):
    fake_slurm.change(slurm, max_array_size=2)
    assert launch(root, profile=PROFILE.model_copy(update={"parallel": 1}))
    dependencies = [array["options"].get("dependency") for array in fake_slurm.read(slurm)["arrays"]]
    assert dependencies == [None, "afterany:1", "afterany:2"]


def test_a_short_job_told_early_was_preempted():
    """Situation 5: five minutes, told after ten seconds."""
    assert not timed_out(10, minutes=5) and timed_out(5 * 60 - signal_delay(5), minutes=5)
    assert not timed_out(3600, minutes=240) and timed_out(240 * 60 - 90 - 60, minutes=240)


def test_a_run_that_starts_again_and_again_without_a_checkpoint_fails(tmp_path):
    history = History(RunFolder(tmp_path), "mm-1")
    for _ in range(5):
        history.start("0" * 16)
    with pytest.raises(RuntimeError, match="5 starts in a row wrote no checkpoint"):
        history.start("0" * 16)
    (tmp_path / "last.pt").write_text("")
    history.start("0" * 16)


@pytest.mark.parametrize(
    "text, name, changes, message",
    [
        (None, "default", {}, "cannot read the profiles"),
        ("[a]\nminutes = 1", "b", {}, "no profile 'b'; there are a"),
        ("[a]\nminutes = 1\ngpu = 2", "a", {}, "unknown key 'gpu'"),
        ("[a]\nnodes = 1", "a", {}, "missing key 'minutes'"),
        ("[a]\nminutes = '1:00'", "a", {}, "minutes: input should be a valid integer"),
        ("[a]\nminutes = 1", "a", {"environment.FOO": "1"}, "no key 'FOO' here; it is empty: set it as a whole"),
        ("[a]\nminutes = 1\nenvironment = {MY-VAR = 'x'}", "a", {}, "environment.MY-VAR"),
        ("[a", "a", {}, "profiles.toml: "),
        ("[a]\nminutes = 1", "a", {"minuts": 2}, "no key 'minuts'"),
    ],
)
def test_profile_mistakes_are_one_line(tmp_path, text, name, changes, message):
    file = tmp_path / "profiles.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(name, file, changes)
    assert "\n" not in str(caught.value)


def test_the_shipped_profiles_are_whole():
    import tomllib

    assert {name: load_profile(name).gpus for name in tomllib.loads(PROFILES.read_text())}["imagenet"] == 8


def test_reading_half_written_records_and_arrays_with_gaps(slurm, root):
    assert launch(root)
    (root / "jobs" / "mm-half").mkdir()
    (root / "jobs" / "mm-half" / "submission.json").write_text('{"id": "mm-ha')
    assert len(read_submissions(root)) == 1
    rows = scheduler._rows("7_[0-2,5,10-14:2%4]|PENDING||00:00|\n8|CANCELLED by 0|n1|00:01|0:15\n")
    assert {number for number in rows if rows[number].waiting} == {f"7_{i}" for i in (0, 1, 2, 5, 10, 12, 14)}
    assert rows["8"].state == "CANCELLED" and not rows["8"].alive
    assert json.dumps(standings(root, select(root, [])).problem) == '""'
