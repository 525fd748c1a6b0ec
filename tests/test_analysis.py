"""`analysis` against independent references: scipy, naive rewrites, simulated data with a known effect."""

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from analysis import frame, plots, statistics, tables

# variant: (accuracy at each seed, multiply-adds); a text is a run that failed with it, None one not started
LADDER = {
    "attention": ([96.11, 96.39, 95.83], 4_020_000),
    "gelu": ([96.18, 96.37, 95.98], 4_020_000),
    "static_keys": ([95.28, 95.83, 95.00], 3_600_000),
    "static_values": ([95.56, 95.55, 95.55], 3_150_000),
    "depthwise": ([97.22, 97.51, 96.93], 2_890_000),
    "large_kernel": ([97.51, 97.22, 96.94], 3_070_000),
    "parallel_branch": ([97.22, 97.78, 96.67], 3_070_000),
    "identity": ([88.61, 89.17, 88.06], 2_100_000),
    "pooling": ([93.06, "loss is not finite", 92.50], 2_100_000),
}


def write_grid(root, ladder=LADDER, grid="ffnification", data="digits", base="attention", schema=1):
    """A grid as the launcher leaves it: manifest, configs, metrics and results."""
    runs = []
    for variant, (results, macs) in ladder.items():
        for seed, top1 in enumerate(results):
            key = f"{grid}{data}{variant}{seed}"
            on = None if variant == base else base
            runs.append({"hash": key, "variant": variant, "seed": seed, "on": on, "changes": {}})
            if top1 is not None:
                write_run(root / key, top1, macs, schema)
    manifest = {"schema": 1, "grid": grid, "data": data, "question": "Which slot buys accuracy?", "base": base}
    path = root / "grids" / f"{grid}@{data}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest | {"metric": "top1", "runs": runs}))
    return path


