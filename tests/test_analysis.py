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
from grids import LADDER, key, rewrite, write_grid
from rich.console import Console
from scipy import stats

from analysis import frame, intervals, plots, statistics, tables


@pytest.fixture
def runs(tmp_path):
    write_grid(tmp_path)
    return tmp_path


# --- frame


def test_one_row_per_run_in_declared_order(runs):
    loaded, meta = frame.load(runs, "ffnification", "digits")
    assert (meta.grid, meta.data, meta.base, meta.seeds) == ("ffnification", "digits", "attention", (0, 1, 2))
    assert list(loaded.columns) == list(frame.columns("top1", ["top5"]))
    assert list(dict.fromkeys(loaded["variant"])) == list(LADDER)
    first = loaded.iloc[0]
    assert first["base"] and first["state"] == "done" and first["top1_raw"] == first["top1"] - 1
    assert (first["macs"], first["epochs"], first["weights"], first["images"]) == (4_020_000, 3, "ema", 360)
    failed = loaded[loaded["state"] == "failed"].iloc[0]
    assert (failed["variant"], failed["seed"], failed["error"]) == ("pooling", 1, "loss is not finite")
    assert math.isnan(failed["top1"]) and failed["epochs"] == 2
    assert (loaded["note"] == "").all()


def test_no_such_grid_is_one_line_that_lists_the_others(runs):
    write_grid(runs, grid="kernel_size", data="fashion-mnist")
    with pytest.raises(ValueError, match=r"no grid ladder .*: there are ffnification@digits, ker") as error:
        frame.load(runs, "ladder")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no grid kernel_size on digits"):
        frame.load(runs, "kernel_size", "digits")
    with pytest.raises(ValueError, match="no grid was launched there yet"):
        frame.load(runs / "nowhere", "ffnification")
    write_grid(runs, grid="kernel_size")
    with pytest.raises(ValueError, match=r"kernel_size ran on digits, fashion-mnist: name one of them \(--data\)"):
        frame.load(runs, "kernel_size")
    assert frame.grids(runs, "kernel_size") == [("kernel_size", "digits"), ("kernel_size", "fashion-mnist")]


def live(state, when):
    return json.dumps({"state": state, "epoch": 3, "time": when, "host": "another"})


UNFINISHED = [  # result.json (None: none), progress.json (None: none), and the state to expect
    ('{"state": "done"', live("running", time.time()), "running"),
    (None, live("running", time.time()), "running"),
    (None, live("running", 1000), "interrupted"),
    (None, live("interrupted", 1000), "interrupted"),
    (None, "{", "interrupted"),
    (None, None, "new"),
    ("[1, 2]", None, "interrupted"),
    ('{"state": "odd"}', None, "interrupted"),
    ('{"state": "done"}', None, "done"),
]


def test_what_cannot_be_read_keeps_its_row(tmp_path):
    write_grid(tmp_path, {"attention": ([90.0] * (len(UNFINISHED) + 1), 100)})
    for seed, (result, progress, _) in enumerate(UNFINISHED):
        folder = tmp_path / key("attention", seed)
        (folder / "result.json").write_text(result) if result else (folder / "result.json").unlink()
        if progress:
            (folder / "progress.json").write_text(progress)
    loaded, meta = frame.load(tmp_path, "ffnification")
    *broken, fine = loaded.to_dict("records")
    for row, (_, _, state) in zip(broken, UNFINISHED, strict=True):
        assert row["state"] == state and math.isnan(row["top1"])
    assert fine["top1"] == 90
    assert "not started: 1 of 10 runs" in "\n".join(meta.left_out)
    table = statistics.compare(loaded, meta)
    assert (table["n"].item(), table["missing"].item()) == (1, 9)


def test_broken_manifests_are_named(runs):
    (runs / "grids" / "torn@digits.json").write_text('{"schema": 2, "gri')
    (runs / "grids" / "earlier@digits.json").write_text('{"schema": 1, "runs": []}')
    for grid in ("torn", "earlier"):
        with pytest.raises(ValueError, match=f"{grid}@digits.json is half-written, or not of schema 2"):
            frame.load(runs, grid)


