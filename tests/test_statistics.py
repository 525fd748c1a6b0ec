"""Comparisons against simulated data with a known effect, resampling and scipy; learning rates; A/A; planning."""

import json
import math

import numpy as np
import pytest
from grids import key, rewrite, write_grid
from scipy import stats

from analysis import frame, intervals, power, statistics, tables

# --- intervals


def crossed_data(rng, repeats, n, m, seeds, images, rest, effect=0.3):
    """Differences over n seeds and m images with a spread of each."""
    d = effect + rng.normal(0, seeds, (repeats, n, 1)) + rng.normal(0, images, (repeats, 1, m))
    return d + rng.normal(0, rest, (repeats, n, m))


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("seeds, images, rest", [(0.1, 1, 1), (0.05, 1, 2), (0, 0.5, 1)])
def test_intervals_over_seeds_and_images_cover_a_known_effect(n, seeds, images, rest):
    rng = np.random.default_rng(n)
    d = crossed_data(rng, 3000, n, 150, seeds, images, rest)
    both = intervals.crossed(d)
    assert 0.93 <= np.mean((both.low <= 0.3) & (both.high >= 0.3)) <= 0.975


def test_intervals_over_seeds_alone_do_not_speak_of_other_images():
    d = crossed_data(np.random.default_rng(0), 2000, 5, 150, 0.1, 1, 1)
    seeds, both = intervals.paired(d.mean(-1), np.zeros((2000, 5))), intervals.crossed(d)
    assert np.mean((seeds.low <= 0.3) & (seeds.high >= 0.3)) < 0.9
    null = intervals.crossed(d - 0.3)
    assert np.mean(null.p < 0.05) < 0.06 and np.median(both.high - both.low) > np.median(seeds.high - seeds.low)


@pytest.mark.parametrize("images", [0.2, 0.5])
def test_what_rules_covers_where_seeds_dominate_too(images):
    """Few seeds that differ much are the worst case for Satterthwaite's degrees of freedom."""
    d = crossed_data(np.random.default_rng(3), 3000, 3, 150, 0.3, images, 1)
    seeds, both = intervals.paired(d.mean(-1), np.zeros((3000, 3))), intervals.crossed(d)
    low, high = np.minimum(seeds.low, both.low), np.maximum(seeds.high, both.high)
    assert np.mean((low <= 0.3) & (high >= 0.3)) >= 0.93


def test_the_variance_is_that_of_resampling_seeds_and_images_together():
    """Against the pigeonhole bootstrap, whose bias at n seeds and m images is known in expectation."""
    n, m = 40, 300
    d = crossed_data(np.random.default_rng(1), 1, n, m, 0.3, 1.5, 1.0)[0]
    rng = np.random.default_rng(2)
    means = [d[rng.integers(0, n, n)][:, rng.integers(0, m, m)].mean() for _ in range(4000)]
    both = intervals.crossed(d)
    half = float(both.high - both.low) / 2
    extra = 2 * 1.0 / (n * m)  # what is neither seeds' nor images' counts three times in a resample
    assert half / stats.t.ppf(0.975, 60) == pytest.approx(math.sqrt(np.var(means) - extra), rel=0.06)


def test_a_difference_of_a_few_images_is_never_certain():
    """2, 2 and 3 images of 500, other ones at each seed: seeds alone would say −0.47 ± 0.29 points."""
    d = np.zeros((3, 500))
    d[0, :5], d[0, 5:8] = -1, 1
    d[1, 10:14], d[1, 14:16] = -1, 1
    d[2, 20:23] = -1
    seeds, both = intervals.paired(100 * d.mean(-1), np.zeros(3)), intervals.crossed(100 * d)
    assert seeds.high < 0 < both.high


def test_crossed_of_too_little_says_nothing():
    for d in (np.zeros((1, 9)), np.zeros((3, 1)), np.zeros((3, 9))):
        found = intervals.crossed(d)
        assert math.isnan(found.low) and math.isnan(found.p) and found.difference == 0


# --- comparisons


def write_predictions(root, variant, seed, wrong, images=400, labels=None):
    predicted = np.zeros(images, np.int16)
    predicted[list(wrong)] = 1
    labels = np.zeros(images, np.int16) if labels is None else labels
    folder = root / key(variant, seed)
    np.savez_compressed(folder / "predictions.npz", label=labels, ema=predicted, raw=predicted)


