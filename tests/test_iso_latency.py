"""Iso-latency: widths found by timing, recorded beside the runs, the same ever after; timed by a closed form."""

import json
import multiprocessing

import pytest
from small import RUN as TINY
from test_commands import launch

from metamixer import ConfigError, override
from sweeps import Grid, Variant, make_plan
from sweeps.grid import LoadedGrid
from sweeps.iso_cost import FILE, TIMED_TOLERANCE, cost, matched

MIXER = "model.stages.*.token_mixer"
RUN = override(TINY, {"model.stem_stride": 2, "model.stages.*.width": 32})
MEASURE = "latency:onnxruntime"


class Clock:
    """A runtime that takes 1 ms for 1 M multiply-adds and as much again for a pooling mixer."""

    def __init__(self, slow=0.0):
        self.slow, self.asked = slow, []

    def __call__(self, runtime, runs):
        self.asked.append((runtime, len(runs)))
        return [1e-6 * cost(run).macs + self.slow * ("pooling" in str(run.model)) for run in runs]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr("metamixer.latency.measure.time_runs", found)
    return found


def plan(root, measure=True, match=MEASURE, variants=("pooling", "mambaout")):
    changes = {name: Variant(changes={MIXER: name}) for name in variants}
    grid = Grid(bases={"tiny": RUN}, base="ffnified", variants={"ffnified": Variant(), **changes}, seeds=(0, 1))
    return make_plan(LoadedGrid("test", "Why?", grid), root, match=match, measure=measure)


def widths(planned):
    return {run.variant: run.config.model.stages[0].width for run in planned.runs}


def test_variants_take_as_long_as_the_base(tmp_path, clock):
    configs = {run.variant: run.config for run in plan(tmp_path).runs}
    times = dict(zip(configs, Clock()("onnxruntime", configs.values()), strict=True))
    assert configs["ffnified"] == override(RUN, {"seed": 1})
    assert times["pooling"] == pytest.approx(times["ffnified"], rel=TIMED_TOLERANCE)
    assert times["mambaout"] == pytest.approx(times["ffnified"], rel=TIMED_TOLERANCE)
    assert configs["pooling"].model.stages[0].width > 32
    assert {runtime for runtime, _ in clock.asked} == {"onnxruntime"}


def test_what_was_found_once_holds(tmp_path, clock):
    found = plan(tmp_path)
    clock.asked.clear()
    again = plan(tmp_path, measure=False)
    third = plan(tmp_path)
    assert [run.hash for run in found.runs] == [run.hash for run in again.runs] == [run.hash for run in third.runs]
    assert clock.asked == [] and found.data == "tiny+match=latency_onnxruntime"
    assert len([line for line in (tmp_path / FILE).read_text().splitlines() if line]) == 2


def test_the_first_record_of_two_writers_holds_and_a_torn_line_harms_nothing(tmp_path):
    found = widths(plan(tmp_path))
    lines = [line for line in (tmp_path / FILE).read_text().splitlines() if line]
    with (tmp_path / FILE).open("a") as file:
        for line in lines:
            file.write(json.dumps({**json.loads(line), "width": 8}) + "\n")
        file.write('{"measure": "latency:on')
    other = {"pooling", "van"}
    assert widths(plan(tmp_path, variants=tuple(sorted(other)))).items() >= {"pooling": found["pooling"]}.items()
    assert widths(plan(tmp_path, measure=False)) == found


def _find(root):
    plan(root, variants=("pooling",))


def test_two_launches_at_once_agree(tmp_path):
    fork = multiprocessing.get_context("fork")
    launches = [fork.Process(target=_find, args=(tmp_path,)) for _ in range(2)]
    for each in launches:
        each.start()
    for each in launches:
        each.join()
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines() if line]
    assert 1 <= len(rows) <= 2
    assert widths(plan(tmp_path, variants=("pooling",)))["pooling"] == rows[0]["width"]


def test_a_plan_measures_and_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"variant 'pooling': its width at equal latency:\S+ has not been measured"):
        plan(tmp_path / "runs", measure=False)
    assert not (tmp_path / "runs").exists()


def test_a_width_that_cannot_be_had_says_how_near_it_came(tmp_path, clock):
    clock.slow = 100.0
    with pytest.raises(ConfigError, match=r"no width brings its latency:\S+ within 5% .* the nearest is \d+ chann"):
        plan(tmp_path, variants=("pooling",))
    assert not (tmp_path / FILE).exists()


def test_another_recipe_needs_no_other_widths(tmp_path):
    pooling, longer = override(RUN, {MIXER: "pooling"}), {"recipe.epochs": 9}
    found = matched(pooling, RUN, MEASURE, tmp_path, timed=True)
    again = matched(override(pooling, longer), override(RUN, longer), MEASURE, tmp_path)
    assert again == override(found, longer)


@pytest.mark.parametrize("match", ["latency:", "flops", "latency", "latency:eagre", "onnxruntime"])
def test_measures_that_do_not_exist(tmp_path, match):
    known = f"no cost '{match}': macs, params, or latency:RUNTIME, of the runtimes eager, "
    with pytest.raises(ConfigError, match=known):
        plan(tmp_path / "runs", match=match)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=known):
        Grid(bases={"tiny": RUN}, base="a", variants={"a": Variant()}, match=match).runs()


def test_the_command_line_measures_where_it_may(grid, tmp_path):
    options = (grid, "--match", "latency:eager", "--only", "gelu,relu", "--runs", tmp_path / "runs")
    assert "has not been measured: `launch.py run`" in launch("plan", *options, code=2).stderr
    launch("bench", *options, "--runtime", "eager", "--sessions", 1, "--rounds", 1)
    assert "relu" in launch("plan", *options).stdout
