"""Latencies: their rows and file, timing, correlations, and refusals."""

import json
from importlib.util import find_spec
from shutil import which

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small import RUN
from test_commands import launch
from torch import nn

from analysis.latency import COLUMNS, load, published, to_frame, ways
from analysis.latency_table import correlations, notes, pivot, ranks
from metamixer.config import override
from metamixer.cost import count
from metamixer.deploy.common import NotConvertible
from metamixer.latency import measure as measuring
from metamixer.latency.measure import COSTS, Subject, measure
from metamixer.latency.rows import FILE, Row, append, network_key
from metamixer.latency.runtimes import RUNTIMES, Loaded, Runtime, find_runtime
from metamixer.latency.session import difference
from metamixer.latency.session import run as run_session
from metamixer.networks import Network, find_network, of_run
from metamixer.recipes import named_run

ROW = {"network": "ffnet_1", "name": "ffnet_1", "resolution": 256, "batch": 1, "device": "a CPU", "os": "Linux",
       "runtime": "onnxruntime", "version": "1", "precision": "fp32", "threads": 1, "compute_units": "CPU",
       "median_ms": 34.0, "iqr_ms": 1.0, "sessions": 5, "spread_ms": 0.5, "source": "measured"}  # fmt: skip


def test_a_network_is_known_by_what_it_is_built_from():
    values = json.loads(json.dumps(RUN.to_dict()))
    assert network_key(values) == network_key(override(RUN, {"recipe.epochs": 9}).to_dict())
    assert network_key(values) != network_key(values, image_size=16) == network_key(RUN.to_dict(), 16)
    assert network_key(values) != network_key(override(RUN, {"data.num_classes": 3}).to_dict())
    probe = {**values, "data": {"task": {"name": "recall", "pairs": 4}, "train_samples": 9}}  # its sizes are the task's
    assert network_key(probe) != network_key({**probe, "data": {"task": {"name": "recall", "pairs": 8}}})


def test_a_mixer_of_its_slots_is_called_by_their_names():
    slots = {"query": "identity", "query_key": {"name": "linear", "expansion": 2}, "activation": "gelu"}
    subject = Subject(find_network(json.dumps({**slots, "coefficient_value": "linear"}), 8))
    assert subject.name == "identity · linear · gelu · linear" and '"expansion": 2' in subject.key


def test_published_latencies():
    found = published()
    assert list(found) == list(COLUMNS) and set(found["device"]) == {"iPhone 12"}
    assert dict(zip(zip(found["network"], found["resolution"], strict=True), found["median_ms"], strict=True)) == {
        ("ffnet_1", 256): 1.81, ("ffnet_2", 256): 3.09, ("ffnet_3", 256): 4.53, ("ffnet_3", 384): 9.12,
        ("ffnet_4", 384): 15.24,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, resolution", [("ffnet_1", 256), ("ffnet_2", 256), ("ffnet_3", 256), ("ffnet_3", 384), ("ffnet_4", 384)]
)
def test_the_published_networks_costs_are_those_that_are_counted(name, resolution):
    network = find_network(name, resolution)
    counted = count(network.model, network.input_size, inplace=True)
    (row,) = published().query(f"network == '{name}' and resolution == {resolution}").to_dict("records")
    assert {cost: row[cost] for cost in COSTS} == {cost: getattr(counted, cost) for cost in COSTS}


def row(**changes):
    return Row(**ROW | changes)


def test_the_last_measurement_of_the_same_thing_counts(tmp_path):
    assert not len(load(tmp_path)) and not list(tmp_path.iterdir())
    append(tmp_path, [row(), row(threads=2, median_ms=20.0)])
    append(tmp_path, [row(median_ms=33.0)])
    found = load(tmp_path)
    assert sorted(found["median_ms"]) == [20.0, 33.0] and found["threads"].dtype == "Int64"


@pytest.mark.parametrize(
    "change", [{"resolution": 10**20}, {"resolution": "256"}, {"sessions": 1.5}, {"median_ms": "1 ms"}, {"device": 3},
               {"quiet": "yes"}, {"median_ms": float("inf")}, {"median_ms": None}, {"schema": 2}]
)  # fmt: skip
def test_a_row_that_no_column_holds_costs_only_itself(tmp_path, change):
    path = append(tmp_path, [row()])
    with path.open("a") as file:
        file.write(json.dumps({"schema": 1, **ROW, **change}) + "\n")
    append(tmp_path, [row(network="ffnet_2")])
    left_out = []
    found = load(tmp_path, report=left_out.append)
    assert list(found["network"]) == ["ffnet_1", "ffnet_2"]
    (said,) = left_out
    assert f"{FILE}:2: row left out (" in said