def predicted_grid(root, gain):
    """A base that is wrong on images 0-59, and a variant that is right on `gain` of them."""
    ladder = {"attention": ([85.0] * 3, 100), "up": ([85 + gain / 4 + d for d in (-0.01, 0, 0.01)], 100)}
    write_grid(root, ladder)
    for seed in range(3):
        write_predictions(root, "attention", seed, range(60))
        write_predictions(root, "up", seed, range(gain, 60))
    return frame.load(root, "ffnification")


def test_a_verdict_needs_seeds_and_images(tmp_path):
    few = statistics.compare(*predicted_grid(tmp_path / "few", 2)).set_index("variant").loc["up"]
    assert few["low_seeds"] > 0 > few["low_both"] and few["verdict"] == "inside noise"
    assert (few["low"], few["p"]) == (few["low_both"], few["p_both"])
    many = statistics.compare(*predicted_grid(tmp_path / "many", 40)).set_index("variant").loc["up"]
    assert many["verdict"] == "better" and many["low"] <= many["low_seeds"] and many["low"] <= many["low_both"]


def test_what_seeds_find_is_called_noise_over_seeds_alone(tmp_path):
    images = predicted_grid(tmp_path / "images", 2)
    write_grid(tmp_path / "none", {"attention": ([90.0, 90.5], 1), "up": ([90.1, 90.4], 1)})
    for (runs, meta), kept in ((images, True), (frame.load(tmp_path / "none", "ffnification"), False)):
        notes = tables.footnotes(statistics.compare(runs, meta), meta)
        (line,) = [line for line in notes if "in 8 cases of 10" in line]
        assert "noise over seeds alone" in line and ("that of the test samples too" in line) == kept


