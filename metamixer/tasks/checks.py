"""The contract of a task: what holds for every one that ships, checked on any other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import Check, reason, rows_of
from .task import NOT_ASKED, Task, build_task, fingerprint

COUNT = 500


def check_task(value: Any) -> list[Check]:
    """A row for each promise of a task, which `resolve_task` understands by `value`; nothing raises."""
    with torch.random.fork_rng(devices=[]):
        try:
            task = build_task(value)
            inputs, answers = task.samples(0, "train", torch.arange(COUNT))
        except Exception as error:
            return [Check("builds", False, reason(error))]
        return [Check("builds", True, f"task {task.name!r}"), *rows_of(_PROMISES, task, inputs, answers)]


def _shapes(task: Task, inputs: Tensor, answers: Tensor) -> str:
    declared = (COUNT, task.in_chans, *task.input_size)
    assert inputs.shape == declared, f"inputs are {tuple(inputs.shape)}, declared is {declared}"
    assert inputs.dtype == torch.float32 and bool(inputs.isfinite().all()), "inputs are finite float32"
    if not answers.is_floating_point():
        dimensions = {"pooled": 1, "cells": 3}[task.head]
        assert answers.ndim == dimensions, f"head {task.head!r}: answers have {dimensions} axes, not {answers.ndim}"
    size = tuple(answers.shape[1:])
    same = not size or size[-2:] == task.answer_size
    assert same, f"answers are {size}, declared is {task.answer_size}"
    return f"inputs {tuple(inputs.shape[1:])}, answers {tuple(answers.shape[1:]) or 'one each'}"


def _repeatable(task: Task, inputs: Tensor, answers: Tensor) -> str:
    torch.manual_seed(1)
    kept = random.getstate(), np.random.get_state()
    try:
        random.seed(1), np.random.seed(1)
        some = torch.tensor([COUNT - 1, 3])
        again = task.samples(0, "train", some)
    finally:
        random.setstate(kept[0]), np.random.set_state(kept[1])
    same = torch.equal(again[0], inputs[some]) and torch.equal(again[1], answers[some])
    assert same, "a sample depends on more than seed, split and index: on its batch or a generator's state"
    assert not torch.equal(task.samples(1, "train", some)[0], again[0]), "two seeds have the same samples"
    first = torch.arange(1)
    other = task.samples(0, "test", first)[0], task.samples(0, "train", first)[0]
    assert not torch.equal(*other), "two splits have the same samples"
    return "by seed, split and index alone"


def _processes(task: Task, inputs: Tensor, answers: Tensor) -> str:
    source = sys.modules[type(task).__module__].__file__
    script = (
        "import sys; from metamixer.plugins import load_module; from metamixer.tasks import TASKS, fingerprint\n"
        "if sys.argv[1] not in TASKS: load_module(sys.argv[2])\n"
        "print(fingerprint(TASKS[sys.argv[1]], sys.argv[3]))"
    )
    config = task.config.model_dump_json()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, task.name, str(source), config]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    assert done.stdout.split()[-1] == fingerprint(type(task), config), "another process makes other samples"
    return "another process makes the same samples"


def _answers(task: Task, inputs: Tensor, answers: Tensor) -> str:
    if answers.is_floating_point():
        assert bool(answers.isfinite().all()), "answers are finite"
        return "numbers"
    asked = answers[answers != NOT_ASKED]
    assert len(asked), "nothing is asked"
    low, high = int(asked.min()), int(asked.max())
    assert low >= 0 and high < task.num_classes, f"answers {low} … {high} for {task.num_classes} classes"
    seen = len(asked.unique())
    return f"{seen} of {task.num_classes} classes seen, {len(asked) / COUNT:g} answers a sample"


def _chance(task: Task, inputs: Tensor, answers: Tensor) -> str:
    metric, asked = task.metrics[0], answers[answers != NOT_ASKED]
    if metric.chance is None:
        return f"metric {metric.name!r} declares none"
    constant = _as_outputs(task, torch.full_like(answers, int(asked.bincount().argmax())))
    measured = task.measure(task.tally(constant, answers))[metric.name]
    # samples are independent, the answers of one sample need not be
    within = 4 * (metric.chance * (100 - metric.chance) / COUNT) ** 0.5
    line = f"the best constant answer gets {measured:.1f} {metric.unit}, declared are {metric.chance:.1f}"
    assert abs(measured - metric.chance) <= within, line
    return line


def _oracle(task: Task, inputs: Tensor, answers: Tensor) -> str:
    metric, asked = task.metrics[0], answers != NOT_ASKED
    if metric.chance is None and type(task).oracle is Task.oracle:
        return "the task has none"
    found = task.oracle(inputs)
    wrong = int((found != answers)[asked].sum())
    assert not wrong, f"the oracle is wrong on {wrong} of {int(asked.sum())} answers"
    outputs = _as_outputs(task, torch.where(asked, found, 0))
    got = task.measure(task.tally(outputs, answers))[metric.name]
    solved = metric.solved is None or (got >= metric.solved) == metric.higher_is_better
    assert solved, f"the oracle's {metric.name} is {got:g}, which does not count as solved"
    return f"{metric.name} {got:g} {metric.unit} by the definition"


def _metrics(task: Task, inputs: Tensor, answers: Tensor) -> str:
    found = task.measure(task.tally(_random(task, answers), answers))
    missing = [name for name in (*(metric.name for metric in task.metrics), "loss") if name not in found]
    assert not missing, f"`measure` gives {', '.join(found)}, but no {', '.join(missing)}"
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items()) + " for random outputs"


def _loss(task: Task, inputs: Tensor, answers: Tensor) -> str:
    outputs = _random(task, answers).requires_grad_()
    loss = task.loss(outputs, answers)
    loss.backward()
    assert loss.ndim == 0 and bool(loss.isfinite()), "the loss is no finite number"
    assert outputs.grad is not None and bool(outputs.grad.any()), "the loss has no gradient"
    return f"{float(loss.detach()):.3g} for random outputs"


def _random(task: Task, answers: Tensor) -> Tensor:
    like = answers if answers.is_floating_point() else _as_outputs(task, answers.clamp(0))
    return torch.randn(like.shape)


def _as_outputs(task: Task, classes: Tensor) -> Tensor:
    """What a network that is sure of these classes gives."""
    return F.one_hot(classes, task.num_classes).movedim(-1, 1).float()


_PROMISES: dict[str, Callable[[Task, Tensor, Tensor], str]] = {
    "shapes": _shapes,
    "repeatable": _repeatable,
    "processes": _processes,
    "answers": _answers,
    "chance": _chance,
    "oracle": _oracle,
    "loss": _loss,
    "metrics": _metrics,
}
