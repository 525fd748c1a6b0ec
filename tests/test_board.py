"""TensorBoard's log of a run holds what metrics.jsonl holds."""

import sys

import pytest
from small import RUN

from metamixer import digest
from metamixer.config import ConfigError, override
from metamixer.jsonl import read
from metamixer.training.signals import Interrupted
from metamixer.training.train import train

LOGGED = override(RUN, {"tensorboard": True})


def test_the_log_holds_the_metrics_also_after_an_epoch_was_trained_twice(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no TensorBoard")

    def stop(row):
        if row["epoch"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(LOGGED, tmp_path, "cpu", after_epoch=stop)
    (tmp_path / "last.pt").unlink()  # goes on after the first epoch
    train(LOGGED, tmp_path, "cpu")
    log = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read(tmp_path / "metrics.jsonl")
    assert set(log.Tags()["scalars"]) == rows[0].keys() - {"epoch", "step"} > {"lr", "train_loss", "val_top1"}
    for name in log.Tags()["scalars"]:
        found = [(event.step, event.value) for event in log.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_no_hash_holds_it_and_without_the_package_a_line_says_so(tmp_path, monkeypatch):
    assert digest(LOGGED) == digest(RUN)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tensorboard\]'"):
        train(LOGGED, tmp_path, "cpu")
