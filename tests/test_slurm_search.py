"""A search on a cluster: its trials are jobs like a grid's. Commands stand in for SLURM's (`fake_slurm`)."""

from types import SimpleNamespace

import fake_slurm
import pytest
from test_search import begin, train

from metamixer import ConfigError, jsonl
from metamixer.training.folder import RunFolder
from sweeps import ask as sweeps_ask
from sweeps.ask import search_on_slurm
from sweeps.follow import cancel, select, standings
from sweeps.profiles import Profile
from sweeps.states import State
from sweeps.submissions import read_submissions
from sweeps.trials import read_trials

PROFILE = Profile(minutes=60, gpus_per_node=1)
ALONE = 'objectives=("top1",), constraints={"macs": 3e5},'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def submit(asker, workers, watch=None, stop_early=False, max_gpu_hours=None):
    return search_on_slurm(asker, workers, PROFILE, stop_early, watch, max_gpu_hours, max_attempts=3)


def submitted(root):
    return [hash for each in read_submissions(root) if each.job for hash in each.hashes]


def test_so_many_trials_are_queued_and_a_new_one_for_each_that_ends(tmp_path, slurm, root):
    asker = begin(tmp_path, root, wanted=5)
    assert submit(asker, 3) and len(submitted(root)) == 3
    assert submit(asker, 3) and len(submitted(root)) == 3, "nothing has ended"
    entries = select(root, ["tiny"])
    assert [entry.variant for entry in entries] == [run.name.removesuffix(" seed 0") for run in asker.open_runs()]
    assert {each.state for each in standings(root, entries).runs.values()} == {State.QUEUED}
    train(asker, asker.open_runs()[0])
    fake_slurm.change(slurm, jobs={"1": ""})  # and the other two were lost before they began
    assert submit(begin(tmp_path, root, wanted=5), 3)
    assert len(submitted(root)) == 6 and len(set(submitted(root))) == 4
    for run in asker.open_runs():
        train(asker, run)
    assert submit(asker, 3) and len(set(submitted(root))) == 5
    train(asker, asker.open_runs()[0])
    assert submit(asker, 3) and asker.ended() == 5 and len(set(submitted(root))) == 5


def test_a_refusal_loses_no_trial(tmp_path, slurm, root):
    fake_slurm.change(slurm, refuse=[1])
    asker = begin(tmp_path, root, wanted=2)
    assert not submit(asker, 2) and submitted(root) == []
    rows = read_trials(asker.folder)
    assert submit(begin(tmp_path, root, wanted=2), 2)
    assert read_trials(asker.folder) == rows and len(submitted(root)) == 2


def test_who_watches_sees_it_to_its_end_and_stops_what_is_below_the_median(tmp_path, slurm, root, monkeypatch):
    """The first five trials end between two looks; of those after them one is far below, and is cancelled."""
    asker = begin(tmp_path, root, wanted=7, epochs=3, more=ALONE)
    looks = []

    def pause(seconds):
        looks.append(seconds)
        runs = asker.open_runs()
        if len(looks) == 1:
            fake_slurm.change(slurm, jobs={"1": ""})
            for run in runs:
                train(asker, run, score=lambda config: 10.0)
        elif len(looks) == 2:
            fake_slurm.change(slurm, jobs={"1": "", "2": "RUNNING"})
            for run, score in zip(runs, (5.0, 15.0), strict=True):
                folder = RunFolder(root / run.hash)
                folder.create(run.config)
                jsonl.append(folder.path / "metrics.jsonl", {"epoch": 1, "val_top1": score})
        elif len(looks) == 3:
            assert "scancel" in (slurm / "calls.log").read_text()
            (left,) = runs
            fake_slurm.change(slurm, jobs={"1": "", "2": ""})
            train(asker, left)
        else:
            raise AssertionError("all trials have ended, but it goes on")

    monkeypatch.setattr(sweeps_ask, "time", SimpleNamespace(sleep=pause))
    assert submit(asker, 5, watch=1.0, stop_early=True)
    assert looks == [1.0] * 3 and asker.ended() == 7 and len(submitted(root)) == 7
    assert sum("stopped" in row for row in read_trials(asker.folder)) == 1


def test_trials_are_cancelled_by_the_searchs_name(tmp_path, slurm, root):
    asker = begin(tmp_path, root, wanted=2)
    submit(asker, 2)
    assert cancel(root, ["tiny"], None) == ["cancelled 2 jobs"]


def test_a_search_that_may_take_too_many_hours_proposes_nothing(tmp_path, slurm, root):
    asker = begin(tmp_path, root, wanted=6)
    with pytest.raises(ConfigError, match=r"2 runs may take .* GPU-hours"):
        submit(asker, 2, max_gpu_hours=1)
    with pytest.raises(ConfigError, match=r"6 runs may take .* GPU-hours"):
        submit(asker, 2, watch=1.0, max_gpu_hours=1)
    assert read_trials(asker.folder) == []