def write_run(folder, top1, macs, schema=1):
    folder.mkdir(parents=True)
    model = {"stages": [{"depth": 1, "token_mixer": {"name": "metamixer"}}, {"depth": 2}]}
    (folder / "config.json").write_text(json.dumps({"schema": schema, "config": {"model": model, "seed": 0}}))
    rows = [{"epoch": epoch, "step": 11 * epoch, "lr": 1e-3, "train_loss": 2 / epoch} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if isinstance(top1, str):
        result = {"state": "failed", "epoch": 2, "error": top1}
    else:
        both = {"top1": top1, "top5": 99.9, "loss": 0.12, "images": 360}
        result = {"state": "done", "epochs": 3, "evaluated": "test", "weights": "ema", **both}
        result |= {"ema": both, "raw": both | {"top1": top1 - 1}, "parameters": 284_810}
        result |= {"macs": macs, "seconds": 30.5, "images_per_second": 900.0}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def runs(tmp_path):
    write_grid(tmp_path)
    return tmp_path


# --- frame


def test_a_row_a_run_in_declared_order(runs):
    loaded = frame.load(runs, "ffnification", "digits")
    assert list(loaded.columns) == list(frame.COLUMNS)
    assert list(dict.fromkeys(loaded["variant"])) == list(LADDER)
    first = loaded.iloc[0]
    assert first["base"] and first["state"] == "done" and first["top1_raw"] == first["top1"] - 1
    assert (first["macs"], first["epochs"], first["weights"], first["images"]) == (4_020_000, 3, "ema", 360)
    failed = loaded[loaded["state"] == "failed"].iloc[0]
    assert (failed["variant"], failed["seed"], failed["error"]) == ("pooling", 1, "loss is not finite")
    assert math.isnan(failed["top1"]) and failed["epochs"] == 2
    assert (loaded["note"] == "").all()


def test_config_on_request(runs):
    loaded = frame.load(runs, with_config=True)
    assert loaded["config.model.stages.0.token_mixer.name"].iloc[0] == "metamixer"
    assert (loaded["config.model.stages.1.depth"] == 2).all()


def test_configs_are_read_only_on_request(runs):
    """With thousands of runs, parsing them all would take most of the time."""
    (runs / "ffnificationdigitsgelu0" / "config.json").write_text('{ "schema": 1, "config": {"mod')
    assert (frame.load(runs)["note"] == "").all()
    noted = frame.load(runs, with_config=True).set_index("hash").loc["ffnificationdigitsgelu0"]
    assert noted["note"] == "config.json is half-written or no JSON" and noted["top1"] == 96.18


def test_no_such_grid_is_one_line_that_lists_the_others(runs):
    write_grid(runs, grid="kernel_size", data="fashion-mnist")
    with pytest.raises(ValueError, match=r"no grid ladder .*: there are ffnification@digits, ker") as error:
        frame.load(runs, "ladder")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no grid kernel_size on digits"):
        frame.load(runs, "kernel_size", "digits")
    with pytest.raises(ValueError, match="no grid was launched there yet"):
        frame.load(runs / "nowhere", "ffnification")
    assert len(frame.load(runs)) == 2 * len(frame.load(runs, "kernel_size"))


def live(state, when):
    return json.dumps({"state": state, "epoch": 3, "time": when})


UNFINISHED = [  # result.json (None: none), another file, its content; the state and a part of the note to expect
    ('{"state": "done"', "progress", live("running", time.time()), "running", "result.json is half-written"),
    (None, "progress", live("running", time.time()), "running", ""),
    (None, "progress", live("running", 1000), "running", "no sign of life for"),
    (None, "progress", live("interrupted", 1000), "interrupted", ""),
    (None, "progress", "{", "interrupted", "progress.json is half-written"),
    (None, "config", '{"schema": 1}', "new", ""),
    ("[1, 2]", "config", '{"schema": 1}', "interrupted", "result.json holds no JSON object"),
    ('{"state": "odd"}', "config", '{"schema": 1}', "interrupted", "result.json has the state 'odd'"),
    ('{"state": "done", "top1": "1"}', "config", '{"schema": 1}', "done", "result.json has no top1"),
    ('{"state": "done", "top1": 90}', "config", '{"schema": 9}', "done", "its figures"),
    ('{"state": "done", "schema": 3}', "config", '{"schema": 1}', "done", "result.json has schema 3"),
]


def test_what_cannot_be_read_keeps_its_row_and_says_so(tmp_path):
    write_grid(tmp_path, {"attention": ([90.0] * (len(UNFINISHED) + 1), 100)})
    for seed, (result, name, content, _, _) in enumerate(UNFINISHED):
        folder = tmp_path / f"ffnificationdigitsattention{seed}"
        (folder / "result.json").write_text(result) if result else (folder / "result.json").unlink()
        (folder / f"{name}.json").write_text(content)
    loaded = frame.load(tmp_path)
    *broken, fine = loaded.to_dict("records")
    for row, (_, _, _, state, note) in zip(broken, UNFINISHED, strict=True):
        assert row["state"] == state and math.isnan(row["top1"])
        assert note in row["note"] if note else row["note"] == ""
    assert fine["top1"] == 90
    left_out = "\n".join(frame.describe(loaded).left_out)
    assert "not started: 1 of 12 runs (attention seed 5)" in left_out
    assert "attention seed 9: config.json has schema 2" in left_out
    table = statistics.compare(loaded)
    assert (table["n"].item(), table["missing"].item()) == (1, 11)


def test_broken_manifests_are_named(runs):
    (runs / "grids" / "torn@digits.json").write_text('{"schema": 1, "gri')
    (runs / "grids" / "later@digits.json").write_text('{"schema": 7, "runs": []}')
    (runs / "grids" / "bare@digits.json").write_text('{"schema": 1}')
    manifest = json.loads((runs / "grids" / "ffnification@digits.json").read_text())
    manifest["runs"] += [{"hash": "x"}, "y"]
    (runs / "grids" / "ffnification@digits.json").write_text(json.dumps(manifest))
    loaded = frame.load(runs)
    assert len(loaded) == 27
    said = " ".join(loaded.attrs["left_out"])
    for part in ("torn@digits.json is half-", "later@digits.json has schema 7", "bare@digits.json has no list"):
        assert part in said
    for part in ("entry 27", "entry 28"):
        assert part in said
    meta = frame.describe(frame.load(runs, "torn", missing="empty"))
    assert meta.grid == "torn" and "whole grid is left out" in meta.left_out[0]


def test_curves_forgive_a_torn_line(runs):
    keys = list(frame.load(runs)["hash"][:2])
    with open(runs / keys[0] / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_loss": 0.5}\n{"epoch": 4, "train')
    rows = frame.curves(runs, [*keys, "nowhere"])
    assert list(rows["hash"]) == [keys[0]] * 3 + [keys[1]] * 3 and rows["train_loss"][2] == 0.5
    assert len(rows.attrs["left_out"]) == 2 and "line 5" in rows.attrs["left_out"][0]
    assert list(frame.curves(runs, []).columns) == ["hash", "epoch"]


def test_curves_leave_out_what_the_table_leaves_out(runs):
    keys = list(frame.load(runs)["hash"][:2])
    (runs / keys[0] / "config.json").write_text('{"schema": 9, "config": {}}')
    rows = frame.curves(runs, keys)
    assert set(rows["hash"]) == {keys[1]}
    assert rows.attrs["left_out"] == [f"{keys[0]}: config.json has schema 2, this code reads 1"]


def test_analysis_loads_neither_torch_nor_unasked_matplotlib():
    code = "import sys; from analysis import frame, statistics, tables; print(*sys.modules)"
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "metamixer", "seaborn"} & set(run.stdout.split())


# --- statistics


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_paired_equals_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(96, 1, (20, n)), rng.normal(96, 1, (20, n))
    ours, theirs = statistics.paired(a, b), stats.ttest_rel(a, b, axis=-1)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(ours.p, theirs.pvalue, rtol=1e-9)
    np.testing.assert_allclose(ours.low, low, rtol=1e-9)
    np.testing.assert_allclose(ours.high, high, rtol=1e-9)


def test_compare_equals_scipy_row_by_row(runs):
    table = statistics.compare(frame.load(runs)).set_index("variant")
    base = LADDER["attention"][0]
    for variant in ("gelu", "static_keys", "identity"):
        reference = stats.ttest_rel(LADDER[variant][0], base)
        row, (low, high) = table.loc[variant], reference.confidence_interval(0.95)
        np.testing.assert_allclose([row["p"], row["low"], row["high"]], [reference.pvalue, low, high])
        np.testing.assert_allclose(row["mean"], np.mean(LADDER[variant][0]))
        np.testing.assert_allclose(row["sd"], np.std(LADDER[variant][0], ddof=1))
    assert list(table.index) == list(LADDER)
    assert table["base"].sum() == 1 and not table.loc["attention", "inside_noise"]


def test_missing_seeds_drop_out_of_pairs_and_are_counted(runs):
    row = statistics.compare(frame.load(runs)).set_index("variant").loc["pooling"]
    assert (row["n"], row["failed"], row["missing"], row["pairs"], row["unpaired"]) == (2, 1, 0, 2, 1)
    reference = stats.ttest_rel([93.06, 92.50], [96.11, 95.83])
    np.testing.assert_allclose([row["difference"], row["p"]], [-3.19, reference.pvalue])
    assert "unpaired results dropped: 1" in row["note"]


def naive_holm(p):
    """By the definition: p_(k) · (m - k + 1), never less than an earlier one, at most 1."""
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, floor = [0.0] * len(p), 0.0
    for k, i in enumerate(ranked):
        floor = max(floor, (len(p) - k) * p[i])
        adjusted[i] = min(1.0, floor)
    return adjusted


def test_holm_equals_the_naive_reference():
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 20):
        for p in (rng.random(m), rng.random(m) ** 6):
            np.testing.assert_allclose(statistics.holm(p), naive_holm(list(p)))
    np.testing.assert_allclose(statistics.holm([0.01, np.nan, 0.04]), [0.03, np.nan, 0.08])
    assert statistics.holm([0.01], declared=4).item() == pytest.approx(0.04)


