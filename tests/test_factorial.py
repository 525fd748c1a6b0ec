"""Factorials and ladders against independent references: a naive rewrite, least squares, scipy, known effects."""

import itertools
import json

import numpy as np
import pytest
from factorials import LEVELS, means, write_factorial
from grids import LADDER, write_grid
from scipy import stats

from analysis import factorial, frame, ladder, tables


def noisy(seed, n=3, sd=0.2, **effects):
    """A factorial of `n` seeds: cells, what a seed shares, noise."""
    rng = np.random.default_rng(seed)
    mean = means(**effects)
    return mean + rng.normal(0, 0.5, (n, 1, 1, 1)) + rng.normal(0, sd, (n, *mean.shape))


def taken(root, y):
    return factorial.take_apart(*loaded(write_factorial(root, y)))


def loaded(root):
    return frame.load(root, "slot_interactions", with_config=True)


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
    runs, meta = loaded(tmp_path)
    chosen = runs[runs["variant"].isin(["linear-identity-linear", "depthwise3-identity-linear"])]
    two = factorial.take_apart(chosen, meta)
    reference = stats.ttest_rel(pair[:, 1, 0, 0], pair[:, 0, 0, 0])
    assert [len(two.levels[slot]) for slot in levels] == [2, 1, 1]
    assert two.sources["f"].iloc[0] == pytest.approx(reference.statistic**2)
    assert two.sources["p"].iloc[0] == pytest.approx(reference.pvalue)


def test_a_cell_beyond_the_sum_is_found_and_none_where_there_is_none(tmp_path):
    found = taken(tmp_path / "corner", noisy(2, corner=3.0))
    corner = found.cells.set_index("variant").loc["linear-identity-linear"]
    assert corner["verdict"] == "better" and corner["low"] < 3 * (1 - 6 / 18) < corner["high"]
    text = tables.of_factorial(found, loaded(tmp_path / "corner")[1])
    assert f"| linear-identity-linear | +{corner['interaction']:.2f} [" in text
    none = taken(tmp_path / "none", noisy(3))
    assert not none.cells["verdict"].isin(["better", "worse"]).any()
    clear = none.effects[none.effects["verdict"] == "better"].set_index("operation")
    assert clear.loc["depthwise 7×7", "effect"] == pytest.approx(1, abs=0.2)


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
    assert tables.of_factorial(hole, loaded(tmp_path / "hole")[1]).startswith("There is no full factorial")
    write_grid(tmp_path / "ladder")
    none = factorial.take_apart(*frame.load(tmp_path / "ladder", "ffnification", with_config=True))
    assert not none.whole and none.left_out[0].startswith("no MetaMixer, or no configuration yet: attention")
    one = factorial.take_apart(*(lambda runs, meta: (runs[runs["variant"] == "linear-gelu-linear"], meta))(*loaded(
        write_factorial(tmp_path / "one", noisy(5)))))  # fmt: skip
    assert not one.whole and len(one.cells) == 1


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
    runs, meta = frame.load(chained(tmp_path, order), "ffnification")
    table = ladder.steps(runs, meta).set_index("variant")
    assert list(table[table["rung"]].index) == order[1:]
    assert table.loc["pooling", "on"] == "attention" and not table.loc["pooling", "rung"]
    for before, variant in itertools.pairwise(order):
        reference = stats.ttest_rel(LADDER[variant][0], LADDER[before][0])
        row, (low, high) = table.loc[variant], reference.confidence_interval(0.95)
        assert row["on"] == before
        np.testing.assert_allclose([row["low"], row["high"], row["p"]], [low, high, reference.pvalue])
    assert table["difference"].loc[order[1:]].sum() == pytest.approx(np.mean(LADDER["depthwise"][0]) - 96.11)
    text = str(tables.of_steps(table.reset_index(), meta))
    assert "| attention → gelu | +0.07 [" in text and "inside noise | 3 |" in text


def test_a_ladder_on_its_way_judges_no_lone_pair(tmp_path):
    variants = {"attention": ([90.0, 90.4], 1), "gelu": ([90.5, 90.1], 1), "depthwise": ([91.0, None], 1)}
    write_grid(tmp_path, variants | {"pooling": ([None, None], 1)})
    runs, meta = frame.load(tmp_path, "ffnification")
    steps = ladder.steps(runs, meta)
    assert list(steps["verdict"]) == ["inside noise", "too few pairs", "too few pairs"]
    assert "| attention → pooling | – | no pair | 0 |" in str(tables.of_steps(steps, meta))