def frame(medians, spreads, **columns):
    pairs = enumerate(zip(medians, spreads, strict=True))
    return to_frame(
        row(network=f"n{i}", name=f"n{i}", median_ms=m, spread_ms=s, **{k: v[i] for k, v in columns.items()})
        for i, (m, s) in pairs
    )


def test_nothing_is_ranked_inside_the_spread():
    found = ranks(frame([10.0, 10.4, 12.0, 30.0], [1.0, 1.0, 0.2, 1.0]))
    assert found == [(1, 2), (1, 2), (3, 3), (4, 4)]
    assert ranks(frame([10.0, 20.0], [None, 0.1])) == [(1, 2), (1, 2)]  # an unknown spread tells nothing apart


def test_the_table_says_all_that_a_row_must():
    macs, parameters = [3 * 10**9, 6 * 10**9], [10**6, 2 * 10**6]
    rows = frame([10.0, 40.0], [0.1, 8.0], quiet=[True, False], macs=macs, parameters=parameters)
    assert pivot(rows).to_numpy().tolist() == [
        ["n0", "256", "1.00 M", "3.00 G", "10.0 (1.0 %) 1"],
        ["n1", "256", "2.00 M", "6.00 G", "40.0 (20.0 % noisy) 2"],
    ]
    _, way, noisy = notes(rows)
    assert way == "onnxruntime: 1, fp32, CPU, 1 thread, batch 1, a CPU, Linux, 5 sessions." and "Noisy:" in noisy


def test_each_way_of_timing_is_ranked_and_correlated_by_itself():
    rows = [row(device=device, threads=None, version="", runtime="Core ML", network=f"n{i}", name=f"n{i}", macs=i + 1,
                median_ms=time, spread_ms=0.1)
            for device, times in (("A", [1.0, 2.0, 3.0]), ("B", [30.0, 20.0, 10.0]))
            for i, time in enumerate(times)]  # fmt: skip
    table = pivot(to_frame([*rows, row()]))
    heads, body = list(table), table.to_numpy().tolist()
    assert heads[4:] == ["Core ML, A", "Core ML, B", "onnxruntime"]
    assert body[0][4:6] == ["1.00 (10.0 %) 1", "30.0 (0.3 %) 3"] and body[3][4:] == ["–", "–", "34.0 (1.5 %) 1"]
    found = correlations(to_frame(rows)).query("measure == 'multiply-adds'")
    assert list(zip(found["runtime"], found["spearman"], strict=True)) == [("Core ML, A", 1.0), ("Core ML, B", -1.0)]
    threads = to_frame([row(), row(threads=2, batch=8), row(threads=None)])
    assert list(ways(threads)) == [
        "onnxruntime, 1 thread, batch 1", "onnxruntime, 2 threads, batch 8", "onnxruntime, threads unknown, batch 1"
    ]  # fmt: skip


def test_correlations_are_scipys_over_networks():
    draws = np.random.default_rng(0)
    macs, time = draws.permutation(12) + 1, draws.random(12)
    rows = frame(time, [0.1] * 12, macs=macs.tolist())
    rows = pd.concat([rows, rows.tail(1), rows.head(1).assign(network="n0 unfolded", median_ms=9.0)])
    (row,) = correlations(rows).query("measure == 'multiply-adds'").to_dict("records")
    expected = stats.spearmanr(macs, time).statistic
    assert (row["n"], row["spearman"]) == (12, pytest.approx(expected)) and row["low"] < expected < row["high"]
    assert np.isnan(correlations(rows).query("measure == 'parameters'")["spearman"]).all()


class Fake(Runtime):
    """A runtime whose calls take the times that it is told, on a clock of its own."""

    name = "fake"
    drift = (1.0,)

    def prepare(self, model, image, path):
        if isinstance(model, nn.Linear):
            raise NotConvertible("Fake", "aten.linear", "head")
        torch.save(model, path)

    def load(self, path, image, threads):
        model = torch.load(path, weights_only=False)
        x = torch.from_numpy(image)
        return Loaded(lambda: model(x) * (1.1 if isinstance(model[0], nn.Tanh) else 1), lambda y: y.detach().numpy())

    def version(self):
        return "1"