def test_failed_variants_count_as_declared_comparisons(runs, tmp_path):
    some = {name: LADDER[name] for name in ("attention", "gelu")}
    write_grid(tmp_path / "more", some | {"broken": (["died"] * 3, 1)})
    table = statistics.compare(frame.load(tmp_path / "more")).set_index("variant")
    assert table.loc["gelu", "p_holm"] == pytest.approx(min(1, 2 * table.loc["gelu", "p"]))
    assert math.isnan(table.loc["broken", "p_holm"]) and table.loc["broken", "verdict"] == "too few pairs"


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_a_known_effect(n):
    rng = np.random.default_rng(100 + n)
    shared = rng.normal(96, 0.5, (4000, n))  # what seeds share: pairing takes it out
    base, variant = shared + rng.normal(0, 0.1, (4000, n)), shared + 0.3 + rng.normal(0, 0.1, (4000, n))
    result = statistics.paired(variant, base)
    assert 0.93 <= np.mean((result.low <= 0.3) & (result.high >= 0.3)) <= 0.97


@pytest.mark.parametrize("n", [3, 5])
def test_a_against_a_rarely_differs(n):
    """False positives: at most 5 % a comparison, and after Holm at most 5 % a family of 12."""
    rng = np.random.default_rng(200 + n)
    base, variants = rng.normal(96, 0.5, (4000, 1, n)), rng.normal(96, 0.5, (4000, 12, n))
    p = statistics.paired(variants, np.broadcast_to(base, variants.shape)).p
    error = 2 * math.sqrt(0.05 * 0.95 / 4000)
    assert np.mean(p[:, 0] < 0.05) <= 0.05 + error
    assert np.mean([(statistics.holm(row) < 0.05).any() for row in p]) <= 0.05 + error
    assert np.mean((p < 0.05).any(1)) > 0.2  # why the correction is there


