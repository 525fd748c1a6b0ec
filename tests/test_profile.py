"""Profiles: all parts of a step are timed, and what is timed is the step itself."""

from contextlib import contextmanager

import pytest
import torch
from small import RUN

from metamixer import ConfigError, override
from metamixer.training import profile, show
from metamixer.training.data import Data
from metamixer.training.learner import Learner


def test_the_parts_make_up_the_step_and_the_memory_is_the_networks():
    config = override(RUN, {"recipe.micro_batch": 16})
    found = profile.measure(config, steps=3, device="cpu")
    assert list(found.parts) == ["data", "forward", "backward", "optimizer", "average", "other"]
    assert all(milliseconds > 0 for milliseconds in found.parts.values())
    assert found.images == 32 and found.images_per_second == pytest.approx(32_000 / found.step)
    state = config.build().state_dict().values()
    parameters = sum(p.nbytes for p in config.build().parameters())
    assert found.memory["weights"] == found.memory["average"] == sum(t.nbytes for t in state) / 2**20
    assert found.memory["gradients"] == parameters / 2**20
    # AdamW's two moments, and a counter for each tensor
    counters = 4 * len(list(config.build().parameters()))
    assert found.memory["optimizer"] == (2 * parameters + counters) / 2**20
    assert found.memory["peak"] > sum(value for name, value in found.memory.items() if name != "peak")


def test_a_clock_changes_no_number():
    """A profiled step trains as a plain one."""

    data = Data(RUN.data, RUN.recipe, 0)
    learners = [Learner(RUN, torch.device("cpu"), data.steps) for _ in range(2)]
    entered = []

    @contextmanager
    def section(name):
        entered.append(name)
        yield

    learners[1].section = section
    for learner in learners:
        learner.train_step(data.batches(0))
    assert entered == ["data", "forward", "backward", "optimizer", "average"]
    assert all(map(torch.equal, *(learner.model.state_dict().values() for learner in learners)))


def test_the_table(capsys):
    show.show_profile(RUN, "cpu", None, 2)
    printed = capsys.readouterr().out
    for word in ("data", "forward", "backward", "optimizer", "average", "weights", "peak", "images/s on cpu"):
        assert word in printed
    with pytest.raises(ConfigError, match="steps 0"):
        profile.measure(RUN, 0)


def test_of_several_processes_the_first_one_prints(capsys, monkeypatch):
    found = profile.Profile(2.0, {"data": 1.0, "other": 1.0}, 32, {"peak": 8.0}, torch.device("cpu"))
    monkeypatch.setattr(show, "measure", lambda *_: found)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        show.show_profile(RUN, "cpu", None)
        assert ("2.0 ms a step of 32 images" in capsys.readouterr().out) == (rank == "0")
