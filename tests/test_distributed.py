"""Several processes on one run: the same numbers as one, exact counts, agreed stops, no hang when one dies."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback

import cloudpickle
import numpy as np
import pytest
import torch
from small import RUN
from test_training import at_steps, outcome, same

from metamixer import ConfigError, override
from metamixer.training import checkpoint
from metamixer.training.data import Data
from metamixer.training.distributed import ALONE, World, first_node, joined, rendezvous, world_of_environment
from metamixer.training.evaluate import evaluate
from metamixer.training.folder import RunFolder
from metamixer.training.train import train

# four passes in a step, and an odd number of images to validate on
CONFIG = override(RUN, {"recipe.micro_batch": 8, "data.val_samples": 63})


def processes(size, body, timeout=120):
    """Run `body(rank)` in fresh processes with torchrun's environment; what each gave, or its error as text.

    Not forked from this one: once a library has registered a device with autograd, its forks can't go backward.
    """
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    body = cloudpickle.dumps((size, port, body))

    started = []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, sender, body))
        process.start()
        sender.close()
        started.append((process, receiver))
    found, end = [], time.monotonic() + timeout
    for process, receiver in started:
        try:
            found.append(receiver.recv() if receiver.poll(max(0, end - time.monotonic())) else "it hangs")
        except EOFError:
            process.join()
            found.append(f"exit code {process.exitcode}")
    for process, _ in started:
        process.join(5)
        process.kill()
    return found


def _run(rank, sender, body):
    size, port, body = cloudpickle.loads(body)
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    try:
        sender.send(body(rank))
    except BaseException as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "one"
    train(CONFIG, path, "cpu")
    return outcome(path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "two"
    results = processes(2, lambda rank: train(CONFIG, path, "cpu"))
    assert results[0] == results[1] and results[0]["state"] == "done"
    return outcome(path)


def test_two_processes_of_torchrun_train_as_one_does(one, tmp_path):
    (tmp_path / "run.py").write_text(
        "import torch; torch.set_num_threads(1)\nfrom metamixer import parse\n"
        "from metamixer.training.run_config import RunConfig\nfrom metamixer.training.train import train\n"
        f"train(parse(RunConfig, {CONFIG.to_dict()!r}), {str(tmp_path / 'run')!r}, 'cpu')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(tmp_path / "run.py")], check=True, timeout=300, cwd=os.getcwd(), env=_path())
    found = outcome(tmp_path / "run")
    assert RunFolder(tmp_path / "run").read("environment.json")["processes"] == 2
    assert len(found["rows"]) == len(one["rows"]) == 3
    for ours, theirs in zip(found["rows"], one["rows"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["lr"] == theirs["lr"] and ours["step"] == theirs["step"]
    for name, value in one["state"]["model"].items():
        if ".running_" not in name and "num_batches" not in name:  # each process meets its own passes alone
            torch.testing.assert_close(found["state"]["model"][name], value, rtol=1e-2, atol=1e-3, msg=name)
    assert found["result"]["raw"]["images"] == found["result"]["ema"]["images"] == 500
    assert np.array_equal(found["predictions"]["label"], one["predictions"]["label"])


def _path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}


def test_running_statistics_are_averaged_or_the_first_processs():
    """Both from one epoch's end: the mean of what each process counted, or the first one's own."""
    short = override(CONFIG, {"recipe.epochs": 2})
    counted = {}
    for kind in ("average", "local"):
        config = override(short, {"recipe.batch_norm": kind})
        results = processes(2, lambda rank, config=config, kind=kind: _after_an_epoch(config))
        (before, after), (other_before, other_after) = results
        assert not np.array_equal(before, other_before)
        assert np.array_equal(after, other_after)
        counted[kind] = before, other_before, after
    a, b, mean = counted["average"]
    np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6)
    assert np.array_equal(counted["local"][2], counted["local"][0])


def _after_an_epoch(config):
    from metamixer.training.learner import Learner

    with joined("cpu") as (world, device):
        data = Data(config.data, config.recipe, config.seed)
        learner = Learner(config, device, data.steps, world)
        batches = data.batches(0, 0, world.rank, world.size)
        for _ in range(data.steps):
            learner.train_step(batches)
        before = learner.model.norm.running_mean.numpy().copy()
        learner.share_statistics()
        return before, learner.model.norm.running_mean.numpy()


@pytest.mark.parametrize("step", [4, 7])
def test_a_process_that_dies_ends_the_run_with_a_line_and_it_goes_on(two, tmp_path, monkeypatch, step):
    def body(rank):
        monkeypatch.setattr("metamixer.training.train.CHECKPOINT_SECONDS", -1.0)  # at every step
        if rank == 1:
            at_steps(monkeypatch, [step], lambda: os.kill(os.getpid(), signal.SIGKILL))
        return train(CONFIG, tmp_path / "run", "cpu")

    first, second = processes(2, body)
    assert first == "ProcessLost: process 0 of 2: another one of this run ended; launch again to go on"
    assert second == "exit code -9"
    assert RunFolder(tmp_path / "run").result() is None
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == step - 1
    again = processes(2, lambda rank: train(CONFIG, tmp_path / "run", "cpu"))
    assert again[0]["state"] == "done"
    assert same(outcome(tmp_path / "run"), two)


def test_a_stop_signal_to_any_process_stops_all_after_the_same_step(two, tmp_path, monkeypatch):
    def body(rank):
        if rank == 1:
            at_steps(monkeypatch, [7], lambda: os.kill(os.getpid(), signal.SIGUSR2))
        return train(CONFIG, tmp_path / "run", "cpu")

    found = processes(2, body)
    assert found == ["Interrupted: stopped in epoch 2 after step 7; its checkpoint is written"] * 2
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == 7
    assert processes(2, lambda rank: train(CONFIG, tmp_path / "run", "cpu"))[1]["state"] == "done"
    assert same(outcome(tmp_path / "run"), two)


def test_a_run_of_two_processes_goes_on_with_one(one, two, tmp_path, monkeypatch):
    def body(rank):
        at_steps(monkeypatch, [7], lambda: os.kill(os.getpid(), signal.SIGTERM))
        return train(CONFIG, tmp_path / "run", "cpu")

    processes(2, body)
    train(CONFIG, tmp_path / "run", "cpu")
    for ours, theirs in zip(outcome(tmp_path / "run")["rows"], one["rows"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_an_error_of_one_reaches_all(tmp_path):
    RunFolder(tmp_path / "run").create(override(CONFIG, {"seed": 9}))
    found = processes(2, lambda rank: train(CONFIG, tmp_path / "run", "cpu"))
    assert found == [f"ConfigError: {tmp_path}/run: holds another run's configuration; choose another folder"] * 2


def test_divergence_in_one_process_is_the_runs(tmp_path):
    found = processes(2, lambda rank: train(override(CONFIG, {"recipe.lr": 1e30}), tmp_path / "run", "cpu"))
    assert [result["state"] for result in found] == ["failed"] * 2
    assert RunFolder(tmp_path / "run").result()["epoch"] == found[1]["epoch"]


@pytest.mark.parametrize("size", [2, 3, 9])
def test_evaluation_is_exact_however_many_processes_share_it(size):
    """63 images; scores and order equal those of one process, also where a process has few."""
    config = override(RUN, {"data.val_samples": 7 if size == 9 else 63})
    data = Data(config.data, config.recipe, 0)
    model = config.build(seed=4)
    whole, (predicted, labels) = evaluate(model, config.data.built, data.evaluation("val"), torch.device("cpu"))
    assert whole["images"] == config.data.val_samples

    def body(rank):
        with joined("cpu") as (world, device):
            batches = Data(config.data, config.recipe, 0).evaluation("val", world.rank, world.size)
            return evaluate(model, config.data.built, batches, device, world)

    for scores, (their_predicted, their_labels) in processes(size, body):
        assert scores["images"] == whole["images"]
        assert scores["top1"] == whole["top1"] and scores["top5"] == whole["top5"]
        assert scores["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        assert np.array_equal(their_predicted, predicted) and np.array_equal(their_labels, labels)


@pytest.mark.parametrize(
    "size, changes, message",
    [
        (2, {"recipe.micro_batch": None}, "1 passes of a step can't be shared by 2 processes; recipe.micro_batch 16"),
        (3, {}, "4 passes of a step can't be shared by 3 processes; take fewer processes"),
        (2, {"recipe.batch_norm": "synchronized"}, "'synchronized' needs GPUs"),
    ],
)
def test_refusals(tmp_path, size, changes, message):
    found = processes(size, lambda rank: train(override(CONFIG, changes), tmp_path / "run", "cpu"))
    assert all(text.startswith("ConfigError: ") and message in text and "\n" not in text for text in found)


def test_who_the_environment_says_we_are():
    assert world_of_environment({}) == ALONE
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    assert world_of_environment(torchrun) == World(3, 4, 1)
    step = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    assert world_of_environment(step) == World(5, 8, 1)
    # the batch script of a job of four tasks runs once
    assert world_of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) == ALONE
    with pytest.raises(ConfigError, match="WORLD_SIZE is set"):
        world_of_environment({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("localhost", "localhost"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[003-007,9],login", "gpu003"),
        ("gpu[12]", "gpu12"),
        ("rack[2,4]-node[07-09]", "rack2-node07"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_where_the_processes_of_a_slurm_step_meet():
    step = {"SLURM_STEP_NODELIST": "n[4-5]", "SLURM_JOB_NODELIST": "n[1-5]", "SLURM_JOB_ID": "123456"}
    assert rendezvous(step) == {"MASTER_ADDR": "n4", "MASTER_PORT": "23456"}
    assert rendezvous({**step, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
