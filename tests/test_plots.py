"""Pictures hold what their data hold: against naive rewrites, closed forms and the numbers they were drawn from."""

import itertools
import json
import shutil

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from factorials import write_factorial
from grids import LADDER, write_grid
from small import RUN
from test_factorial import chained, noisy
from test_notebooks import write_networks

from analysis import factorial, frame, inside, ladder, plots, results, statistics
from analysis.plots import accuracy
from metamixer.config import override
from metamixer.cost import count
from metamixer.networks import Network


@pytest.fixture(autouse=True)
def closed():
    yield
    plots.plt.close("all")


def test_the_front_equals_the_naive_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost, top1 = rng.integers(5, size=8).astype(float), rng.integers(5, size=8).astype(float)
        naive = [
            i
            for i in range(8)
            if not any(
                cost[j] <= cost[i] and top1[j] >= top1[i] and (cost[j] < cost[i] or top1[j] > top1[i]) for j in range(8)
            )
        ]
        assert list(accuracy.front(cost, top1)) == naive
        assert list(accuracy.front(cost, -top1, higher_is_better=False)) == naive


def test_published_networks_have_names_that_tell_them_apart():
    from analysis.published import published

    table = published()
    names = [accuracy.published_name(row) for row in frame.each(table)]
    assert len(set(names)) == len(names) and {"ffnet_1", "ffnet_1, distilled", "ffnet_3 384 px"} <= set(names)
    for cost in ("macs", "parameters", *plots.backends(table)):
        axes = plots.published_front(table, cost)
        boxes = [label.get_window_extent() for label in axes.texts if label.get_text() in names]
        assert len(boxes) >= 8 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_waterfall_ends_where_the_last_rung_stands(tmp_path):
    order = ["attention", "gelu", "static_keys", "depthwise"]
    runs, meta = frame.load(chained(tmp_path, order), "ffnification")
    steps = ladder.steps(runs, meta)
    axes = plots.waterfall(steps, meta)
    bars = [patch for patch in axes.patches if patch.get_width() == pytest.approx(0.8)]
    rungs = bars[: len(order) - 1]
    for bar, variant in zip(rungs, order[1:], strict=True):
        end = bar.get_y() + bar.get_height()
        assert end == pytest.approx(runs[runs["variant"] == variant]["top1"].mean())
    assert {text.get_text() for text in axes.texts} >= {"+0.07", "−0.81"}
    few = plots.waterfall(ladder.steps(runs[runs["seed"] == 0], meta), meta)
    (legend,) = few.figure.legends
    assert "or not to be judged" in legend.get_texts()[-1].get_text()


def test_rows_of_variants_stand_inside_the_frame_and_noise_is_hollow(tmp_path):
    write_grid(tmp_path)
    runs, meta = frame.load(tmp_path, "ffnification")
    comparison = statistics.compare(runs, meta)
    axes = plots.accuracy_by_variant(comparison, meta)
    low, high = axes.get_ylim()
    assert low < -0.5 and high > len(LADDER) - 0.5
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    drawn = sum(len(line.get_xdata()) for line in hollow)
    assert drawn == comparison["verdict"].isin(["inside noise", "no spread", "too few pairs"]).sum()
    other = comparison[~comparison["base"]].iloc[:1]
    many = [other.assign(variant=f"v{i}", mean=other["mean"] + i / 10 - 40) for i in range(500)]
    axes = plots.accuracy_by_variant(pd.concat([comparison[comparison["base"]], *many], ignore_index=True), meta)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert set(shown) >= {"attention", "v0", "v29", "v471", "v499"} and "v250" not in shown and len(shown) <= 61
    head = " ".join(axes.get_title("left").split())
    assert "the best and the worst are shown" in head and "without a figure" not in head


def test_learning_curves_band_from_the_lowest_to_the_highest_seed(tmp_path):
    write_grid(tmp_path, {"attention": ([96.0, 97.0, 98.0], 1), "gelu": ([96.0, 97.0], 1)})
    runs, meta = frame.load(tmp_path, "ffnification")
    curves = frame.curves(runs)
    curves["val_top1"] = 50 + 10 * curves["epoch"] + curves["hash"].map(runs.set_index("hash")["seed"])
    axes = plots.learning_curves(runs, curves, meta)
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), [61, 71, 81])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 60 and band[:, 1].max() == 82
    none = plots.learning_curves(runs, curves, meta, "val_loss")
    assert "no validation loss" in none.texts[0].get_text()
    slow = runs.iloc[[0]].assign(hash="slow", lr=1e-5, fixed=False)
    both = pd.concat([curves, curves.head(3).assign(hash="slow", val_top1=0.0)])
    mixed = plots.learning_curves(pd.concat([runs.assign(lr=1e-3), slow]), both, meta)
    np.testing.assert_allclose(mixed.get_lines()[0].get_ydata(), [61, 71, 81])


