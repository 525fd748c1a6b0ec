"""Latencies: their rows and file, imports, timing, correlations, and refusals."""

import json
import multiprocessing

from small import RUN

from analysis.latency import COLUMNS, load, network_key, published
from analysis.latency.rows import FILE, append
from metamixer.config import digest_of

ROW = {"network": "ffnet_1", "name": "ffnet_1", "resolution": 256, "batch": 1, "device": "a CPU", "os": "Linux",
       "runtime": "onnxruntime", "version": "1", "precision": "fp32", "threads": 1, "compute_units": "CPU",
       "median_ms": 34.0, "iqr_ms": 1.0, "sessions": 5, "spread_ms": 0.5, "source": "measured"}  # fmt: skip


def test_a_network_is_known_by_what_it_is_built_from():
    values = json.loads(json.dumps(RUN.to_dict()))
    parts = {"model": values["model"], "channels": 1, "image_size": 12, "num_classes": 10}
    assert network_key(**parts) == digest_of(parts) != network_key(**{**parts, "image_size": 16})


def test_published_latencies():
    found = published()
    assert list(found) == list(COLUMNS) and set(found["device"]) == {"iPhone 12"}
    assert dict(zip(zip(found["network"], found["resolution"], strict=True), found["median_ms"], strict=True)) == {
        ("ffnet_1", 256): 1.81, ("ffnet_2", 256): 3.09, ("ffnet_3", 256): 4.53, ("ffnet_3", 384): 9.12,
        ("ffnet_4", 384): 15.24,
    }  # fmt: skip


def test_the_last_measurement_of_the_same_thing_counts(tmp_path):
    assert len(load(tmp_path)) == len(published()) and not list(tmp_path.iterdir())
    append(tmp_path, [ROW, {**ROW, "threads": 2, "median_ms": 20.0}])
    append(tmp_path, [{**ROW, "median_ms": 33.0}])
    found = load(tmp_path, with_published=False)
    assert sorted(found["median_ms"]) == [20.0, 33.0] and found["threads"].dtype == "Int64"


def test_a_torn_line_costs_only_itself(tmp_path):
    path = append(tmp_path, [ROW])
    path.write_bytes(path.read_bytes() + b'{"schema": 1, "netw')
    append(tmp_path, [{**ROW, "network": "ffnet_2"}])
    found = load(tmp_path, with_published=False)
    assert list(found["network"]) == ["ffnet_1", "ffnet_2"]
    assert found.attrs["left_out"] == [f"{FILE}: line 2 is torn, or of another version"]


def _write(root, name):
    for i in range(50):
        append(root, [{**ROW, "network": f"{name}-{i}", "version": "x" * 5000}])


def test_two_writers_lose_nothing(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(tmp_path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = load(tmp_path, with_published=False)
    assert set(found["network"]) == {f"{name}-{i}" for name in "ab" for i in range(50)} and len(found) == 100
    assert found.attrs["left_out"] == []