def test_curves_forgive_a_torn_line(runs):
    loaded = frame.load(runs, "ffnification")[0].head(2)
    first, second = loaded["hash"]
    with open(runs / first / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "train_loss": 0.5}\n{"epoch": 4, "train')
    (runs / second / "metrics.jsonl").unlink()
    rows = frame.curves(loaded)
    assert list(rows["hash"]) == [first] * 3 and rows["train_loss"][2] == 0.5
    assert list(frame.curves(loaded.head(0)).columns) == ["hash", "epoch"]


def test_a_table_that_mixes_threads_or_code_says_so(runs):
    def noted():
        loaded, meta = frame.load(runs, "ffnification")
        return str(tables.render(statistics.compare(loaded, meta), meta))

    for folder in runs.glob("?" * 16):
        rewrite(folder / "result.json", threads=1)
    assert "Mixed" not in noted()
    rewrite(runs / key("gelu", 0) / "result.json", threads=4, code={"mixer.py": "abc"})
    assert "Mixed: its runs were made with different numbers of threads" in noted() and "4 (1 run)" in noted()
    other = {"mixer.py": "def", "layers.py": "ghi"}
    rewrite(runs / key("gelu", 1) / "result.json", code=other, code_changed=["mixer.py"])
    assert "different versions of mixer.py, so" in noted()
    assert "gelu seed 1: the code changed while it was trained: mixer.py" in noted()


def test_analysis_loads_neither_torch_nor_unasked_matplotlib():
    code = "import sys; from analysis import frame, statistics, tables; print(*sys.modules)"
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "seaborn"} & set(run.stdout.split())


# --- statistics


def compared(root):
    loaded, meta = frame.load(root, "ffnification")
    return statistics.compare(loaded, meta), meta


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_paired_equals_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(96, 1, (20, n)), rng.normal(96, 1, (20, n))
    ours, theirs = intervals.paired(a, b), stats.ttest_rel(a, b, axis=-1)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(ours.p, theirs.pvalue, rtol=1e-9)
    np.testing.assert_allclose(ours.low, low, rtol=1e-9)
    np.testing.assert_allclose(ours.high, high, rtol=1e-9)


def test_compare_equals_scipy_row_by_row(runs):
    table = compared(runs)[0].set_index("variant")
    base = LADDER["attention"][0]
    for variant in ("gelu", "static_keys", "identity"):
        reference = stats.ttest_rel(LADDER[variant][0], base)
        row, (low, high) = table.loc[variant], reference.confidence_interval(0.95)
        np.testing.assert_allclose([row["p"], row["low"], row["high"]], [reference.pvalue, low, high])
        np.testing.assert_allclose(row["mean"], np.mean(LADDER[variant][0]))
        np.testing.assert_allclose(row["sd"], np.std(LADDER[variant][0], ddof=1))
    assert list(table.index) == list(LADDER)
    assert table["base"].sum() == 1


def test_missing_seeds_drop_out_of_pairs_and_are_counted(runs):
    row = compared(runs)[0].set_index("variant").loc["pooling"]
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
            np.testing.assert_allclose(intervals.holm(p), naive_holm(list(p)))
    np.testing.assert_allclose(intervals.holm([0.01, np.nan, 0.04]), [0.03, np.nan, 0.08])


def test_failed_variants_count_as_declared_comparisons(runs, tmp_path):
    some = {name: LADDER[name] for name in ("attention", "gelu")}
    write_grid(tmp_path / "more", some | {"broken": (["died"] * 3, 1)})
    table = compared(tmp_path / "more")[0].set_index("variant")
    assert table.loc["gelu", "p_holm"] == pytest.approx(min(1, 2 * table.loc["gelu", "p"]))
    assert math.isnan(table.loc["broken", "p_holm"]) and table.loc["broken", "verdict"] == "too few pairs"


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_a_known_effect(n):
    rng = np.random.default_rng(100 + n)
    shared = rng.normal(96, 0.5, (4000, n))  # what seeds share: pairing takes it out
    base, variant = shared + rng.normal(0, 0.1, (4000, n)), shared + 0.3 + rng.normal(0, 0.1, (4000, n))
    result = intervals.paired(variant, base)
    assert 0.93 <= np.mean((result.low <= 0.3) & (result.high >= 0.3)) <= 0.97


@pytest.mark.parametrize("n", [3, 5])
def test_a_against_a_rarely_differs(n):
    """False positives: at most 5 % a comparison, though of a family of 12 one is wrong in more than 20 %."""
    rng = np.random.default_rng(200 + n)
    base, variants = rng.normal(96, 0.5, (4000, 1, n)), rng.normal(96, 0.5, (4000, 12, n))
    p = intervals.paired(variants, np.broadcast_to(base, variants.shape)).p
    assert np.mean(p[:, 0] < 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)
    assert np.mean((p < 0.05).any(1)) > 0.2  # why Holm's correction is there