def test_no_spread_claims_nothing(tmp_path):
    """0.3 at every seed (up to rounding) is no proof of 0.3: a finite test set repeats itself."""
    once = [96.1, 96.4, 95.8]
    ladder = {"attention": (once, 100), "again": (once, 100), "up": ([96.4, 96.7, 96.1], 100)}
    write_grid(tmp_path, ladder)
    runs = frame.load(tmp_path)
    table = statistics.compare(runs).set_index("variant")
    for variant, difference in (("again", 0.0), ("up", 0.3)):
        row = table.loc[variant]
        assert row["difference"] == pytest.approx(difference)
        assert row[["low", "high", "p", "p_holm"]].isna().all()
        assert row["inside_noise"] and row["verdict"] == "no spread" and "can't be" in row["note"]
    text = tables.conclusion(table.reset_index(), frame.describe(runs))
    assert "no winner" in text and "without an interval: again +0.00 points" in text


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_smallest_visible_effect_is_found_at_its_power(n):
    effect = statistics.smallest_visible_effect(0.4, n)
    rng = np.random.default_rng(n)
    draws = rng.normal(effect, 0.4, (40_000, n))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=-1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_smallest_visible_effect_refuses_nonsense():
    assert statistics.smallest_visible_effect(0.0, 3) == 0
    for arguments in ((0.4, 1), (-1, 3), (math.nan, 3), (0.4, 3, 1.2)):
        with pytest.raises(ValueError):
            statistics.smallest_visible_effect(*arguments)


def test_compare_refuses_what_is_not_one_grid(runs):
    write_grid(runs, data="fashion-mnist")
    with pytest.raises(ValueError, match="ffnification@digits, ffnification@fashion-mnist"):
        statistics.compare(frame.load(runs))
    loaded = frame.load(runs, data="digits")
    with pytest.raises(ValueError, match="no metric 'accuracy'; the runs have top1"):
        statistics.compare(loaded, "accuracy")
    with pytest.raises(ValueError, match="has seed 0 twice"):
        statistics.compare(pd.concat([loaded, loaded.iloc[:1]]))


# --- tables and plots


def shown(table, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def compared(root):
    loaded = frame.load(root, missing="empty")
    return statistics.compare(loaded), frame.describe(loaded)


def test_the_table_fits_a_terminal_and_says_what_it_rests_on(runs):
    text = shown(tables.render(*compared(runs)))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "ffnification on digits: Which slot buys accuracy?",
        "Base attention, data digits (360 test images, one is 0.28 points), 3 seeds (0, 1, 2), ema weights.",
        "inside noise",
        "no winner is named",
        "2/3, 1",
        "Left out, failed: 1 of 27 runs (pooling seed 1: loss is not finite).",
    ):
        assert part in " ".join(text.split()), text
    parallel = next(line for line in text.splitlines() if line.startswith("parallel_branch"))
    for part in ("285 k", "3.07 M", "97.22 ± 0.56", "+1.11 [+0.43, +1.80]", "hint", "3/3"):
        assert part in parallel


