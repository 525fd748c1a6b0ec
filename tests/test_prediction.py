"""Rank correlations of probes with what mixers are worth elsewhere, against scipy, statsmodels and simulation."""

import shutil

import numpy as np
import pandas as pd
import pytest
from grids import key
from matplotlib import pyplot as plt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_profile import write_task

from analysis import plots, prediction
from analysis.intervals import spearman

NAMES = [f"mixer{number}" for number in range(12)]
TASKS = ("recall", "shift", "majority")


@pytest.fixture
def scores():
    """By probe and for error rates: twelve mixers at two seeds. The control says nothing, recall nearly all."""
    draws = np.random.default_rng(1)
    worth = draws.permutation(12)
    found = {
        "recall": 50 + 3 * worth + draws.normal(0, 4, 12),
        "shift": draws.uniform(10, 90, 12),
        "majority": np.full(12, 100.0),
        "errors": 30.0 - worth,
    }
    return {task: dict(zip(NAMES, np.stack([of, of + 0.1], 1), strict=True)) for task, of in found.items()}


@pytest.fixture
def points(tmp_path, scores):
    for task in TASKS:
        write_task(tmp_path, task, scores[task], solved=90.0)
    write_task(tmp_path, "absent", {"mixer0": (0.0,)})  # declared, but not begun
    shutil.rmtree(tmp_path / key("probes", "absent", "mixer0", 0))
    # elsewhere the first mixer has another name and other heads, and there is one more, last and the same as the first
    known = {"first": {"name": NAMES[0], "head_dim": 7}, "again": {"name": NAMES[0]}}
    elsewhere = {"first": scores["errors"][NAMES[0]], **{name: scores["errors"][name] for name in NAMES[1:]}}
    write_task(tmp_path, "images", elsewhere | {"again": (99.0, 99.0)}, grid="elsewhere", mixers=known.items(),
               higher_is_better=False)  # fmt: skip
    return prediction.points(tmp_path, ["probes"], ["elsewhere@images", "nothing@images"])


def test_correlations_are_scipys_over_the_mixers_in_common(points, scores):
    table = prediction.correlations(points).set_index("task")
    worth = [-np.mean(scores["errors"][name]) for name in NAMES]
    for task in ("recall", "shift"):
        expected = stats.spearmanr([np.mean(scores[task][name]) for name in NAMES], worth).statistic
        assert table.loc[task, "spearman"] == pytest.approx(expected) and table.loc[task, "n"] == 12
    assert table.loc["recall", "verdict"] == "better" and table.loc["shift", "verdict"] == "inside noise"
    assert np.isnan(table.loc["majority", "p"])
    expected = multipletests([1 if np.isnan(p) else p for p in table["p"]], method="holm")[1]
    assert table["p_holm"].dropna().to_list() == pytest.approx(expected[table["p"].notna()])
    known = points[points["task"] == "recall"].set_index("variant")["level"]
    assert known[NAMES[3]] == pytest.approx((np.mean(scores["recall"][NAMES[3]]) - 6.25) / (90 - 6.25))
    every = points[points["variant"] == NAMES[3]].set_index("task")["level"]
    assert every[prediction.ALL] == pytest.approx(every[list(TASKS)].mean())
    noise = 0.1**2 / 2 / 2  # of a mean of two seeds
    assert table.loc["shift", "reliable"] == pytest.approx(1 - noise / np.var(worth, ddof=1))


def test_table_and_pictures_say_it(points):
    table = prediction.correlations(points)
    text = prediction.to_markdown(table)
    assert "| majority | – |" in text and "elsewhere@images: 12 mixers; 100 % of the variance of their means is" in text
    assert text.count("▲ |") == (table["verdict"] == "better").sum() > 0
    few = prediction.to_markdown(prediction.correlations(points[points["variant"].isin(NAMES[:4])]))
    assert "| recall | too few (4) |" in few
    (axes,) = plots.correlations(table)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table["task"])
    axes = plots.worth_by_level(points, "elsewhere@images")
    assert {text.get_text() for text in axes.texts} >= set(NAMES)
    known = points[points["variant"] == NAMES[0]].assign(variant="pooling", level=0.5)
    row = f"| pooling | PoolFormer-S12 | 77.2 | {known['worth'].iloc[0]:.2f} | 50% |"
    assert row in prediction.beside_published(known)
    plots.worth_by_level(points, "nowhere")
    plots.correlations(table[:0])
    plt.close("all")


def test_the_interval_covers_as_often_as_it_says_and_p_is_that_of_permutations():
    draws = np.random.default_rng(0)
    truth, hits = 6 / np.pi * np.arcsin(0.8 / 2), 0  # of a normal pair with correlation 0.8
    for _ in range(2000):
        x, y = draws.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 20).T
        _, low, high, _ = spearman(x, y)
        hits += low < truth < high
    assert 0.92 < hits / 2000 < 0.98
    x, y = draws.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], 40).T
    r, _, _, p = spearman(x, y)
    shuffled = [stats.spearmanr(x, draws.permutation(y)).statistic for _ in range(2000)]
    assert p == pytest.approx(np.mean(np.abs(shuffled) >= abs(r)), abs=0.015)
    assert np.isnan(spearman(np.arange(9), np.arange(9))[1:]).all() and np.isnan(spearman(np.ones(9), x[:9])).all()


def test_published_mixers_are_those_of_the_catalogue():
    from analysis.published import published_mixers
    from metamixer.presets import BASELINES

    of_s12 = published_mixers().query("network.str.endswith('S12')")
    assert set(of_s12["mixer"]) <= set(BASELINES)
    assert isinstance(of_s12, pd.DataFrame) and of_s12.groupby("source")["top-1"].is_monotonic_increasing.all()
