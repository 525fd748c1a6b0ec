"""Frames of runs: what is remembered of them is never stale; latencies, learning rates, published results."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from test_analysis import write_grid

from analysis import cache, frame
from analysis.published import published
from metamixer.latency.rows import Row, append, network_key

LADDER = {"attention": ([96.1, 96.4, None], 100), "gelu": ([95.0, "loss is not finite", 95.2], 100)}


@pytest.fixture
def runs(tmp_path):
    write_grid(tmp_path, LADDER)
    return tmp_path


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loaded(root, **options):
    return frame.load(root, with_config=True, **options)


def test_remembered_runs_are_the_same_runs(runs):
    config = runs / "ffnificationdigitsgelu0" / "config.json"  # a null, a missing key and a key of two types
    values = {"modules": [], "seed": 0, "model": {"stages": [{"depth": "two", "small_kernel": None}]}}
    config.write_text(json.dumps({"schema": 1, "config": values}))
    before = loaded(runs)
    assert not (runs / cache.FILE).exists()
    pd.testing.assert_frame_equal(loaded(runs, remember=True), before)
    assert len(cache.read(runs)) == 5  # done or failed; what has not ended may change
    again = loaded(runs)
    pd.testing.assert_frame_equal(again, before, check_like=True, check_dtype=False)
    assert again["config.model.stages.0.depth"].tolist()[3] == "two"
    slim = frame.load(runs)
    assert list(slim.columns) == list(frame.COLUMNS) and slim["top1"].equals(before["top1"])


def test_remembered_files_are_not_opened_again(runs):
    loaded(runs, remember=True)
    for name in ("config.json", "result.json"):
        path = runs / "ffnificationdigitsgelu0" / name
        found = path.stat()
        path.write_bytes(b"#" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert loaded(runs)["top1"].tolist()[3] == 95.0


@pytest.mark.parametrize("how", ["result", "config", "metrics", "gone", "reader"])
def test_what_changed_is_read_anew(runs, monkeypatch, how):
    loaded(runs, remember=True)
    folder = runs / "ffnificationdigitsgelu0"
    if how == "result":
        rewrite(folder / "result.json", top1=12.5)
    elif how == "config":
        rewrite(folder / "config.json", config={"seed": 7})
    elif how == "metrics":
        (folder / "metrics.jsonl").write_text('{"epoch": 3, "val_top1_ema": 91.5}\n')
    elif how == "gone":
        (folder / "result.json").unlink()
    else:
        monkeypatch.setattr(cache, "_reader", lambda: b"other code")
        assert len(cache.read(runs)) == 0
        return
    row = loaded(runs).iloc[3]
    if how == "result":
        assert row["top1"] == 12.5
    elif how == "config":
        assert row["config.seed"] == 7
    elif how == "metrics":
        assert row["val_top1"] == 91.5
    else:
        assert row["state"] == "new" and np.isnan(row["top1"])
    loaded(runs, remember=True)
    pd.testing.assert_series_equal(loaded(runs).iloc[3], row, check_names=False)


@pytest.mark.parametrize("trouble", ["torn", "read-only", "no folder"])
def test_without_a_place_to_remember_all_is_read(runs, trouble, monkeypatch):
    if trouble == "torn":
        loaded(runs, remember=True)
        (runs / cache.FILE).write_bytes(b"PAR1 and no more")
    elif trouble == "read-only":  # root may write anywhere

        def refuse(*_):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "replace", refuse)
    assert len(loaded(runs / "nowhere" if trouble == "no folder" else runs, remember=True)) in (0, 6)
    assert loaded(runs)["top1"].tolist()[3] == 95.0
    assert [path.name for path in (runs / "grids").iterdir() if ".parquet." in path.name] == []


def test_validation_is_that_of_the_reported_weights_after_the_last_epoch(runs):
    rows = [{"epoch": e, "val_top1": 80.0 + e, "val_top1_ema": 90.0 + e, "padding": "x" * 900} for e in range(1, 6)]
    (runs / "ffnificationdigitsgelu0" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = frame.load(runs).iloc[3]
    assert row["val_top1"] == 95.0
    rewrite(runs / "ffnificationdigitsgelu0" / "result.json", weights="raw")
    assert frame.load(runs).iloc[3]["val_top1"] == 85.0


def test_latencies_are_joined_by_network_and_resolution(runs):
    model, data = {"stages": []}, {"channels": 1, "image_size": 12, "num_classes": 10}
    for seed in (0, 1):
        path = runs / f"ffnificationdigitsattention{seed}" / "config.json"
        path.write_text(json.dumps({"schema": 1, "config": {"model": model, "data": data, "seed": seed}}))
    row = {"network": network_key({"model": model, "data": data}), "name": "n", "resolution": 12, "device": "a board"}
    row |= {"os": "Linux", "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "compute_units": "CPU"}
    times = ({"median_ms": 1.5}, {"batch": 8, "median_ms": 9.0}, {"threads": 2, "median_ms": 1.0})
    append(runs, [Row(**row | time) for time in times])
    append(runs, [Row(**row | {"median_ms": 1.25}), Row(**row | {"resolution": 24, "median_ms": 5.0})])
    table = frame.load(runs)
    one, two = (f"latency_ms[onnxruntime, {n}, fp32, a board]" for n in ("1 thread", "2 threads"))
    assert [name for name in table if name.startswith("latency")] == [one, two]
    assert table[one].tolist()[:2] == [1.25, 1.25] and table[one][2:].isna().all()
    assert table[two].tolist()[:2] == [1.0, 1.0]
    (runs / "latency.jsonl").write_text("{torn\n")
    assert any("latency.jsonl:1: row left out" in line for line in frame.describe(frame.load(runs)).left_out)


def test_published_results_have_the_shape_of_runs(runs):
    table = published()
    own = frame.load(runs)
    assert list(table.columns[: len(own.columns)]) == list(own.columns)
    assert table[list(own.columns)].dtypes.equals(own.dtypes)
    pd.concat([own, table])
    row = table[(table["variant"] == "ffnet_3") & (table["resolution"] == 384)].iloc[0]
    assert (row["top1"], row["parameters"], row["macs"]) == (84.5, 48_330_632, 22_800_000_000)
    assert row["latency_ms[Core ML, all, fp16, iPhone 12]"] == 9.12
    assert (table["source"] != "").all() and table["distilled"].sum() == 5


def test_published_parameters_are_those_of_the_networks():
    import timm
    from timm.models import reparameterize_model

    import metamixer.ffnet  # noqa: F401

    table = published().drop_duplicates("network").set_index("network", drop=False)
    for row in table.loc[["ffnet_1", "edgenext_small"]].itertuples():
        model = reparameterize_model(timm.create_model(row.network).eval())
        count = sum(p.numel() for p in model.parameters())
        assert count == pytest.approx(row.parameters, rel=1e-3), row.network