def test_markdown_and_csv_carry_the_same(runs, tmp_path):
    comparison, meta = compared(runs)
    markdown = tables.to_markdown(comparison, meta)
    rows = [line.split("|") for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(LADDER) and {len(row) for row in rows} == {9}
    assert "+1.11 [+0.43, +1.80]" in markdown and "no winner is named" in markdown
    tables.to_csv(comparison, meta, tmp_path / "table.csv")
    back = pd.read_csv(tmp_path / "table.csv")
    np.testing.assert_array_equal(back["difference"], comparison["difference"])
    assert (back["weights"] == "ema").all()


def test_counts_have_three_figures():
    numbers = [None, 0, 999, 9_996, 999_600, 13_660_152, 2_986e6]
    wanted = ["–", "0", "999", "10.0 k", "1.00 M", "13.7 M", "2.99 G"]
    assert [tables.count(number) for number in numbers] == wanted


def test_another_metric_is_not_called_top1(runs):
    loaded = frame.load(runs)
    text = tables.to_markdown(statistics.compare(loaded, "loss"), frame.describe(loaded))
    assert "test loss ± sd" in text and "0.1200 ± 0.0000" in text and "top-1" not in text and "points" not in text


def test_the_conclusion_names_no_winner_inside_the_noise(runs):
    text = tables.conclusion(*compared(runs))
    assert "attention (the base) reaches 96.11 % top-1 at 4.02 M multiply-adds" in text
    clear, _, rest = text.partition("Hints")
    assert "identity −7.50 points" in clear and "gelu" not in clear and "parallel_branch" not in clear
    assert "Inside the noise: gelu +0.07 points" in rest and "parallel_branch +1.11 points" in rest


def test_the_picture_labels_every_variant_without_overlap(runs):
    comparison, meta = compared(runs)
    axes = plots.accuracy_vs_macs(comparison, meta)
    figure = axes.get_figure()
    figure.canvas.draw()
    labels = [text for text in axes.texts if text.get_text() in LADDER]
    assert {label.get_text() for label in labels} == set(LADDER)
    boxes = [label.get_window_extent() for label in labels]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert "(%)" in axes.get_ylabel() and "(M)" in axes.get_xlabel()
    assert "inside the noise" in axes.get_title(loc="left")
    path = plots.save(axes, runs / "pictures" / "accuracy.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    plots.plt.close(figure)


def test_variants_of_equal_cost_are_shown_in_the_order_of_their_accuracy(runs):
    comparison, meta = compared(runs)
    assert "multiply-adds per image" in plots.picture(comparison, meta).get_xlabel()
    axes = plots.picture(comparison.assign(macs=[4.02e6 * (1 + 0.001 * i) for i in range(len(comparison))]), meta)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    means = comparison.set_index("variant")["mean"]
    assert set(names) == set(LADDER) and list(means[names]) == sorted(means)
    assert axes.get_xlabel().endswith("at 4.04 M multiply-adds")  # the middle of nine
    plots.plt.close("all")


@pytest.mark.parametrize("ladder", [None, {}, {"attention": ([None, None], 1)}, {"gelu": ([95.0], 0)}])
def test_nothing_to_show_is_shown_as_nothing(tmp_path, ladder):
    if ladder is not None:
        write_grid(tmp_path, ladder)
    comparison, meta = compared(tmp_path)
    assert shown(tables.render(comparison, meta)) and tables.to_markdown(comparison, meta)
    assert tables.conclusion(comparison, meta).startswith("No conclusion")
    axes = plots.accuracy_vs_macs(comparison, meta)
    plots.save(axes, tmp_path / "empty.png")
    plots.save(plots.accuracy_by_variant(comparison, meta), tmp_path / "empty.png")
    plots.plt.close("all")


def test_of_thousands_of_variants_the_best_and_the_worst_are_shown(runs):
    """The table and the picture say how many they leave out; the CSV has all."""
    comparison, meta = compared(runs)
    (head,) = comparison[comparison["base"]].to_dict("records")
    others = [
        {**head, "variant": f"v{i}", "base": False, "mean": 50 + i * 7 % 300, "verdict": "hint"} for i in range(300)
    ]
    many = pd.concat([comparison, pd.DataFrame(others).astype(comparison.dtypes)], ignore_index=True)
    shown = tables.extremes(many)
    means = many["mean"].dropna().sort_values(ascending=False)
    assert shown["mean"].is_monotonic_decreasing and shown["base"].sum() == 1
    assert set(shown["mean"].head(30)) == set(means.head(30)) and set(shown["mean"].tail(30)) == set(means.tail(30))
    assert tables.extremes(comparison) is comparison
    text = tables.to_markdown(many, meta)
    assert f"{len(many) - len(shown)} of {len(many)} variants" in text
    assert sum(f"| v{i} |" in text for i in range(300)) == len(shown) - 1
    assert len(tables.to_csv(many, meta).splitlines()) == len(many) + 1
