"""A task in the place of a data set: trained, killed and resumed, evaluated, planned like any run."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_commands import launch
from test_training import Killed, at_steps, outcome, same

from metamixer import ConfigError, digest, isotropic, override, parse
from metamixer.plugins import load_module
from metamixer.recipes import PROBE, named_run
from metamixer.tasks import NOT_ASKED, Metric, asked, register
from metamixer.tasks.recall import Recall
from metamixer.training.data import Data
from metamixer.training.data_config import TaskData
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig
from metamixer.training.score import score
from metamixer.training.statistics import statistics
from metamixer.training.train import train

DATA = {"task": {"name": "recall", "pairs": 4, "size": 8}, "train_samples": 35, "val_samples": 12, "test_samples": 13}
CONFIG = override(
    RunConfig(model=isotropic(2, 8, "depthwise"), data=parse(TaskData, DATA), recipe=PROBE),
    {
        "recipe.epochs": 3,
        "recipe.batch_size": 8,
        "recipe.micro_batch": 4,
        "recipe.drop_path_rate": 0.2,
        "recipe.ema_decay": 0.9,
    },
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / digest(CONFIG)
    train(CONFIG, path, "cpu")
    return path, outcome(path)


def test_answers_that_are_asked_are_what_is_measured(undisturbed):
    path, found = undisturbed
    result, predictions = found["result"], found["predictions"]
    assert result["state"] == "done" and result["raw"]["images"] == 13 and len(predictions["label"]) == 13 * 4
    assert result["metric"] == "accuracy" and "top1" not in result["raw"]
    assert result["accuracy"] == pytest.approx(100 * np.mean(predictions["ema"] == predictions["label"]))
    assert {"val_accuracy", "val_accuracy_ema", "val_loss"} < found["rows"][-1].keys()
    progress = RunFolder(path).read("progress.json")
    assert (progress["metric"], progress["score"]) == ("accuracy", found["rows"][-1]["val_accuracy_ema"])
    _, answers = CONFIG.data.built.samples(0, "test", torch.arange(13))
    assert predictions["label"].tolist() == answers[answers != NOT_ASKED].tolist()
    rows, data, _ = score(str(path), CONFIG.data, {}, device="cpu")
    assert data == CONFIG.data and rows["ema"] == result["ema"] and rows["raw"] == result["raw"]


def test_killed_and_resumed_it_gives_the_same_bits(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.training.train.CHECKPOINT_SECONDS", -1.0)

    def kill():
        raise Killed

    at_steps(monkeypatch, [3, 6, 11], kill)
    for _ in range(3):
        with pytest.raises(Killed):
            train(CONFIG, tmp_path / "run", "cpu")
    train(CONFIG, tmp_path / "run", "cpu")
    assert same(outcome(tmp_path / "run"), undisturbed[1])


def test_the_best_epoch_is_that_of_the_lowest_score_where_lower_is_better(tmp_path):
    @register
    class Wrong(Recall):
        name = "wrong"

        def __init__(self, config):
            super().__init__(config)
            self.metrics = (Metric("error", "error", "%", higher_is_better=False),)

        def measure(self, tally):
            loss, right, count = tally.tolist()
            return {"error": 100 - 100 * right / count, "loss": loss / count}

    train(override(CONFIG, {"data.task.name": "wrong", "data.val_samples": 30}), tmp_path / "run", "cpu")
    found = outcome(tmp_path / "run")
    scores = [row["val_error_ema"] for row in found["rows"]]
    assert len(set(scores)) > 1 and found["result"]["best"]["val_error"] == min(scores)


def batches(seed=0, epoch=0, **position):
    return list(Data(CONFIG.data, CONFIG.recipe, seed).batches(epoch, **position))


def equal(one, two):
    return len(one) == len(two) and all(map(torch.equal, itertools.chain(*one), itertools.chain(*two)))


def test_no_sample_comes_twice_and_processes_share_each_step():
    epochs = [batches(epoch=epoch) for epoch in range(3)]
    inputs = torch.cat([x for epoch in epochs for x, _ in epoch])
    assert len(inputs) == 3 * 4 * 8 == len({x.numpy().tobytes() for x in inputs})
    assert equal(epochs[1][4:], batches(epoch=1, first_step=2))
    shared = [batches(rank=rank, processes=2) for rank in (0, 1)]
    assert equal(list(itertools.chain(*zip(*shared, strict=True))), epochs[0])
    assert not equal(epochs[0], batches(seed=1))


def test_what_is_evaluated_is_the_same_for_every_seed_and_shared_out():
    data = [Data(CONFIG.data, CONFIG.recipe, seed) for seed in (0, 1)]
    whole = [torch.cat(x) for x in zip(*data[0].evaluation("val"), strict=True)]
    assert len(whole[0]) == 12 and equal([whole], list(data[1].evaluation("val")))
    parts = [list(data[0].evaluation("test", rank, 3)) for rank in range(3)]
    assert [sum(len(x) for x, _ in part) for part in parts] == [4, 4, 5]
    joined = [torch.cat(x) for x in zip(*itertools.chain(*parts), strict=True)]
    assert equal([joined], list(data[0].evaluation("test")))


def test_one_row_for_each_answer():
    logits, classes = torch.randn(2, 3, 2, 2), torch.tensor([[[0, -100], [2, 1]], [[-100, -100], [-100, 0]]])
    rows, answers = asked(logits, classes)
    places = [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1)]
    assert answers.tolist() == [0, 2, 1, 0]
    assert torch.equal(rows, torch.stack([logits[b, :, i, j] for b, i, j in places]))
    assert asked(logits[..., 0, 0], torch.tensor([1, 2]))[1].tolist() == [1, 2]


def test_a_users_own_task_is_trained_and_evaluated_from_the_command_line(tmp_path):
    (tmp_path / "own.py").write_text(
        "from metamixer.tasks import register\nfrom metamixer.tasks.local import Parity\n\n"
        "@register\nclass Odd(Parity):\n    name = 'odd'\n"
    )
    small = [f"--set={key}" for key in ('data.task={"name": "odd"}', "recipe.epochs=2", "data.train_samples=64")]
    runs = tmp_path / "runs"
    shown = launch("train", "recall", "--module", tmp_path / "own.py", *small, "--runs", runs, "--device", "cpu")
    (tmp_path / "own.py").unlink()  # the run has its copy
    (folder,) = runs.glob("*/config.json")
    again = launch("evaluate", folder.parent, "--device", "cpu")
    assert shown.stdout.count("task odd") == again.stdout.count("task odd") == 1
    raw = [line.split()[-3:] for line in (shown.stdout + again.stdout).splitlines() if line.startswith("raw")]
    assert raw[0] == raw[1] and raw[0][-1] == "500"


def test_the_pages_own_data_set_is_trained_from_files_with_any_number_of_workers(tmp_path, undisturbed):
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    (tmp_path / "arrays.py").write_text(page.split("```python\n")[1].split("```")[0])
    load_module(str(tmp_path / "arrays.py"))
    draws = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6), ("test", 9)):
        np.save(tmp_path / f"{split}_inputs.npy", draws.normal(size=(count, 4, 2, 3)).astype("f4"))
        np.save(tmp_path / f"{split}_answers.npy", draws.integers(0, 3, count))
    task = {"name": "arrays", "root": str(tmp_path), "num_classes": 3}
    data = {"task": task, "val_samples": 6}
    config = override(CONFIG, {"data": data, "recipe.epochs": 2})
    inputs, _ = (torch.cat(part) for part in zip(*Data(config.data, config.recipe).batches(0), strict=True))
    assert inputs.shape == (16, 4, 2, 3) and len({x.numpy().tobytes() for x in inputs}) == 16
    found = statistics(override(config, {"recipe.batch_size": 4, "recipe.micro_batch": None}), 1000)
    values = np.load(tmp_path / "train_inputs.npy")
    assert found == (pytest.approx(values.mean((0, 2, 3)), abs=1e-6), pytest.approx(values.std((0, 2, 3)), abs=1e-6))
    found = []
    for workers in (0, 2):
        train(config, tmp_path / f"run{workers}", "cpu", workers)
        found.append(outcome(tmp_path / f"run{workers}"))
    assert same(*found) and found[0]["result"]["raw"]["images"] == 9
    with pytest.raises(ConfigError, match=r"data\.val_samples 7: task arrays .* has 6"):
        Data(override(config, {"data.val_samples": 7}).data, config.recipe)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.task.pairs": 17}, "data.task: task recall: 17 pairs need as many keys"),
        ({"data.test_samples": None}, "data: test_samples: task 'recall' makes them without end; say how many"),
        ({"data.test_samples": 0}, "data.test_samples: .*greater than 0"),
        ({"data.classes": 3}, "data.classes: no key 'classes'; the keys are task"),
        ({"recipe.flip_prob": 0.5}, r"recipe.flip_prob 0.5: a task's samples are trained on as they are, set it to 0"),
        ({"recipe.rand_augment": "rand-m9"}, "recipe.rand_augment 'rand-m9': .*set it to null"),
        ({"recipe.label_smoothing": 0.1}, "recipe.label_smoothing"),
        ({"data.task.picture": True}, "task 'recall' asks 8×8 cells, the network answers for 32×32: change model.stem"),
        ({"model.stem_stride": 3}, "the image is 8 wide, which patches of 3 do not fill"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(CONFIG, changes)
    assert "\n" not in str(error.value)


def test_fewer_samples_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"7 training samples, fewer than one batch of 8"):
        train(override(CONFIG, {"data.train_samples": 7}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["strips", "majority", "path", {"name": "recall", "picture": True}])
def test_every_kind_of_task_has_its_network(task):
    patch = 4 if isinstance(task, dict) else 1
    run = override(named_run("recall"), {"data.task": task, "model.stem_stride": patch})
    channels, height, width = run.data.input_size
    out = run.build()(torch.randn(2, channels, height, width))
    cells = (height // patch, width // patch) if run.data.head == "cells" else ()
    assert out.shape == (2, run.data.num_classes, *cells)