def test_images_are_compared_with_themselves_only(tmp_path):
    runs, meta = predicted_grid(tmp_path, 2)
    write_predictions(tmp_path, "up", 1, [0], labels=np.ones(400, np.int16))
    row = statistics.compare(runs, meta).set_index("variant").loc["up"]
    assert math.isnan(row["low_both"]) and row["low"] == row["low_seeds"]
    text = str(tables.render(statistics.compare(runs, meta), meta))
    assert "it does not speak about other test samples" in text
    torn = tmp_path / key("up", 1) / "predictions.npz"
    whole = torn.read_bytes()
    folders = [(str(tmp_path / key("up", seed)), "ema") for seed in range(3)] + [("nowhere", "ema")]
    middle = whole.index(b"label.npy") + len("label.npy") + 20  # of a compressed array
    for left in (whole[: len(whole) // 2], whole[:middle] + b"\xff" * 8 + whole[middle + 8 :], b"PK torn", b""):
        torn.write_bytes(left)
        assert list(statistics.right(folders)) == [key("up", 0), key("up", 2)]
    assert statistics.right([]) == {}


def test_what_differs_at_every_seed_is_better(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(90, 0.1, 5)
    write_grid(tmp_path, {"attention": (list(base), 1), "up": (list(base + 2 + rng.normal(0, 0.01, 5)), 1),
                          "far": (list(base + 4 + rng.normal(0, 0.01, 5)), 1)})  # fmt: skip
    runs, meta = frame.load(tmp_path, "ffnification")
    assert set(statistics.compare(runs, meta)["verdict"]) == {"base", "better"}


def test_unequal_cost_epochs_and_effort_are_said(tmp_path):
    write_grid(tmp_path, {"attention": ([90.0, 90.2], 100), "same": ([90.1, 90.2], 103), "big": ([91.0, 91.1], 180)})
    for seed in (0, 1):
        rewrite(tmp_path / key("big", seed) / "result.json", epochs=6)
    runs, meta = frame.load(tmp_path, "ffnification")
    text = str(tables.render(statistics.compare(runs, meta), meta))
    assert "Unequal cost: multiply-adds 1.00 to 1.80 times the base's; a difference" in text
    assert "Unequal effort, epochs: the base 3, big 6." in text
    equal = runs[runs["variant"] != "big"]
    assert "Unequal" not in str(tables.render(statistics.compare(equal, meta), meta))


# --- learning rates


def rates_grid(root, figures):
    """A grid whose variants ran at several rates: variant → rate → (validation, test) at each of two seeds."""
    entries = []
    write_grid(root, {variant: ([], 100) for variant in figures})
    path = root / "grids" / "ffnification@digits.json"
    for variant, at in figures.items():
        for lr, results in at.items():
            for seed, found in enumerate(results):
                name = key(variant, seed, lr)
                entries.append({"hash": name, "variant": variant, "seed": seed, "lr": lr, "fixed": lr == 0.004})
                if found is None:
                    continue
                result, row = {"state": "failed", "error": found, "epoch": 1}, {"epoch": 3}
                if not isinstance(found, str):
                    both = {"top1": found[1], "top5": 99.0, "loss": 0.1, "images": 360}
                    result = {"state": "done", "weights": "raw", **both, "raw": both, "parameters": 1, "macs": 100}
                    row |= {"val_top1": found[0]}
                (root / name).mkdir()
                (root / name / "config.json").write_text('{"schema": 2}')
                (root / name / "result.json").write_text(json.dumps(result | {"epochs": 3}))
                (root / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    rewrite(path, runs=entries)
    return frame.load(root, "ffnification")


def test_the_best_rate_is_chosen_on_validation_data_alone(tmp_path):
    figures = {
        "attention": {0.004: [(90, 80), (91, 81)], 0.001: [(80, 99), (80, 99)], 0.01: [(85, 99), (85, 98)]},
        "gelu": {0.004: [(90, 80), (91, 82)], 0.001: [(95, 70), (95, 71)], 0.01: ["diverged", (99, 99)]},
        "tie": {0.004: [(90, 80), (90, 80)], 0.001: [(90, 70), (90, 70)], 0.01: [None, None]},
    }
    runs, meta = rates_grid(tmp_path, figures)
    best = statistics.compare(runs, meta)
    assert best["lr"].tolist() == [0.004, 0.001, 0.004] and best["mean"].tolist() == [80.5, 70.5, 80.0]
    assert best["rates"].tolist() == [3, 3, 2]
    notes = best.set_index("variant")["note"]
    assert "0.001 is the lowest of its set: try beyond" in notes["gelu"] and "lowest" not in notes["attention"]
    assert "2 runs of its set of learning rates have no result yet" in notes["tie"]
    text = str(tables.render(best, meta))
    assert "| lr |" in text and "best learning rate on validation data" in text
    assert "Unequal effort, learning rates tried: the base 3, tie 2." in text
    assert "gelu seed 0 at 0.01: diverged" in text  # a diverged run stays, and is said


def test_before_a_run_has_finished_the_rate_is_the_recipes(tmp_path):
    runs, meta = rates_grid(tmp_path, {"attention": {0.004: [None], 0.001: [None]}})
    assert statistics.compare(runs, meta)["lr"].tolist() == [0.004]


# --- A/A, and before a launch


def test_an_aa_grid_is_paired_as_its_manifest_says(tmp_path):
    path = write_grid(tmp_path, {"attention": ([90.0, 90.3, 90.1], 1), "again": ([90.2, 89.9, 90.1], 1)})
    manifest = json.loads(path.read_text()) | {"aa": True}
    for number, entry in enumerate(manifest["runs"][3:]):
        entry |= {"seed": 3 + number, "pair": number}
    path.write_text(json.dumps(manifest))
    runs, meta = frame.load(tmp_path, "ffnification")
    row = statistics.compare(runs, meta).set_index("variant").loc["again"]
    reference = stats.ttest_rel([90.2, 89.9, 90.1], [90.0, 90.3, 90.1])
    assert (row["pairs"], row["p"]) == (3, pytest.approx(reference.pvalue))


def test_what_seeds_can_see_before_a_launch(tmp_path):
    (line,) = power.visible_effect(tmp_path, "ffnification", "digits", 3, 8)
    assert "unknown: no finished runs on digits" in line
    assert "One seed shows no spread" in power.visible_effect(tmp_path, "ffnification", "digits", 1, 8)[0]
    base = np.array([90.0, 90.5, 89.5])
    for grid, noise in (("ffnification", 1.0), ("kernel_size", 0.1)):
        shown = {"attention": (list(base), 1), "gelu": (list(base + noise * np.array([-1, 0, 1])), 1)}
        write_grid(tmp_path, shown, grid=grid)
    (line,) = power.visible_effect(tmp_path, "kernel_size", "digits+recipe.epochs=9", 5, 4)
    visible = intervals.smallest_visible_effect(0.1, 5), intervals.smallest_visible_effect(0.1, 5, alpha=0.05 / 4)
    assert f"true difference of {visible[0]:.2g} points" in line and f"{visible[1]:.2g} the largest of 4" in line
    assert "in kernel_size on digits" in line and "noise over seeds alone" in line
    assert "in ffnification on digits" in power.visible_effect(tmp_path, "other", "digits", 5, 4)[0]
    assert "unknown" in power.visible_effect(tmp_path, "other", "fashion-mnist", 5, 4)[0]
    (tmp_path / "grids" / "ffnification@digits.json").write_text('{"schema": 9}')
    assert "in kernel_size on digits" in power.visible_effect(tmp_path, "other", "digits", 5, 4)[0]
