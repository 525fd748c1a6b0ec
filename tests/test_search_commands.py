"""A search from the command line, as its user meets it, with real workers and real training."""

import os
import random
import runpy
import signal
import subprocess
import sys

import pandas as pd
import pytest
from small_search import write_search
from test_commands import ROOT, launch
from test_launch import sees_handlers, wait_until_it_listens

from analysis.search import load_trials
from metamixer.operation import REGISTRY
from sweeps import Grid
from sweeps.search.files import load_search
from sweeps.search.known import metrics, top1
from sweeps.search.launch import prepare, search_here
from sweeps.search.study import search_folder
from sweeps.search.trials import Owner, Trials

SINE = """
from metamixer import Activation, register


@register
class Sine(Activation):
    name = "sine_for_search"

    def forward(self, scores):
        return scores.sin()
"""
OWN = """
    objectives=("top1", "macs"), constraints={"macs": 3e5}, modules=("my_op.py",),
    known={"base": {}, "sine": {f"{KEY}.activation": "sine_for_search"}},
"""


@pytest.fixture
def own_operation(tmp_path):
    (tmp_path / "my_op.py").write_text(SINE)
    yield
    REGISTRY["activation"].pop("sine_for_search", None)


def test_from_the_dry_run_to_the_grid_that_confirms_it(tmp_path, own_operation):
    file, runs = write_search(tmp_path, trials=3, more=OWN), tmp_path / "runs"
    file.write_text(file.read_text().replace('"identity")', '"sine_for_search")'))
    shown = launch("search", file, "--runs", runs, "--dry-run").stdout
    assert (
        "*.token_mixer.activation" in shown
        and "gelu · relu · silu · sine_for_search" in shown
        and "macs at most" in shown
    )
    assert not runs.exists(), "a dry run wrote something"
    shown = launch("search", file, "--runs", runs, "--workers", 2, "--device", "cpu").stdout
    assert "trial 0 (base): val top-1" in shown and "trial 1 (sine): val top-1" in shown and "the front" in shown
    folder = search_folder(runs, "tiny@tiny")
    trials = Trials(runs, folder, Owner.here("test"))
    table = pd.read_csv(folder / "trials.csv")
    assert (table["state"] == "done").sum() == 3 and set(table["state"]) <= {"done", "too costly"}
    for row in table[table["state"] == "done"].itertuples():
        assert row.top1 == top1(metrics(runs / row.hash)[-1])
        # validation images, not the test images that its run reports in the end
        assert row.top1 * 64 / 100 == round(row.top1 * 64 / 100)
    assert all((folder / name).stat().st_size > 5000 for name in ("front.png", "importances.png"))

    again = launch("search", file, "--runs", runs, "--workers", 2, "--device", "cpu").stdout
    assert "3 of 3 trials have finished" in again and "val top-1 " not in again
    assert "the front" in launch("collect", file, "--runs", runs).stdout

    shown = launch("status", "tiny", "--runs", runs).stdout
    assert "3 runs: 3 done" in shown and "trial 0" in shown
    assert "log.txt" in launch("logs", "tiny", "--runs", runs).stdout
    assert "no grid, run or variant 'tiny' was launched" in launch("retry", "tiny", "--runs", runs, code=2).stderr

    out = tmp_path / "confirm.py"
    assert f"launch.py run {out}" in launch("confirm", file, "--runs", runs, "--out", out, "--top", 2).stdout
    grid = runpy.run_path(str(out))["GRID"]
    assert isinstance(grid, Grid) and grid.base == "base" and grid.seeds == (1, 2, 3)
    planned = {run.variant: run.config for run in grid.runs(seeds=(0,))}
    assert planned["base"] == trials.base and len(planned) > 1
    for name in planned.keys() - {"base"}:
        assert planned[name] == trials.config(trials.all()[int(name.removeprefix("trial_"))])
    assert "confirm on tiny" in launch("plan", out, "--runs", runs).stdout


def test_mistakes_are_one_line(tmp_path):
    file, runs = write_search(tmp_path), tmp_path / "runs"
    for arguments, line in (
        (("search", "nothing"), "no search 'nothing'; there are mixer"),
        (("search", file, "--cluster", "cloud"), "--cluster 'cloud': local or slurm"),
        (("search", file, "--data", "other"), "no setting 'other'; the search has tiny"),
        (("search", file, "--storage", "postgresql://me:pw@host/db"), "leave the password out"),
        (("confirm", file), "no search here"),
        (("search", file, "--set", "recipe.epoch=3"), "no key 'epoch'"),
    ):
        error = launch(*arguments, "--runs", runs, code=2).stderr
        assert line in error and error.count("\n") == 1, error
    assert not list(runs.rglob("search.json"))


@sees_handlers
def test_ctrl_c_while_the_workers_start_stops_them(tmp_path):
    """They take seconds to import torch; the runs would take many minutes."""
    file, runs = write_search(tmp_path, epochs=2000), tmp_path / "runs"
    line = [sys.executable, ROOT / "launch.py", "search", file, "--runs", runs, "--workers", "2", "--device", "cpu"]
    with (tmp_path / "shown").open("w") as shown:
        process = subprocess.Popen(line, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_it_listens(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(90) == 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "shown").read_text()
    assert "stopped; the same command goes on from here" in said and "Traceback" not in said


LATENCY = 'objectives=("top1", "latency"), constraints={"macs": 3e5},'


def time_by_width(runtime, runs):
    """A machine that is slower by chance each time that it is asked, and that takes a millisecond a channel."""
    pace = 1 + random.random()
    return [pace * run.model.stages[0].width for run in runs]


def test_latency_is_sought_on_one_scale_whatever_the_pace(tmp_path):
    file, runs = write_search(tmp_path, trials=4, more=LATENCY + ' runtime="eager",'), tmp_path / "runs"
    definition = load_search(str(file)).define(None, {})
    prepared = prepare(runs, definition, 2, None, time_by_width)
    base = prepared.trials.study.user_attrs["base_latency_ms"]
    assert search_here(prepared, 2, "cpu")
    assert search_here(prepare(runs, definition, 4, None, time_by_width), 1, "cpu")  # later, at another pace
    trials = Trials(runs, search_folder(runs, definition.label), Owner.here("test"))
    found = [(trials.config(t).model.stages[0].width, t.values[1]) for t in trials.all() if t.state.name == "COMPLETE"]
    width = definition.base_run().model.stages[0].width
    assert len(found) == 4 and all(value == pytest.approx(base * own / width) for own, value in found)


def test_latency_from_the_command_line(tmp_path):
    runs = tmp_path / "runs"
    file = write_search(tmp_path, more=LATENCY)
    assert "on what? Name it" in launch("search", file, "--runs", runs, code=2).stderr
    file = write_search(tmp_path, trials=1, more=LATENCY + ' runtime="eager",')
    refused = launch("search", file, "--runs", runs, "--cluster", "slurm", code=2).stderr
    assert "latency is measured on one machine" in refused and not runs.exists()
    file.write_text(file.read_text().replace('runtime="eager"', 'runtime="eagre"'))
    assert "backend 'eagre': one of eager" in launch("search", file, "--runs", runs, code=2).stderr
    assert not runs.exists(), "a study that holds on to a runtime that there is not"
    file.write_text(file.read_text().replace('runtime="eagre"', 'runtime="eager"'))
    shown = launch("search", file, "--workers", 1, "--runs", runs).stdout
    assert "sought: top1, latency; latency on eager" in shown
    trials = load_trials(runs, "tiny", "tiny")
    assert (trials.loc[trials["state"] == "done", "latency"] > 0).all() and "ms" in shown
