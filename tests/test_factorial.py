"""Factorials and ladders against independent references: a naive rewrite, least squares, scipy, known effects."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from factorials import LEVELS, means, write_factorial
from scipy import stats
from test_analysis import LADDER, write_grid

from analysis import factorial, frame, ladder, statistics


def noisy(seed, n=3, sd=0.2, **effects):
    """A factorial of `n` seeds: cells, what a seed shares, noise."""
    rng = np.random.default_rng(seed)
    mean = means(**effects)
    return mean + rng.normal(0, 0.5, (n, 1, 1, 1)) + rng.normal(0, sd, (n, *mean.shape))


def taken(root, y):
    return factorial.take_apart(frame.load(write_factorial(root, y), with_config=True))


def test_interactions_are_what_least_squares_leaves_over(tmp_path):
    y = noisy(0, corner=2.0)
    found = taken(tmp_path, y)
    assert found.levels == LEVELS and found.seeds == (0, 1, 2)
    cells = list(itertools.product(*map(range, y.shape[1:])))
    design = np.array(
        [[1, *(i == a for a in range(1, 3)), *(j == a for a in range(1, 3)), k == 1] for i, j, k in cells]
    )
    mean = y.mean(0).ravel()
    fitted = design @ np.linalg.lstsq(design.astype(float), mean, rcond=None)[0]
    np.testing.assert_allclose(found.cells["additive"], fitted, rtol=1e-9)
    np.testing.assert_allclose(found.cells["interaction"], mean - fitted, atol=1e-9)
    hat = design @ np.linalg.pinv(design.astype(float))
    df = 2 * (len(cells) - 1)
    error = y - y.mean(0) - y.mean((1, 2, 3), keepdims=True) + y.mean()
    half = stats.t.ppf(0.975, df) * np.sqrt((error**2).sum() / df / 3 * (1 - np.diag(hat)))
    np.testing.assert_allclose(found.cells["high"] - found.cells["interaction"], half)


def test_the_analysis_of_variance_adds_up_and_knows_the_paired_t_test(tmp_path):
    y = noisy(1)
    found = taken(tmp_path, y)
    assert list(found.sources["df"]) == [2, 2, 1, 4, 2, 2, 4]
    assert found.sources["share"].sum() == pytest.approx(1)
    by_key = y.mean((2, 3))  # a naive one-way reference for the sum of squares of the query-keys
    squares = 6 * ((by_key.mean(0) - y.mean()) ** 2).sum()
    assert found.sources["share"].iloc[0] == pytest.approx(squares / ((y.mean(0) - y.mean()) ** 2).sum())
    # two cells alone: blocks of two are pairs, and F is the square of t
    pair = y[:, :2, :1, :1]
    levels = {"query_key": ["a", "b"], "activation": ["a"], "coefficient_value": ["a"]}
    runs = frame.load(tmp_path, with_config=True)
    chosen = runs[runs["variant"].isin(["linear-identity-linear", "depthwise3-identity-linear"])]
    two = factorial.take_apart(chosen)
    reference = stats.ttest_rel(pair[:, 1, 0, 0], pair[:, 0, 0, 0])
    assert [len(two.levels[slot]) for slot in levels] == [2, 1, 1]
    assert two.sources["f"].iloc[0] == pytest.approx(reference.statistic**2)
    assert two.sources["p"].iloc[0] == pytest.approx(reference.pvalue)


def test_a_cell_beyond_the_sum_is_found_and_none_where_there_is_none(tmp_path):
    found = taken(tmp_path / "corner", noisy(2, corner=3.0))
    corner = found.cells.set_index("variant").loc["linear-identity-linear"]
    assert corner["verdict"] == "above" and corner["low"] < 3 * (1 - 6 / 18) < corner["high"]
    meta = frame.describe(frame.load(tmp_path / "corner"))
    text = factorial.conclusion(found, meta)
    said = text.partition("Other than the sum of their slots, after correction for 18 cells: ")[2]
    assert said.startswith(f"linear-identity-linear +{corner['interaction']:.2f} points [")
    none = taken(tmp_path / "none", noisy(3))
    assert not none.cells["verdict"].isin(["above", "below"]).any()
    assert "No cell differs from the sum of its slots" in factorial.conclusion(none, meta)
    clear = none.effects[none.effects["verdict"] == "above"].set_index("operation")
    assert clear.loc["depthwise 7×7", "effect"] == pytest.approx(1, abs=0.2)


def test_false_alarms_and_coverage_hold_their_level():
    """Additive cells with noise: each test errs in 5 % of the cases, Holm's families at most; intervals cover 95 %."""
    levels = LEVELS
    mean, corner = means(), 18 * (1 - 6 / 18) / 18
    wrong = families = covered = 0
    index = pd.MultiIndex.from_product(levels.values(), names=factorial.SLOTS)
    cells = pd.DataFrame(index=index).reset_index().assign(variant="v", n=3)
    trials = 400
    rng = np.random.default_rng(5)
    for _ in range(trials):
        noise = rng.normal(0, 0.2, (3, *mean.shape)) + rng.normal(0, 0.5, (3, 1, 1, 1))
        found = factorial._analysed(mean + noise, cells, levels, (0, 1, 2), ())
        interacting = found.sources["source"].str.contains("×")
        wrong += (found.sources.loc[interacting, "p"] < 0.05).mean()
        families += found.cells["verdict"].isin(["above", "below"]).any()
        moved = factorial._analysed(means(corner=1.0) + noise, cells, levels, (0, 1, 2), ())
        row = moved.cells.iloc[0]
        covered += row["low"] <= corner <= row["high"]
    assert 0.03 <= wrong / trials <= 0.07
    assert families / trials <= 0.075
    assert 0.93 <= covered / trials <= 0.97


