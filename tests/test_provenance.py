"""The code that a run used: known by file, comments aside, and told apart from other code."""

import json

import pytest
from small import RUN
from test_training import Killed, at_steps
from torch import nn

from metamixer import override
from metamixer.training import provenance
from metamixer.training.data_config import TaskData
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import PACKAGE, changed_code, code_of, mixed_code
from metamixer.training.train import train


@pytest.fixture
def edit(monkeypatch):
    """Let a file of the package hold other code."""

    def edited(name):
        real = provenance._digest
        monkeypatch.setattr(provenance, "_digest", lambda path: "edited" if path == PACKAGE / name else real(path))

    return edited


def test_a_result_says_which_code_made_it_and_what_has_changed_since(tmp_path, edit):
    attention = override(RUN, {"model.stages.*.token_mixer": {"name": "pooling"}})
    for name, config in (("ffnet", RUN), ("pooling", attention)):
        train(override(config, {"recipe.epochs": 2}), tmp_path / name, "cpu")
    ffnet, pooling = (RunFolder(tmp_path / name).result()["code"] for name in ("ffnet", "pooling"))
    assert "training/learner.py" in ffnet and "ops/map_keys.py" in ffnet
    assert "ops/baseline.py" in pooling and "ops/baseline.py" not in ffnet
    assert changed_code(ffnet) == changed_code(pooling) == mixed_code([ffnet, pooling]) == []
    edit("ops/baseline.py")
    assert changed_code(ffnet) == [] and changed_code(pooling) == ["ops/baseline.py"]
    assert mixed_code([ffnet, pooling, code_of(attention.build())]) == ["ops/baseline.py"]


def test_a_tasks_own_code_is_recorded():
    task = TaskData(task="recall", train_samples=64, test_samples=64).built
    assert {"tasks/recall.py", "tasks/probe.py", "tasks/task.py"} <= code_of(nn.Identity(), task).keys()


def test_code_that_changed_while_a_run_was_under_way_is_named(tmp_path, monkeypatch, edit):
    def kill():
        raise Killed

    at_steps(monkeypatch, [7], kill)
    with pytest.raises(Killed):
        train(RUN, tmp_path / "run", "cpu")
    edit("layers.py")
    result = train(RUN, tmp_path / "run", "cpu")
    assert result["code_changed"] == ["layers.py"] and result["threads"] == 1
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["code"]["layers.py"] == "edited"