@pytest.fixture
def fakes(monkeypatch):
    """Sessions in this process, on the fake runtime; returns the drifts of its sessions and the order of its visits."""
    drifts, visits = [], []

    def session(job, tasks):
        lines = list(run_session({**job, "modules": [], "models": [task.files for task in tasks]}))
        for line in lines:
            if "samples" in line:
                visits.append((job["seed"], line["model"]))
                line["samples"] = [drifts[job["seed"] % len(drifts)] * (1 + line["model"])] * 3
        return lines

    monkeypatch.setitem(RUNTIMES, "fake", Fake)
    monkeypatch.setattr(measuring, "_session", session)
    return drifts, visits


def subject(*layers, name="net"):
    return Subject(Network(name, nn.Sequential(*layers), (3, 8, 8)))


def test_networks_take_turns_in_shuffled_rounds(fakes):
    drifts, visits = fakes
    drifts.append(1.0)
    subjects = [subject(nn.Conv2d(3, 3, 1), name=name) for name in "abc"]
    report = measure(subjects, [Fake()], rounds=8, sessions=3)
    assert [row.median_ms for row in report.rows] == [1, 2, 3] and all(row.quiet for row in report.rows)
    assert len(visits) == 3 * 8 * 3
    rounds = [tuple(model for _, model in visits[i : i + 3]) for i in range(0, len(visits), 3)]
    assert all(sorted(order) == [0, 1, 2] for order in rounds) and len(set(rounds)) > 3
    first = report.rows[0]
    assert (first.macs, first.parameters, first.threads, first.runtime) == (3 * 3 * 64, 12, 1, "fake")


def test_a_network_without_parameters_has_a_row(fakes):
    fakes[0].append(1.0)
    (row,) = measure([subject(nn.AvgPool2d(3, 1, 1))], [Fake()], sessions=1).rows
    assert (row.parameters, row.macs) == (0, 0)


def test_it_is_repeated_until_the_sessions_agree_or_said_that_they_do_not(fakes):
    drifts, _ = fakes
    drifts += [1.0, 1.3, 1.0, 1.0, 1.0, 1.0]  # one session that something disturbed
    (row,) = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], rounds=1, sessions=3).rows
    assert (row.sessions, row.quiet, row.median_ms) == (6, False, 1.0)
    assert row.spread_ms == pytest.approx(0.15)  # the 10th and the 90th percentile of the six
    drifts[:] = [1.0, 1.01, 1.0, 1.02]
    (row,) = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], rounds=1, sessions=3).rows
    assert (row.sessions, row.quiet) == (3, True)
    (row,) = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], rounds=1, sessions=1).rows
    assert row.spread_ms is None and row.quiet is None and row.sessions == 1  # of a spread it says nothing
    assert len(notes(to_frame([row]))) == 2  # not called noisy


def test_what_computes_something_else_is_not_timed(fakes):
    fakes[0].append(1.0)
    report = measure([subject(nn.Tanh(), name="off"), subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=1)
    assert [row.name for row in report.rows] == ["net"]
    assert "off on fake: its scores differ from eager's by 1" in report.refused[0]
    assert "shape (2,), eager's (3,)" in difference(np.zeros(2), np.zeros(3))
    assert difference(np.array([np.nan, 1]), np.ones(2)) and not difference(np.ones(2), np.ones(2) + 1e-6)


def test_what_does_not_convert_names_operation_and_layer(fakes):
    fakes[0].append(1.0)
    linear = Subject(Network("lin", nn.Linear(8, 8), (3, 8, 8)))
    report = measure([linear, subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=1)
    assert report.refused == ["lin on fake: Fake does not take 'aten.linear' in layer 'head'"] and len(report.rows) == 1


def test_what_nothing_counts_is_named_and_the_others_are_timed(fakes):
    fakes[0].append(1.0)
    fourier = subject(nn.Conv2d(3, 3, 1), Fourier(), name="fourier")
    report = measure([fourier, subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=1)
    (said,) = report.refused
    assert said.startswith("fourier: multiply-adds not counted for aten::_fft")
    assert [row.name for row in report.rows] == ["net"]
    assert measure([fourier], [Fake()]).rows == []


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).real


def test_a_process_that_ends_too_early_is_told_with_its_last_words():
    report = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=1)
    (said,) = report.refused  # the process knows no such runtime
    assert said == "fake: its process ended with code 1: KeyError: 'fake'" and report.rows == []


def test_what_was_measured_before_a_process_ended_is_kept(fakes, monkeypatch):
    fakes[0].append(1.0)
    inner = measuring._session

    def third_ends(job, tasks):
        if job["seed"] == 2:
            raise RuntimeError("its process ended with code -9")
        return inner(job, tasks)

    monkeypatch.setattr(measuring, "_session", third_ends)
    report = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=5)
    assert report.refused == ["fake: its process ended with code -9"] and report.rows[0].sessions == 2


