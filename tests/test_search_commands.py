"""A search from the command line, as its user meets it, with real processes and real training."""

import os
import runpy
import signal
import subprocess
import sys
import time

import optuna
import pandas as pd
import pytest
from small_search import write_search
from test_commands import ROOT, launch
from test_launch import sees_handlers, wait_until_it_listens

from analysis.search import load_study
from metamixer import jsonl
from metamixer.operation import REGISTRY
from metamixer.training.folder import RunFolder
from sweeps import Grid
from sweeps.search import load_search
from sweeps.trials import read_trials

SINE = """
from metamixer import Activation, register


@register
class Sine(Activation):
    name = "sine_for_search"

    def forward(self, scores):
        return scores.sin()
"""
OWN = """
    minimize=("macs",), constraints={"macs": 3e5}, modules=("my_op.py",),
    known={"base": AS_BASE, "sine": AS_BASE | {"activation": "sine_for_search"}},
"""


@pytest.fixture
def own_operation(tmp_path):
    (tmp_path / "my_op.py").write_text(SINE)
    yield
    REGISTRY["activation"].pop("sine_for_search", None)


def test_from_the_search_to_the_grid_that_confirms_it(tmp_path, own_operation):
    file, runs = write_search(tmp_path, trials=3, more=OWN), tmp_path / "runs"
    file.write_text(file.read_text().replace('"identity"]', '"sine_for_search"]'))
    shown = launch("search", file, "--runs", runs, "--workers", 2, "--device", "cpu").stdout
    assert "trial 0 seed 0: val top-1" in shown and "the front" in shown
    folder = runs / "searches" / "tiny@tiny"
    table = pd.read_csv(folder / "trials.csv")
    assert list(table["outcome"]) == ["done"] * 3 and list(table["source"]) == ["base", "sine", "sampler"]
    shown = launch("status", "tiny", "--runs", runs).stdout
    assert "3 runs: 3 done" in shown and "trial 0" in shown
    for row in table.itertuples():
        assert row.top1 == jsonl.read(runs / row.hash / "metrics.jsonl")[-1]["val_top1"]
        # validation images, not the test images that its run reports in the end
        assert row.top1 * 64 / 100 == round(row.top1 * 64 / 100)
        line = next(line for line in shown.splitlines() if row.hash in line)
        assert f"{row.top1:.2f}" in line, line
    assert all((folder / name).stat().st_size > 5000 for name in ("front.png", "importances.png"))

    again = launch("search", file, "--runs", runs, "--workers", 2, "--device", "cpu").stdout
    assert "3 done" in again and "val top-1 " not in again
    assert "the front" in launch("collect", file, "--runs", runs, "--export", tmp_path / "study.db").stdout
    exported = optuna.load_study(study_name="tiny@tiny", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(exported.trials) == len(table)
    assert "log.txt" in launch("logs", "tiny", "--runs", runs).stdout
    assert "nothing to retry" in launch("retry", "tiny", "--runs", runs).stdout

    out = tmp_path / "confirm.py"
    assert f"launch.py run {out}" in launch("confirm", file, "--runs", runs, "--out", out, "--top", 2).stdout
    grid = runpy.run_path(str(out))["GRID"]
    assert isinstance(grid, Grid) and grid.base == "base" and grid.seeds == (1, 2, 3)
    planned = {run.variant: run.config for run in grid.runs(seeds=(0,))}
    search, rows = load_search(str(file)), read_trials(folder)
    assert planned["base"] == search.base and len(planned) > 1
    for name in planned.keys() - {"base"}:
        parameters = rows[int(name.removeprefix("trial_"))]["parameters"]
        assert planned[name] == search.config(optuna.trial.FixedTrial(parameters))
    assert "confirm on tiny" in launch("plan", out, "--runs", runs).stdout


PROBE = """
from metamixer import override
from metamixer.recipes import named_run
from sweeps.search import Search
FEW = {"data.train_samples": 128, "data.val_samples": 64, "recipe.epochs": 1, "recipe.warmup_epochs": 0}
def propose(trial):
    return {"recipe.lr": trial.suggest_float("lr", 1e-3, 1e-2)}
SEARCH = Search(bases={"recall": override(named_run("recall"), FEW)}, propose=propose, minimize=("macs",), trials=2)
"""


def test_a_search_on_a_probe_seeks_its_metric(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    runs = tmp_path / "runs"
    shown = launch("search", tmp_path / "probe.py", "--runs", runs, "--workers", 2, "--device", "cpu").stdout
    assert "val accuracy" in shown and "top-1" not in shown
    study = load_study(runs, "probe")
    for trial in study.trials:
        assert trial.values[0] == jsonl.read(runs / trial.user_attrs["hash"] / "metrics.jsonl")[-1]["val_accuracy"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "runs" / "searches" / "tiny@tiny" / "trials.jsonl").mkdir(parents=True)
    error = launch("search", write_search(tmp_path), "--runs", tmp_path / "runs", "--device", "cpu", code=2).stderr
    assert error.count("\n") == 1 and "trials.jsonl: Is a directory" in error


def test_mistakes_are_one_line(tmp_path):
    file, runs = write_search(tmp_path), tmp_path / "runs"
    for arguments, line in (
        (("search", "nothing"), "no search 'nothing'; there are mixer"),
        (("search", file, "--data", "other"), "no data 'other'; there are tiny"),
        (("confirm", file), "no search tiny on tiny in"),
        (("search", file, "--set", "recipe.epoch=3"), "no key 'epoch'"),
    ):
        error = launch(*arguments, "--runs", runs, code=2).stderr
        assert line in error and error.count("\n") == 1, error
    assert not list(runs.rglob("search.json"))


def searching(tmp_path, file, *more):
    line = [sys.executable, ROOT / "launch.py", "search", file, "--runs", tmp_path / "runs", "--workers", "2"]
    with (tmp_path / "shown").open("a") as shown:
        return subprocess.Popen(
            [*line, "--device", "cpu", *more], stdout=shown, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(what, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or takes too long"
        time.sleep(0.05)


def test_a_search_that_is_killed_again_and_again_makes_exactly_the_wanted_trials(tmp_path):
    """Killed whole while runs train, then only its first process; no run is trained twice, no epoch is there twice."""
    file, runs = write_search(tmp_path, trials=6, epochs=6), tmp_path / "runs"
    folder = runs / "searches" / "tiny@tiny"

    def done():
        return len(list(runs.glob("*/result.json")))

    def checkpoints():
        return len([path for path in runs.glob("*/last.pt") if not (path.parent / "result.json").exists()])

    for kill in (os.killpg, os.kill):
        before, process = done(), searching(tmp_path, file)
        wait_for(lambda before=before: done() > before and checkpoints(), process)
        kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 240  # what the killed launch began trains on without it
    while any(RunFolder(path.parent).is_locked() for path in runs.glob("*/lock")) and time.monotonic() < deadline:
        time.sleep(0.1)
    results = {path: path.stat().st_mtime_ns for path in runs.glob("*/result.json")}
    launch("search", file, "--runs", runs, "--workers", 2, "--device", "cpu")
    rows = read_trials(folder)
    assert [row["ended"]["outcome"] for row in rows] == ["done"] * 6
    assert len({row["hash"] for row in rows}) == len(rows) and done() == 6
    for row in rows:
        epochs = [each["epoch"] for each in jsonl.read(runs / row["hash"] / "metrics.jsonl")]
        assert epochs == list(range(1, 7)), "an epoch is there twice or not at all"
    assert all(path.stat().st_mtime_ns == when for path, when in results.items()), "a finished run was trained again"


@sees_handlers
def test_ctrl_c_while_the_runs_start_stops_them(tmp_path):
    """They take seconds to import torch; the runs would take many minutes."""
    process = searching(tmp_path, write_search(tmp_path, epochs=2000))
    try:
        wait_until_it_listens(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(90) == 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "shown").read_text()
    assert "stopped; the same command goes on from here" in said and "Traceback" not in said


def test_no_more_trials_are_proposed_where_runs_are_interrupted(tmp_path):
    file, runs = write_search(tmp_path, trials=6, more=""), tmp_path / "runs"
    missing = ("data.name=folder", f"data.root={tmp_path / 'none'}", "data.train_samples=null")
    options = [word for assignment in missing for word in ("--set", assignment)]
    launch("search", file, *options, "--runs", runs, "--workers", 1, "--device", "cpu", code=1)
    (folder,) = (runs / "searches").iterdir()
    rows = read_trials(folder)
    assert len(rows) == 1 and {row["ended"]["outcome"] for row in rows} == {"open"}


def test_latency_from_the_command_line(tmp_path):
    runs = tmp_path / "runs"
    file = write_search(tmp_path, trials=1, more='minimize=("latency:eager",), known={"base": AS_BASE},')
    shown = launch("search", file, "--workers", 1, "--runs", runs).stdout
    assert "latency:eager" in shown and "× base" in shown
    (row,) = read_trials(runs / "searches" / "tiny@tiny")
    assert 0.3 < row["costs"]["latency:eager"] < 3  # the base against itself