def test_no_spread_claims_nothing(tmp_path):
    """0.3 at every seed (up to rounding) is no proof of 0.3: a finite test set repeats itself."""
    once = [96.1, 96.4, 95.8]
    ladder = {"attention": (once, 100), "again": (once, 100), "up": ([96.4, 96.7, 96.1], 100)}
    write_grid(tmp_path, ladder)
    table = compared(tmp_path)[0].set_index("variant")
    for variant, difference in (("again", 0.0), ("up", 0.3)):
        row = table.loc[variant]
        assert row["difference"] == pytest.approx(difference)
        assert row[["low", "high", "p", "p_holm"]].isna().all()
        assert row["verdict"] == "no spread" and "can't be" in row["note"]


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_smallest_visible_effect_is_found_at_its_power(n):
    effect = intervals.smallest_visible_effect(0.4, n)
    rng = np.random.default_rng(n)
    draws = rng.normal(effect, 0.4, (40_000, n))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=-1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


# --- tables and plots


def shown(table, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_fits_a_terminal_and_says_what_it_rests_on(runs):
    text = shown(tables.render(*compared(runs)))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "ffnification on digits: Which slot buys accuracy?",
        "Base attention, data digits (360 test samples, one is 0.28 points), 3 seeds (0, 1, 2), ema weights.",
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
    markdown = str(tables.render(comparison, meta))
    rows = [line.split("|") for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(LADDER) and {len(row) for row in rows} == {9}
    assert "+1.11 [+0.43, +1.80]" in markdown and "no winner is named" in markdown
    latex = tables.render(comparison, meta).latex().splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrr}" and latex[1] == r"\toprule" and latex[-2] == r"\bottomrule"
    (row,) = (line for line in latex if line.startswith(r"parallel\_branch"))
    assert row.count("&") == 6 and row.endswith(r"\\") and r"97.22 $\pm$ 0.56 & +1.11 [+0.43, +1.80]" in row
    tables.to_csv(comparison, meta, tmp_path / "table.csv")
    back = pd.read_csv(tmp_path / "table.csv")
    np.testing.assert_array_equal(back["difference"], comparison["difference"])
    assert (back["weights"] == "ema").all()


def test_the_picture_labels_every_variant_without_overlap(runs):
    comparison, meta = compared(runs)
    axes = plots.accuracy_vs(comparison, meta)
    figure = axes.get_figure()
    figure.canvas.draw()
    labels = [text for text in axes.texts if text.get_text() in LADDER]
    assert {label.get_text() for label in labels} == set(LADDER)
    boxes = [label.get_window_extent() for label in labels]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert "(%)" in axes.get_ylabel() and "multiply-adds" in axes.get_xlabel()
    png, pdf = runs / "pictures" / "accuracy.png", runs / "accuracy.pdf"
    plots.save(axes, png, pdf)
    assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
    plots.plt.close(figure)


def test_variants_of_equal_cost_are_shown_in_the_order_of_their_accuracy(runs):
    comparison, meta = compared(runs)
    assert "multiply-adds per sample" in plots.picture(comparison, meta).get_xlabel()
    axes = plots.picture(comparison.assign(macs=[4.02e6 * (1 + 0.001 * i) for i in range(len(comparison))]), meta)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    means = comparison.set_index("variant")["mean"]
    assert set(names) == set(LADDER) and list(means[names]) == sorted(means)
    assert axes.get_xlabel().endswith("at 4.04 M multiply-adds")  # the middle of nine
    plots.plt.close("all")


@pytest.mark.parametrize("ladder", [{"attention": ([None, None], 1)}, {"gelu": ([95.0], 0)}])
def test_nothing_to_show_is_shown_as_nothing(tmp_path, ladder):
    write_grid(tmp_path, ladder)
    comparison, meta = compared(tmp_path)
    assert shown(tables.render(comparison, meta)) and str(tables.render(comparison, meta))
    axes = plots.accuracy_vs(comparison, meta)
    plots.save(axes, tmp_path / "empty.png")
    plots.save(plots.accuracy_by_variant(comparison, meta), tmp_path / "empty.png")
    plots.plt.close("all")


def test_of_hundreds_of_variants_the_front_is_named(runs):
    comparison, meta = compared(runs)
    (head,) = comparison[comparison["base"]].to_dict("records")
    others = [{**head, "variant": f"v{i}", "base": False, "mean": 50 + i * 7 % 300, "macs": i} for i in range(1, 301)]
    many = pd.concat([comparison, pd.DataFrame(others).astype(comparison.dtypes)], ignore_index=True)
    assert len(tables.render(many, meta).cells) == len(many)
    axes = plots.accuracy_vs(many, meta)
    best = many.iloc[plots.accuracy.front(many["macs"].to_numpy(float), many["mean"].to_numpy())]
    assert {text.get_text() for text in axes.texts} == {"attention", *best["variant"]}
    plots.plt.close("all")
