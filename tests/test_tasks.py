"""Probes: samples by counter, answers by an oracle, chance and ceilings as declared."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from metamixer import ConfigError
from metamixer.plugins import load_module
from metamixer.tasks import NOT_ASKED, TASKS, Probe, Streams, Task, TaskConfig, build_task, register, resolve_task
from metamixer.tasks.checks import check_task
from metamixer.tasks.recall import most_frequent

PROBES = [name for name, cls in TASKS.items() if issubclass(cls, Probe)]
KINDS = [{}, {"permuted": True}, {"picture": True}, {"picture": True, "permuted": True}]
VARIANTS = [{"name": name, **kind} for name in PROBES for kind in KINDS] + [
    {"name": "strips"},
    {"name": "strips", "permuted": True},
    {"name": "relation", "question": "furthest"},
    {"name": "relation", "question": "count"},
    {"name": "recall", "pairs": 16, "keys": 30, "values": 25, "picture": True},
    {"name": "noisy_recall", "noise": 1.0},
    {"name": "shift", "size": 7, "distance": 3},
    {"name": "parity", "radius": 4, "size": 5},
    {"name": "match", "size": 12, "shapes": 9},
    {"name": "path", "size": 13, "length": 30},
    {"name": "majority", "symbols": 16, "size": 4},
]
SEVERAL = torch.arange(1000)


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_the_oracle_is_always_right_and_a_constant_answer_is_chance(config):
    task = build_task(config)
    inputs, answers = task.samples(0, "train", SEVERAL)
    assert inputs.shape == (1000, task.in_chans, *task.input_size) and inputs.dtype == torch.float32
    asked = answers != NOT_ASKED
    assert torch.equal(task.oracle(inputs)[asked], answers[asked])
    shares = torch.bincount(answers[asked], minlength=task.num_classes) / asked.sum()
    assert len(shares) == task.num_classes  # no answer that a network could not give
    assert 100 * float(shares.max()) == pytest.approx(task.metrics[0].chance, abs=4)
    assert task.metrics[0].chance < task.metrics[0].solved < 100
    outputs = torch.nn.functional.one_hot(task.oracle(inputs).clamp(0), task.num_classes).movedim(-1, 1).float()
    assert task.measure(task.tally(outputs, answers))["accuracy"] == 100
    assert float(task.loss(1000 * outputs, answers)) == 0


@pytest.mark.parametrize("name", [*PROBES, "strips"])
def test_a_sample_depends_on_seed_split_and_index_alone(name):
    task = build_task(name)
    inputs, answers = task.samples(3, "train", SEVERAL[:50])
    some = torch.tensor([41, 7])
    again = build_task(name).samples(3, "train", some)
    assert torch.equal(again[0], inputs[some]) and torch.equal(again[1], answers[some])
    assert len({hash(sample.numpy().tobytes()) for sample in inputs}) == 50
    for other in (task.samples(4, "train", some), task.samples(3, "test", some)):
        assert not torch.equal(other[0], again[0])


def fingerprint(device="cpu"):
    digest = hashlib.sha256()
    for config in VARIANTS:
        for part in build_task(config).samples(5, "test", torch.arange(100, 140, device=device)):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def test_processes_with_other_threads_and_hash_seeds_make_the_same_samples():
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "import test_tasks; print(test_tasks.fingerprint())"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_samples():
    assert fingerprint("cuda") == fingerprint()


def splitmix(state):
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_streams_are_splitmix64():
    """Its published constants, in Python's integers: seed 1234567 begins with 6457827717110365317."""
    gamma = 0x9E3779B97F4A7C15
    assert splitmix((1234567 + gamma) % 2**64) == 6457827717110365317
    streams, indices = Streams(99, torch.tensor([0, 5])), (0, 5)
    first, rest = streams.words(3), streams.words(2, 2)
    drawn = torch.cat([first, rest.flatten(1)], 1).numpy().view(np.uint64)
    for row, index in zip(drawn, indices, strict=True):
        key = splitmix((99 + index * gamma) % 2**64)
        assert row.tolist() == [splitmix((key + (n + 1) * gamma) % 2**64) for n in range(7)]