def test_what_is_not_whole_is_said_and_not_taken_apart(tmp_path):
    y = noisy(4)
    y[2, 0, 0, 0] = np.nan
    partly = taken(tmp_path / "seed", y)
    assert partly.whole and partly.seeds == (0, 1)
    assert partly.left_out == (
        "2 seeds with every cell (of seed 2 some cells are missing); interactions need two or more",
    )
    y[:, 0, 0, 0] = np.nan
    hole = taken(tmp_path / "hole", y)
    assert not hole.whole and len(hole.cells) == 17 and "1 of 18 cells have no result" in hole.left_out[1]
    meta = frame.describe(frame.load(tmp_path / "hole"))
    assert factorial.conclusion(hole, meta).startswith("No conclusion for slot_interactions on digits")
    write_grid(tmp_path / "ladder")
    ladder_runs = frame.load(tmp_path / "ladder", with_config=True)
    none = factorial.take_apart(ladder_runs)
    assert not none.whole and none.left_out[0].startswith("no MetaMixer, or no configuration yet: attention")
    empty = factorial.take_apart(frame.load(tmp_path / "nowhere", missing="empty", with_config=True))
    assert not empty.whole and not len(empty.cells)


def chained(root, order):
    """The grid of the tests as a ladder: each of `order` on the one before."""
    path = write_grid(root)
    manifest = json.loads(path.read_text())
    on = dict(itertools.pairwise(reversed(order)))
    for run in manifest["runs"]:
        run["on"] = on.get(run["variant"])
    path.write_text(json.dumps(manifest))
    return root


def test_steps_are_paired_with_what_they_build_on(tmp_path):
    order = ["attention", "gelu", "static_keys", "depthwise"]
    runs = frame.load(chained(tmp_path, order))
    table = ladder.steps(runs).set_index("variant")
    assert list(table[table["rung"]].index) == order[1:]
    assert table.loc["pooling", "on"] == "attention" and not table.loc["pooling", "rung"]
    for before, variant in itertools.pairwise(order):
        reference = stats.ttest_rel(LADDER[variant][0], LADDER[before][0])
        row, (low, high) = table.loc[variant], reference.confidence_interval(0.95)
        assert row["on"] == before
        np.testing.assert_allclose([row["low"], row["high"], row["p"]], [low, high, reference.pvalue])
    assert table["difference"].loc[order[1:]].sum() == pytest.approx(np.mean(LADDER["depthwise"][0]) - 96.11)
    text = ladder.conclusion(table.reset_index(), statistics.compare(runs), frame.describe(runs))
    assert "attention → gelu +0.07 points" in text.partition("Inside the noise")[2]
    assert "From attention (96.11 %) to depthwise (97.22 %): +1.11 points in 3 steps." in text


def test_a_ladder_without_results_concludes_nothing(tmp_path):
    write_grid(tmp_path, {"attention": ([None], 1), "gelu": ([None], 1)})
    runs = frame.load(tmp_path)
    text = ladder.conclusion(ladder.steps(runs), statistics.compare(runs), frame.describe(runs))
    assert text.startswith("No conclusion") and "Preliminary: of 2 runs, 0 failed and 2 have no result." in text


def test_a_ladder_on_its_way_is_preliminary_and_judges_no_lone_pair(tmp_path):
    """Of four steps one has two pairs, and that is inside the noise; the others have one."""
    variants = {"attention": ([90.0, 90.4], 1), "gelu": ([90.5, 90.1], 1)}
    write_grid(tmp_path, variants | {name: ([91.0, None], 1) for name in ("static_keys", "depthwise", "pooling")})
    runs = frame.load(tmp_path)
    first, second, *_ = ladder.conclusion(
        ladder.steps(runs), statistics.compare(runs), frame.describe(runs)
    ).splitlines()
    assert first == "Preliminary: of 10 runs, 0 failed and 3 have no result."
    assert second.startswith("None of 1 step that can be judged changed anything")
