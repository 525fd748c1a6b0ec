"""Training: exact resume after any interruption, schedules against closed forms, what a run leaves behind."""

import copy
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from small import RUN, STEPS

from metamixer import ConfigError, digest, override
from metamixer.training import checkpoint
from metamixer.training import train as train_module
from metamixer.training.data import Data
from metamixer.training.evaluate import evaluate
from metamixer.training.folder import RunBusy, RunFolder
from metamixer.training.learner import Learner
from metamixer.training.surroundings import SurroundingsError, surroundings
from metamixer.training.train import Interrupted, train

TIMES = ("seconds", "images_per_second")


def outcome(path):
    """Everything that a run's numbers are: metrics, final weights, result, predictions; times left out."""
    folder = RunFolder(path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    result = folder.result()
    return {
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "result": {k: v for k, v in result.items() if k not in (*TIMES, "time")},
        "state": checkpoint.read(path / "last.pt"),
        "predictions": dict(np.load(path / "predictions.npz")),
    }


def same(a, b):
    """Equal bit for bit, tensors included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(RUN, path)
    return outcome(path)


def test_the_same_run_again_gives_the_same_bits(undisturbed, tmp_path):
    train(RUN, tmp_path / "again")
    assert same(outcome(tmp_path / "again"), undisturbed)


def test_another_seed_gives_other_numbers(undisturbed, tmp_path):
    train(override(RUN, {"seed": 1}), tmp_path / "other")
    assert outcome(tmp_path / "other")["rows"][0]["train_loss"] != undisturbed["rows"][0]["train_loss"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets a chance to save."""


def at_steps(monkeypatch, steps, act):
    """Call `act` after each of the given optimizer steps, once."""
    real, waiting = Learner.train_step, set(steps)

    def step(self, *batch):
        real(self, *batch)
        if self.step in waiting:
            waiting.discard(self.step)
            act()

    monkeypatch.setattr(Learner, "train_step", step)


@pytest.mark.parametrize("steps", [[1], [5], [4, 9, 14], [STEPS]])
def test_killed_at_any_step_and_resumed_gives_the_same_bits(undisturbed, tmp_path, monkeypatch, steps):
    def kill():
        raise Killed

    at_steps(monkeypatch, steps, kill)
    for _ in steps:
        with pytest.raises(Killed):
            train(RUN, tmp_path / "run")
    train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize(
    "number, step", [(signal.SIGINT, 1), (signal.SIGTERM, 5), (signal.SIGUSR2, 8), (signal.SIGTERM, STEPS)]
)
def test_signals_save_within_the_epoch_and_resume_to_the_same_bits(undisturbed, tmp_path, monkeypatch, number, step):
    at_steps(monkeypatch, [step], lambda: os.kill(os.getpid(), number))
    try:
        train(RUN, tmp_path / "run")
        assert step == STEPS  # the last step's epoch ends and the run with it
    except Interrupted:
        assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == step
        assert RunFolder(tmp_path / "run").read("progress.json")["state"] == "interrupted"
        train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


def test_a_signal_stops_a_run_whose_epochs_are_one_step_long(tmp_path, monkeypatch):
    at_steps(monkeypatch, [1], lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped after epoch 1"):
        train(override(RUN, {"data.train_samples": 32}), tmp_path / "run")
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == 1


def test_a_real_sigkill_while_it_trains(undisturbed, tmp_path):
    code = "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, 'tests'); from small import RUN\n"
    code += f"from metamixer.training.train import train; train(RUN, {str(tmp_path / 'run')!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not RunFolder(tmp_path / "run").is_locked()
    train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


def test_a_damaged_checkpoint_is_passed_over(undisturbed, tmp_path, monkeypatch):
    def kill():
        raise Killed

    at_steps(monkeypatch, [12], kill)
    with pytest.raises(Killed):
        train(RUN, tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged|not a whole"):
        checkpoint.read(last)
    train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


def test_two_damaged_checkpoints_cost_nothing_and_are_not_passed_over(tmp_path, monkeypatch):
    def kill():
        raise Killed

    at_steps(monkeypatch, [12], kill)
    with pytest.raises(Killed):
        train(RUN, tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "run" / name).read_bytes()[:5000])
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix in (".pt", ".jsonl")}
    assert len(kept["metrics.jsonl"].splitlines()) == 2
    with pytest.raises(ConfigError, match=r"last\.pt: .*previous\.pt: .*move the checkpoints away"):
        train(RUN, tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).unlink()
    assert train(RUN, tmp_path / "run")["state"] == "done"


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:5000])])
def test_a_lost_best_costs_its_row_and_not_the_run(undisturbed, tmp_path, monkeypatch, caplog, spoil):
    monkeypatch.setattr(train_module.Trainer, "_finish", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(RUN, tmp_path / "run")
    monkeypatch.undo()
    spoil(tmp_path / "run" / "best.pt")
    train(RUN, tmp_path / "run")
    found = outcome(tmp_path / "run")
    reason = found["result"].pop("best_left_out")
    assert reason.startswith(f"{tmp_path / 'run' / 'best.pt'}: no") and "\n" not in reason
    assert [record.getMessage() for record in caplog.records] == [f"{reason}; the row `best` is left out"]
    del (expected := copy.deepcopy(undisturbed))["result"]["best"], expected["predictions"]["best"]
    assert same(found, expected)


SIGNALS_IN_SIGNALS = """
import signal, sys
from metamixer.training.signals import stop_signals
sent = []
def trace(frame, event, _):
    if event == "line" and not sent:
        sent.append(frame.f_lineno)
        signal.raise_signal(signal.SIGTERM)
    return trace
with stop_signals() as stop:
    sys.settrace(trace)
    signal.raise_signal(signal.SIGUSR2)
    sys.settrace(None)
    print(stop.asked, bool(sent))
"""


def test_a_signal_during_a_signal_does_not_hang():
    """A second signal comes at a line of the first one's handler, as when a group and its leader are told at once."""
    command = [sys.executable, "-c", SIGNALS_IN_SIGNALS]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert run.stdout == "True True\n", run.stderr


def test_what_a_run_leaves_behind(undisturbed, tmp_path):
    path = tmp_path / digest(RUN)
    result = train(RUN, path)
    assert RunFolder(path).config() == RUN
    rows = undisturbed["rows"]
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[-1]["step"] == STEPS
    assert result["weights"] == "ema" and result["top1"] == result["ema"]["top1"]
    assert result["raw"]["images"] == result["ema"]["images"] == 500
    predictions = undisturbed["predictions"]
    for weights in ("raw", "ema"):
        assert result[weights]["top1"] == 100 * np.mean(predictions[weights] == predictions["label"])
    versions = RunFolder(path).read("environment.json")
    assert versions["torch"] == torch.__version__ and versions["threads"] == 1
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    assert train(RUN, path) == result and (path / "metrics.jsonl").stat().st_mtime_ns == before


def test_fewer_images_than_asked_for_are_refused(tmp_path):
    # 1297 digits to train on, 64 of them held out
    assert Data(override(RUN.data, {"train_samples": 1233}), RUN.recipe).counts["train"] == 1233
    with pytest.raises(ConfigError, match=r"data\.train_samples 1234: digits .* has 1233; set it to null"):
        train(override(RUN, {"data.train_samples": 1234}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_train_the_same_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(RUN)
    with folder.lock():
        assert folder.is_locked()
        with pytest.raises(RunBusy, match="another process"):
            train(RUN, tmp_path / "run")
    assert not folder.is_locked()


def test_a_folder_of_another_run_is_refused(tmp_path):
    RunFolder(tmp_path / "run").create(RUN)
    with pytest.raises(ConfigError, match="another run's configuration"):
        train(override(RUN, {"seed": 5}), tmp_path / "run")


def test_divergence_is_a_result_with_its_epoch(tmp_path):
    result = train(override(RUN, {"recipe.lr": 1e30}), tmp_path / "run")
    assert result["state"] == "failed" and result["epoch"] <= 3 and "not a number" in result["error"]


def test_a_full_disk_loses_nothing(undisturbed, tmp_path, monkeypatch):
    real = Path.write_bytes

    def no_space(path, content):
        if path.name.startswith(".last.pt") and (tmp_path / "run" / "last.pt").exists():
            real(path, content[:1000])
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(ConfigError, match="No space left on device; free some space and launch again") as caught:
        train(RUN, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert RunFolder(tmp_path / "run").result() is None
    assert not list((tmp_path / "run").glob(".last*")), "a torn file is left behind"
    monkeypatch.setattr(Path, "write_bytes", real)
    train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize(
    "exhaust",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),  # what torch says of the machine's memory
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")),
        lambda: (_ for _ in ()).throw(MemoryError()),
    ],
)
def test_out_of_memory_is_a_line_and_the_run_goes_on(undisturbed, tmp_path, monkeypatch, exhaust):
    at_steps(monkeypatch, [7], exhaust)
    with pytest.raises(SurroundingsError, match=r"out of memory .*; lower recipe\.micro_batch") as caught:
        train(RUN, tmp_path / "run")
    assert "\n" not in str(caught.value) and RunFolder(tmp_path / "run").result() is None
    train(RUN, tmp_path / "run")
    assert same(outcome(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize(
    "error, of_the_run",
    [
        (OSError(28, "No space left on device", "last.pt"), False),
        (OSError(5, "Input/output error"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), True),
        (ZeroDivisionError("division by zero"), True),
    ],
)
def test_errors_of_the_surroundings_leave_a_run_to_be_gone_on_with(tmp_path, monkeypatch, error, of_the_run):
    def fail():
        raise error

    assert (surroundings(error) is None) == of_the_run
    at_steps(monkeypatch, [1], fail)
    with pytest.raises(type(error) if of_the_run else SurroundingsError):
        train(RUN, tmp_path / "run")
    assert (RunFolder(tmp_path / "run").result() is not None) == of_the_run


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda", "cuda:7", "tpu"])
def test_a_device_that_is_not_there_is_one_line_and_no_failed_run(tmp_path, device):
    if (device.startswith("cuda") and torch.cuda.is_available()) or (device == "mps" and torch.mps.is_available()):
        pytest.skip("there is one here")
    with pytest.raises(SurroundingsError, match=f"device '{device}' can't be used here") as caught:
        train(RUN, tmp_path / "run", device)
    assert "\n" not in str(caught.value) and RunFolder(tmp_path / "run").result() is None
    assert "there are auto, cpu" in str(caught.value) and len(str(caught.value)) < 200


def test_a_watcher_does_not_keep_a_run_from_starting(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(RUN)
    watched = (folder.path / "lock").open("w")
    fcntl.flock(watched, fcntl.LOCK_SH)  # as `is_locked` takes it
    timer = threading.Timer(0.2, watched.close)
    timer.start()
    with folder.lock():
        timer.join()


def test_a_run_computes_with_its_own_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 2):
        train(override(RUN, {"threads": threads, "recipe.epochs": 2}), tmp_path / str(threads), "cpu")
        environment = RunFolder(tmp_path / str(threads)).read("environment.json")
        assert environment["threads"] == threads and torch.get_num_threads() == before
    assert digest(override(RUN, {"threads": 2})) != digest(RUN)


def test_an_error_of_the_run_itself_is_recorded_and_raised(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("shapes do not match\nat all")

    at_steps(monkeypatch, [7], fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(RUN, tmp_path / "run")
    result = RunFolder(tmp_path / "run").result()
    assert result["state"] == "failed" and result["error"] == "RuntimeError: shapes do not match"


def test_evaluation_against_scikit_learn():
    torch.manual_seed(3)
    logits, labels = torch.randn(237, 10), torch.randint(0, 10, (237,))
    batches = [(logits[i : i + 50], labels[i : i + 50]) for i in range(0, 237, 50)]
    scores, (predicted, seen) = evaluate(torch.nn.Identity(), RUN.data.built, batches, torch.device("cpu"))
    y, p = labels.numpy(), logits.softmax(1).double().numpy()
    assert scores["images"] == 237 and np.array_equal(seen, y)
    assert scores["top1"] == pytest.approx(100 * np.mean(predicted == y))
    assert scores["top5"] == pytest.approx(100 * top_k_accuracy_score(y, p, k=5))
    assert scores["loss"] == pytest.approx(log_loss(y, p), rel=1e-5)


def test_progress_is_left_for_whoever_watches(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "PROGRESS_SECONDS", 0.0)
    seen = []
    at_steps(monkeypatch, [7], lambda: seen.append(RunFolder(tmp_path / "run").read("progress.json")))
    train(RUN, tmp_path / "run")
    assert seen[0]["state"] == "running" and seen[0]["step"] == 6 and seen[0]["steps"] == STEPS
    assert RunFolder(tmp_path / "run").read("progress.json")["state"] == "done"
