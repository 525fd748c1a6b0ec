"""The tutorial's own code, from `docs/adding_a_mixer.md`, in a folder of its own: checked, planned and trained."""

import re
from pathlib import Path

import pytest

from metamixer.checks import PROMISES, check
from metamixer.config import parse_assignments
from metamixer.operation import REGISTRY
from metamixer.plugins import load_module
from metamixer.training.train import train
from sweeps import State, load_grid, make_plan

TEXT = (Path(__file__).parent.parent / "docs" / "adding_a_mixer.md").read_text()
TINY = {"recipe.epochs": 1, "recipe.warmup_epochs": 0, "data.train_samples": 128}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the tutorial; the operation that they register is forgotten afterwards."""
    for slot, known in REGISTRY.items():
        monkeypatch.setitem(REGISTRY, slot, dict(known))
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL)
    assert [name for name, _ in files] == ["my_op.py", "my_grid.py"] and TEXT.count("```python") == 3
    for name, code in files:
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_operation_keeps_the_contract(folder):
    load_module(str(folder / "my_op.py"))
    checks = check("dilated", coreml=False)
    assert [row for row in checks if row.passed is False] == []
    assert "in the mixer 'ffnified_attention'" in checks[0].detail


def test_the_grid_plans_and_trains(folder, monkeypatch):
    loaded = load_grid(str(folder / "my_grid.py"))
    assert loaded.question.startswith("Is it better to reach further?")
    assert make_plan(loaded, folder / "runs").count() == {State.NEW: 9}
    plan = make_plan(loaded, folder / "runs", overrides=TINY, seeds=[0], only=["dilated"])
    (run,) = plan.runs
    result = train(run.config, folder / "runs" / run.hash, "cpu")
    assert result["state"] == "done" and 0 <= result["top1"] <= 100
    again = make_plan(loaded, folder / "runs", overrides=TINY, seeds=[0], only=["dilated"])
    assert again.count() == {State.DONE: 1}
    plan.write_manifest()
    from analysis.frame import load
    from analysis.statistics import compare
    from analysis.tables import render

    comparison = compare(*(found := load(folder / "runs", "my_grid", plan.data)))
    assert list(comparison["variant"]) == ["dilated"] and render(comparison, found[1]) is not None


def test_every_row_and_command_is_described():
    for promise in PROMISES:
        assert re.search(rf"^\| [^|]*{re.escape(promise)}\b", TEXT, re.MULTILINE), promise
    commands = re.findall(r"^python launch\.py (\w+) (\S+)(.*?)(?:  #.*)?$", TEXT, re.MULTILINE)
    assert [command for command, _, _ in commands] == ["check", "plan", "run", "run"]
    for assignment in re.findall(r"--set (\S+)", TEXT):
        parse_assignments([assignment])
