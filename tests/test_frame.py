"""Frames of runs: validation figures, latencies, published results."""

import json

import pytest
from grids import key, rewrite, write_grid

from analysis import frame
from analysis.published import published
from metamixer.latency.rows import Row, append, network_key

LADDER = {"attention": ([96.1, 96.4, None], 100), "gelu": ([95.0, "loss is not finite", 95.2], 100)}


@pytest.fixture
def runs(tmp_path):
    write_grid(tmp_path, LADDER)
    return tmp_path


def loaded(root, **options):
    return frame.load(root, "ffnification", **options)[0]


def test_validation_is_that_of_the_reported_weights_after_the_last_epoch(runs):
    rows = [{"epoch": e, "val_top1": 80.0 + e, "val_top1_ema": 90.0 + e, "padding": "x" * 900} for e in range(1, 6)]
    (runs / key("gelu", 0) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = loaded(runs).iloc[3]
    assert row["validation"] == 95.0
    rewrite(runs / key("gelu", 0) / "result.json", weights="raw")
    assert loaded(runs).iloc[3]["validation"] == 85.0


def test_latencies_are_joined_by_network_and_resolution(runs):
    model, data = {"stages": []}, {"channels": 1, "image_size": 12, "num_classes": 10}
    for seed in (0, 1):
        path = runs / key("attention", seed) / "config.json"
        path.write_text(json.dumps({"schema": 2, "config": {"model": model, "data": data, "seed": seed}}))
    row = {"network": network_key({"model": model, "data": data}), "name": "n", "resolution": 12, "device": "a board"}
    row |= {"os": "Linux", "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "compute_units": "CPU"}
    times = ({"median_ms": 1.5}, {"batch": 8, "median_ms": 9.0}, {"threads": 2, "median_ms": 1.0})
    append(runs, [Row(**row | time) for time in times])
    append(runs, [Row(**row | {"median_ms": 1.25}), Row(**row | {"resolution": 24, "median_ms": 5.0})])
    table = loaded(runs)
    one, two = (f"latency_ms[onnxruntime, {n}, fp32, a board]" for n in ("1 thread", "2 threads"))
    assert [name for name in table if name.startswith("latency")] == [one, two]
    assert table[one].tolist()[:2] == [1.25, 1.25] and table[one][2:].isna().all()
    assert table[two].tolist()[:2] == [1.0, 1.0]
    append(runs, [Row(**row | {"runtime": "executorch", "median_ms": 2.0, "spread_ms": noise}) for noise in (0.9, 1.2)])
    table, meta = frame.load(runs, "ffnification")
    assert not any("executorch" in name for name in table)
    assert any("on executorch: its sessions differ by 60 %" in line for line in meta.left_out)
    (runs / "latency.jsonl").write_text("{torn\n")
    assert any("latency.jsonl:1: row left out" in line for line in frame.load(runs, "ffnification")[1].left_out)


def test_latencies_of_a_tasks_runs_are_joined_though_their_configuration_names_no_resolution(runs):
    model, data = {"stages": []}, {"task": {"name": "garments", "size": 48}}
    path = runs / key("attention", 0) / "config.json"
    path.write_text(json.dumps({"schema": 2, "config": {"model": model, "data": data, "seed": 0}}))
    row = {"network": network_key({"model": model, "data": data}), "name": "n", "resolution": 48, "device": "a board"}
    append(runs, [Row(**row, os="Linux", runtime="eager", compute_units="CPU", median_ms=1.5)])
    table = loaded(runs)
    assert table["latency_ms[eager, CPU, a board]"].tolist()[:1] == [1.5] and table["resolution"][0] == 48


def test_published_results_have_their_latencies():
    table = published()
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