def test_integers_and_permutations_are_uniform():
    streams = Streams(1, torch.arange(20_000))
    counts = np.bincount(streams.integers(6, 1).flatten(), minlength=6)
    assert ((counts - 20_000 / 6) ** 2 / (20_000 / 6)).sum() < 20.5  # chi-square, five degrees, p = 0.001
    orders = Counter(map(tuple, streams.permutations(3).tolist()))
    assert set(orders) == set(itertools.permutations(range(3)))
    assert sum((n - 20_000 / 6) ** 2 / (20_000 / 6) for n in orders.values()) < 20.5
    assert streams.integers(torch.tensor([[1, 5]]), 2).amax(0).tolist() == [0, 4]


@pytest.mark.parametrize("draws, kinds", [(3, 2), (4, 3), (5, 2)])
def test_the_most_frequent_kinds_share_by_counting_all_outcomes(draws, kinds):
    outcomes = [max(Counter(o).values()) / draws for o in itertools.product(range(kinds), repeat=draws)]
    assert most_frequent(draws, kinds) == pytest.approx(np.mean(outcomes))


@pytest.mark.parametrize("name", ["recall", "noisy_recall", "split_recall"])
def test_recalls_ceiling_without_binding_is_what_the_most_frequent_value_gets(name):
    task = build_task(name)
    inputs, answers = task.samples(0, "train", torch.arange(4000))
    values = inputs[:, -task.config.values :].sum((2, 3)).argmax(1)[:, None, None].expand_as(answers)
    asked = answers != NOT_ASKED
    share = 100 * float((values == answers)[asked].float().mean())
    (level,) = task.metrics[0].levels.values()
    assert share == pytest.approx(level, abs=0.7) and level == pytest.approx(25.8, abs=0.05)


def test_a_linear_reading_of_the_neighbours_knows_nothing_of_their_parity():
    inputs, answers = build_task("parity").samples(0, "train", SEVERAL)
    windows = torch.nn.functional.unfold(inputs, 3, padding=1)[:, :, 9:-9].transpose(1, 2).reshape(-1, 9)
    design = torch.cat([windows, torch.ones(len(windows), 1)], 1)
    signs = answers.flatten(1)[:, 9:-9].reshape(-1, 1).float() * 2 - 1
    fit = design @ torch.linalg.lstsq(design, signs).solution
    assert float(((fit > 0) == (signs > 0)).float().mean()) < 0.53