def test_a_stopped_measurement_keeps_what_it_has(fakes, monkeypatch):
    fakes[0].append(1.0)
    inner = measuring._session

    def stopped(job, tasks):
        if job["seed"] == 3:
            raise KeyboardInterrupt
        return inner(job, tasks)

    monkeypatch.setattr(measuring, "_session", stopped)
    report = measure([subject(nn.Conv2d(3, 3, 1))], [Fake()], sessions=5)
    assert report.refused[0].startswith("stopped") and report.rows[0].sessions == 3


def test_keys_tell_folded_from_unfolded_and_runs_by_their_configuration():
    network = of_run("a", RUN)
    key = network_key(RUN.to_dict())
    assert Subject(network).key == key and Subject(network, False).key == f"{key} unfolded"
    probe = named_run("recall")
    assert Subject(of_run("a", probe)).key == network_key(probe.to_dict()) != Subject(of_run("a", probe, (16, 16))).key
    assert Subject(find_network("xca")).key == "xca"
    assert Subject(find_network("xca", (8, 12)), False).key == "xca 8×12 unfolded"
    assert Subject(of_run("a", RUN, (16, 24))).key == network_key(RUN.to_dict(), (16, 24)) != key


@pytest.mark.parametrize("name, extra", [("onnxruntime", "onnx"), ("executorch", "executorch")])
def test_a_missing_runtime_names_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"is not installed: uv pip install -e '\.\[{extra}\]'"):
        find_runtime(name)


def test_an_unknown_runtime_is_one_line():
    with pytest.raises(ValueError, match=r"runtime 'tpu': one of eager, .*, or all"):
        find_runtime("tpu")


INSTALLED = [
    pytest.param("eager"),
    pytest.param("eager-channels-last"),
    pytest.param("compile", marks=pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")),
    pytest.param("onnxruntime", marks=pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnx")),
    pytest.param("executorch", marks=pytest.mark.skipif(find_spec("executorch") is None, reason="needs executorch")),
]


@pytest.mark.parametrize("name", INSTALLED)
def test_runtimes_compute_what_eager_does(tmp_path, name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    image = torch.rand(2, 3, 8, 8)
    runtime = find_runtime(name)
    runtime.prepare(model, image, tmp_path / "net")
    loaded = runtime.load(tmp_path / "net", image.numpy(), 1)
    with torch.no_grad():
        assert not difference(loaded.scores(loaded.call()), model(image).numpy())
    assert len(loaded.time(3)) == 3 and runtime.version()


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the onnx extra")
def test_the_command_times_a_grid_and_keeps_its_rows(grid, tmp_path, monkeypatch):
    """In a process of its own, which needs no torch."""
    monkeypatch.setattr("metamixer.latency.measure.MOST", 1)
    options = ("--runtime", "onnxruntime", "--rounds", "2", "--sessions", "3", "--runs", tmp_path / "runs")
    shown = launch("bench", grid, "--only", "gelu,relu", *options).stdout
    found = load(tmp_path / "runs")
    assert list(found["name"]) == ["gelu", "relu"] and found["network"].nunique() == 2
    assert next(iter(found["network"])) == Subject(of_run("gelu", RUN)).key
    assert (found["median_ms"] > 0).all() and set(found["sessions"]) == {3} and set(found["batch"]) == {1}
    assert "gelu" in shown and "latency.jsonl" in shown


@pytest.mark.parametrize("name", ["halved", '{"name": "query_key.linear", "expansion": 2.0}'])
def test_the_command_times_an_operation_of_the_users_own_and_a_mixer_with_parameters(tmp_path, name):
    (tmp_path / "my_op.py").write_text(
        "from metamixer import Activation, register\n@register\nclass Halved(Activation):\n    name = 'halved'\n"
        "    def forward(self, scores):\n        return scores / 2\n"
    )
    options = ("--runtime", "eager", "--rounds", 1, "--sessions", 1, "--size", 8, "--runs", tmp_path / "runs")
    launch("bench", name, "--module", tmp_path / "my_op.py", *options)
    (row,) = load(tmp_path / "runs").to_dict("records")
    assert row["network"] == name and row["median_ms"] > 0
