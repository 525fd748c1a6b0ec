"""Killed at random steps, resumed with another number of data workers: the same bits as undisturbed.

With images that are streamed by workers, accumulated passes, mixup, cutmix, random erasing, stochastic depth,
distillation and an average of the weights all on; `test_training` does the same with images in memory.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small import FOLDER, RUN
from test_training import Killed, at_steps, outcome, same

from metamixer import ConfigError, override
from metamixer.training import checkpoint
from metamixer.training import train as train_module
from metamixer.training.folder import RunFolder
from metamixer.training.train import train

STEPS = 3 * 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("validation", 5)):
        for c in range(3):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (70 + i, 90 - i, 3), dtype=np.uint8) // (c + 1)
                Image.fromarray(pixels).save(root / split / f"class{c}" / f"{i}.png")
    return override(
        RUN,
        {
            "model.stem_stride": 4,
            **FOLDER,
            "data.root": str(root),
            "data.image_size": 72,
            "data.val_samples": 9,
            "recipe.micro_batch": 4,
            "recipe.weight_decay_end": 0.005,
        },
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(config, path, "cpu", workers=0)
    found = outcome(path)
    assert found["rows"][-1]["step"] == STEPS
    return found


def kill():
    raise Killed


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_steps_with_two_data_workers(config, undisturbed, tmp_path, monkeypatch, seed):
    """Each start begins with another number of workers; checkpoints come at random moments too."""
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(1, STEPS + 1), 3))
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", chance.choice([-1.0, 0.05, 300.0]))
    at_steps(monkeypatch, steps, kill)
    for _ in steps:
        with pytest.raises(Killed):
            train(config, tmp_path / "run", "cpu", workers=chance.choice([0, 2, 2]))
    train(config, tmp_path / "run", "cpu", workers=2)
    assert same(outcome(tmp_path / "run"), undisturbed), steps


def test_a_real_sigkill_with_two_data_workers(config, undisturbed, tmp_path):
    code = "import torch; torch.set_num_threads(1)\nfrom metamixer import parse\n"
    code += "from metamixer.training import train as module\nfrom metamixer.training.run_config import RunConfig\n"
    code += "module.CHECKPOINT_SECONDS = -1.0\n"
    code += f"module.train(parse(RunConfig, {config.to_dict()!r}), {str(tmp_path / 'run')!r}, 'cpu', workers=2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "run" / "previous.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not RunFolder(tmp_path / "run").is_locked()  # though its data workers live on for a moment
    train(config, tmp_path / "run", "cpu", workers=0)
    assert same(outcome(tmp_path / "run"), undisturbed)


def test_a_data_worker_that_dies_costs_a_line_and_no_result(config, undisturbed, tmp_path, monkeypatch):
    def kill_the_workers():
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    at_steps(monkeypatch, [2], kill_the_workers)
    with pytest.raises(ConfigError, match=r"a data worker died.*launch again") as caught:
        train(config, tmp_path / "run", "cpu", workers=2)
    assert "\n" not in str(caught.value)
    assert RunFolder(tmp_path / "run").result() is None
    train(config, tmp_path / "run", "cpu", workers=2)
    assert same(outcome(tmp_path / "run"), undisturbed)


def test_the_best_epoch_is_the_one_of_the_metrics_and_survives_kills(config, undisturbed, tmp_path, monkeypatch):
    scores = [row["val_top1_ema"] for row in undisturbed["rows"]]
    best = undisturbed["result"]["best"]
    assert best["val_top1"] == max(scores) and best["epoch"] == 1 + scores.index(max(scores))
    assert best["weights"] == "ema" and best["images"] == undisturbed["result"]["raw"]["images"] == 15
    right = undisturbed["predictions"]["best"] == undisturbed["predictions"]["label"]
    assert best["top1"] == pytest.approx(100 * np.mean(right))
    assert undisturbed["result"]["top1"] == undisturbed["result"]["ema"]["top1"]  # what is reported is the last
    at_steps(monkeypatch, [5, 10], kill)
    for _ in range(2):
        with pytest.raises(Killed):
            train(config, tmp_path / "run", "cpu")
    train(config, tmp_path / "run", "cpu")
    again = checkpoint.read(tmp_path / "run" / "best.pt")
    assert again["epoch"] == best["epoch"] and same(outcome(tmp_path / "run"), undisturbed)


def test_at_no_moment_is_a_run_without_a_checkpoint(tmp_path, monkeypatch):
    """Killed around any rename there is a whole one."""
    folder, seen, rename = RunFolder(tmp_path), [], os.replace
    checkpoint.save(folder, {"step": 0})

    def look_around(source, target):
        seen.append(checkpoint.load_newest(folder)["step"])
        rename(source, target)
        seen.append(checkpoint.load_newest(folder)["step"])

    monkeypatch.setattr(os, "replace", look_around)
    for step in (1, 2):
        checkpoint.save(folder, {"step": step})
    assert set(seen) == {0, 1, 2} and seen == sorted(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.LAST, checkpoint.PREVIOUS]
    assert checkpoint.read(tmp_path / checkpoint.PREVIOUS)["step"] == 1