def test_heat_maps_write_each_cell_and_mark_what_stands(tmp_path):
    runs, meta = frame.load(write_factorial(tmp_path, noisy(2, corner=3.0)), "slot_interactions", with_config=True)
    slots = factorial.take_apart(runs, meta)
    means = [text.get_text() for axes in plots.cell_means(slots, meta) for text in axes.texts]
    assert sorted(means) == sorted(f"{mean:.1f}" for mean in slots.cells["mean"])
    grid = plots.interactions(slots, meta)
    marked = [text.get_text() for axes in grid for text in axes.texts if text.get_text().endswith("*")]
    assert len(marked) == slots.cells["verdict"].isin(["better", "worse"]).sum() >= 1
    for axes, slot in zip(plots.main_effects(slots, meta), factorial.SLOTS, strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == slots.levels[slot]


def test_slot_costs_add_up_to_the_folded_network(tmp_path):
    write_networks(tmp_path)
    runs, meta = frame.load(tmp_path, "ffnification")
    costs = inside.slot_costs(runs)
    data = RUN.data
    whole = count(RUN.build(), (data.channels, data.image_size, data.image_size))
    by_variant = costs.groupby("variant")[["macs", "parameters"]].sum()
    assert tuple(by_variant.loc["gelu"]) == (whole.macs, whole.parameters)
    axes = plots.slot_costs(costs, meta)
    assert max(bar.get_x() + bar.get_width() for bar in axes.patches) == pytest.approx(whole.macs)
    empty = plots.slot_costs(costs.iloc[:0], meta)
    assert "no run has finished" in empty.texts[0].get_text()


def built(mixer, size=13):
    """A network of one block a stage whose token mixer is `mixer`, with nothing else that mixes but the stem."""
    changes = {"model.stages.*.token_mixer": mixer, "model.stages.*.channel_mixer": {"name": "identity"}}
    run = override(RUN, changes)
    torch.manual_seed(0)
    model = run.build(img_size=size).eval()
    return inside.Inside("it", Network("it", model, (1, size, size), run=run), True)


def conv(size):
    return {
        "query": "identity",
        "query_key": {"name": "depthwise", "kernel_size": size},
        "activation": "identity",
        "coefficient_value": {"name": "depthwise", "kernel_size": 1},
    }


def test_a_receptive_field_is_that_of_the_kernels():
    """One block of a k×k kernel behind a stem of two 3×3 at stride 1: a square of k + 4 around the centre."""
    images = torch.randn(4, 1, 13, 13)
    for size in (1, 3, 5):
        field = inside.receptive_field(built(conv(size)), images, stage=1)
        reach = (size + 4) // 2
        support = np.zeros((13, 13), bool)
        support[6 - reach : 7 + reach, 6 - reach : 7 + reach] = True
        assert ((field > 0) == support).all() and field.sum() == pytest.approx(1)


def test_extent_is_the_side_of_the_smallest_square():
    field = np.zeros((9, 9))
    field[3:6, 3:6] = 1
    assert inside.extent(field) == 3
    field[4, 4] = 1000
    assert inside.extent(field) == 1
    assert inside.extent(np.ones((9, 9)), 1.0) == 9


def test_the_network_of_a_variant_is_that_at_the_recipes_learning_rate(tmp_path, monkeypatch):
    write_networks(tmp_path)
    path = tmp_path / "grids" / "ffnification@digits.json"
    manifest = json.loads(path.read_text())
    own = [{**run, "lr": 0.004, "fixed": True} for run in manifest["runs"]]
    fast = [{**run, "hash": f"fast{run['hash']}", "lr": 0.04, "fixed": False} for run in own]
    for run in own:
        shutil.copytree(tmp_path / run["hash"], tmp_path / f"fast{run['hash']}")
        (tmp_path / f"fast{run['hash']}" / "weights.npz").touch()  # kept, where those at the recipe's rate are not
    path.write_text(json.dumps({**manifest, "runs": fast + own}))
    found, _ = inside.networks(frame.load(tmp_path, "ffnification")[0])
    assert [each.network.name for each in found] == [str(tmp_path / "gelu0"), str(tmp_path / "relu0")]
    monkeypatch.setattr(inside, "rounded_weights", lambda folder: {"of": np.array(folder.name)})
    packed = results.of_grid(tmp_path, "ffnification", "digits", ["relu"])
    assert [name for name in packed.files if name.endswith("weights.npz")] == ["relu0/weights.npz"]


def test_networks_that_can_not_be_looked_at_are_said(tmp_path):
    write_networks(tmp_path)
    (tmp_path / "relu0" / "config.json").write_text('{"schema": 9, "config": {}}')
    found, left_out = inside.networks(frame.load(tmp_path, "ffnification")[0], ["gelu", "relu", "nobody"])
    assert [(each.name, each.trained) for each in found] == [("gelu", False)]
    assert "schema 9" in left_out[0] and left_out[1] == "nobody: no such variant"
    elsewhere = override(RUN, {"data.name": "folder", "data.root": str(tmp_path / "nowhere")})
    network = Network("it", RUN.build(), (1, 12, 12), run=elsewhere)
    noise, what = inside.images([inside.Inside("it", network, False)], 8)
    assert noise.shape == (8, 1, 12, 12) and what.startswith("8 images of noise (folder")
    axes = plots.receptive_fields({}, {}, "no images")
    assert "no run" in axes[0, 0].texts[0].get_text()