def test_a_path_is_not_told_by_what_lies_at_its_marks_or_by_counting():
    task = build_task("path")
    inputs, answers = task.samples(0, "train", torch.arange(4000))
    joined = torch.where(answers != NOT_ASKED, answers, 0).amax((1, 2)).float()
    drawn, marks = inputs.unbind(1)
    ends = marks.nonzero()[:, 1:].view(-1, 2, 2)
    cross = torch.tensor([[[[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]]])
    beside = torch.nn.functional.conv2d(drawn[:, None], cross, padding=1)[:, 0]
    clues = {
        "distance": (ends[:, 0] - ends[:, 1]).abs().sum(1).float(),
        "cells": drawn.sum((1, 2)),
        "beside the marks": (beside * marks).sum((1, 2)),
    }
    for name, clue in clues.items():
        assert abs(np.corrcoef(clue, joined)[0, 1]) < 0.12, name


def test_permuted_twin_holds_the_same_cells_in_other_places():
    plain, twin = build_task("shift"), build_task({"name": "shift", "permuted": True})
    (cells, answers), (moved, moved_answers) = (task.samples(0, "train", SEVERAL[:2]) for task in (plain, twin))
    pairs = lambda x, y: torch.cat([x, y[:, None]], 1).flatten(2)[0].T.tolist()  # noqa: E731
    assert not torch.equal(cells, moved)
    assert sorted(pairs(cells, answers)) == sorted(pairs(moved, moved_answers))


@pytest.mark.parametrize(
    "config, message",
    [
        ("recal", "no task 'recal'; did you mean 'recall'"),
        ({"pairs": 4}, "a task is a name"),
        ({"name": "recall", "pair": 4}, "task recall.pair: unknown key .pair.; it takes .*pairs = 8"),
        ({"name": "recall", "pairs": 17}, "17 pairs need as many keys, and there are 16"),
        ({"name": "split_recall", "size": 4}, "8 pairs and their questions need 16 of 8 places"),
        ({"name": "shift", "distance": 5}, "distance 5: at most half of the 6 cells"),
        ({"name": "parity", "radius": 0}, "task parity.radius: input should be greater than or equal to 1, got 0"),
        ({"name": "match", "shapes": 5}, "5 shapes: 8×8 cells have room for 4"),
        ({"name": "path", "size": 8}, "size: .*12"),
        ({"name": "relation", "question": "nearest"}, "question: .*'closest'"),
    ],
)
def test_bad_input_is_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_task(config)
    assert "\n" not in str(error.value)


OWN = """
import random
import torch
from metamixer.tasks import Metric, Task, TaskConfig, register

@register
class Sign(Task):
    name = "sign"
    in_chans, input_size, num_classes = 1, (1, 1), 2
    metrics = (Metric("accuracy", "accuracy", "%", chance=50.0, solved=95.0),)

    class Config(TaskConfig):
        pass

    def samples(self, seed, split, indices):
        BODY
        return x[:, None, None, None], (x > 0).long()

    def oracle(self, inputs):
        return (inputs[:, 0, 0, 0] > 0).long()
"""
GOOD = "x = torch.sin(indices * (seed + 1) + len(split))"
FAULTS = {
    "": (),
    "x = torch.sin(indices * (seed + 1) + hash(split) % 100)": ("processes",),
    "x = torch.randn(len(indices)) + 1": ("repeatable", "processes", "chance"),
}


def test_a_shipped_task_keeps_the_contract():
    assert [row for row in check_task({"name": "path", "picture": True}) if row.passed is not True] == []


@pytest.mark.parametrize("body", FAULTS)
def test_a_users_own_task_is_checked(body, tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.tasks.task.TASKS", dict(TASKS))
    (tmp_path / "own.py").write_text(OWN.replace("BODY", body or GOOD))
    load_module(str(tmp_path / "own.py"))
    rows = {row.name: row.passed for row in check_task("sign")}
    assert {name for name, passed in rows.items() if not passed} == set(FAULTS[body])


def test_a_metric_that_is_not_measured_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.tasks.task.TASKS", dict(TASKS))
    own = OWN.replace("BODY", GOOD).replace("solved=95.0),)", 'solved=95.0), Metric("f1", "F1"))')
    (tmp_path / "own.py").write_text(own)
    load_module(str(tmp_path / "own.py"))
    rows = {row.name: row for row in check_task("sign")}
    assert rows["metrics"].detail.endswith("`measure` gives accuracy, loss, but no f1")


def test_a_task_without_an_oracle_fails_that_row(monkeypatch):
    monkeypatch.setattr(TASKS["shift"], "solve", Probe.solve)
    rows = {row.name: row for row in check_task("shift")}
    assert rows["oracle"].passed is False and rows["oracle"].detail.endswith("it is not defined")


PAGE = (Path(__file__).parent.parent / "docs" / "probes.md").read_text()


def test_the_page_has_every_task_with_its_dial_and_chance():
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in PAGE.splitlines()]
    table = {row[0]: (row[2], float(row[3])) for row in rows if row[0] in TASKS}
    dials = {name: cls.dial for name, cls in TASKS.items() if hasattr(cls, "dial")}
    assert table == {name: (dial, build_task(name).metrics[0].chance) for name, dial in dials.items()}


def test_the_pages_own_task_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.tasks.task.TASKS", dict(TASKS))
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "@register" in block]
    (tmp_path / "corner.py").write_text(code)
    load_module(str(tmp_path / "corner.py"))
    assert [row for row in check_task("corner") if not row.passed] == []


def test_a_users_own_task_is_registered_and_a_taken_name_is_refused(monkeypatch):
    monkeypatch.setattr("metamixer.tasks.task.TASKS", dict(TASKS))

    @register
    class Mine(Task):
        name = "mine"

        class Config(TaskConfig):
            dial: int = 3

    assert resolve_task({"name": "mine", "dial": 4}).dial == 4
    with pytest.raises(ConfigError, match="needs a name"):
        register(type("Nameless", (Task,), {}))
    with pytest.raises(ConfigError, match=r"'mine' is already registered by .*Mine"):
        register(type("Other", (Task,), {"name": "mine"}))
