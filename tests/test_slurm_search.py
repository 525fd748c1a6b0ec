"""A search on a cluster: its trials are jobs like a grid's. Commands stand in for SLURM's (`fake_slurm`)."""

from types import SimpleNamespace

import fake_slurm
import pytest
from test_search import begin, train

from metamixer import ConfigError
from sweeps import ask as sweeps_ask
from sweeps.ask import search_on_slurm
from sweeps.follow import cancel, select, standings
from sweeps.profiles import Profile
from sweeps.states import State
from sweeps.submissions import read_submissions
from sweeps.trials import read_trials

PROFILE = Profile(minutes=60, gpus_per_node=1)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def submit(asker, workers, max_gpu_hours=None):
    return search_on_slurm(asker, workers, PROFILE, max_gpu_hours)


def submitted(root):
    return [hash for each in read_submissions(root) if each.job for hash in each.hashes]


@pytest.fixture
def looks(monkeypatch):
    """What happens between one look at the jobs and the next, each a function; Ctrl-C after the last one."""
    scripted = []

    def pause(seconds):
        if not scripted:
            raise KeyboardInterrupt
        scripted.pop(0)()

    monkeypatch.setattr(sweeps_ask, "time", SimpleNamespace(sleep=pause))
    return scripted


def leave(asker, workers):
    with pytest.raises(KeyboardInterrupt):
        submit(asker, workers)


def test_so_many_trials_are_queued_and_a_new_one_for_each_that_ends(tmp_path, slurm, root, looks):
    asker = begin(tmp_path, root, wanted=5)
    leave(asker, 3)
    assert len(submitted(root)) == 3
    leave(asker, 3)
    assert len(submitted(root)) == 3, "nothing has ended"
    entries = select(root, ["tiny"])
    assert [entry.variant for entry in entries] == [run.name.removesuffix(" seed 0") for run in asker.open_runs()]
    assert {each.state for each in standings(root, entries).runs.values()} == {State.QUEUED}
    train(asker, asker.open_runs()[0])
    fake_slurm.change(slurm, jobs={"1": ""})  # and the other two were lost before they began

    def all_end():
        for run in asker.open_runs():
            train(asker, run)

    looks += [all_end, all_end]
    assert submit(begin(tmp_path, root, wanted=5), 3) and not looks
    assert asker.left() == 0 and len(submitted(root)) == 7 and len(set(submitted(root))) == 5


def test_a_refusal_loses_no_trial(tmp_path, slurm, root, looks):
    fake_slurm.change(slurm, refuse=[1])
    asker = begin(tmp_path, root, wanted=2)
    assert not submit(asker, 2) and submitted(root) == []
    rows = read_trials(asker.folder)
    leave(begin(tmp_path, root, wanted=2), 2)
    assert read_trials(asker.folder) == rows and len(submitted(root)) == 2


def test_trials_are_cancelled_by_the_searchs_name(tmp_path, slurm, root, looks):
    asker = begin(tmp_path, root, wanted=2)
    leave(asker, 2)
    assert cancel(root, ["tiny"], None) == ["cancelled 2 jobs"]


def test_a_search_that_may_take_too_many_hours_proposes_nothing(tmp_path, slurm, root):
    asker = begin(tmp_path, root, wanted=6)
    with pytest.raises(ConfigError, match=r"6 runs may take .* GPU-hours"):
        submit(asker, 2, max_gpu_hours=1)
    assert read_trials(asker.folder) == []
