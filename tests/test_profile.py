"""Every variant on every task: levels between chance and solved, one correction over the whole table, shares, dials."""

import json

import numpy as np
import pytest
from grids import key
from matplotlib import pyplot as plt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_commands import launch

from analysis import plots, statistics, tables
from analysis.frame import load
from analysis.profile import cells, notes, profile, render
from metamixer.presets import PRESETS
from metamixer.training.folder import RunFolder
from sweeps import load_grid, make_plan
from sweeps.probe import grid_of

TASKS = {"recall": {"chance": 6.25, "solved": 90.625}, "majority": {"chance": 25.0, "solved": 92.5}}
SCORES = {
    ("recall", "attention"): (100.0, 99.8, 100.0),
    ("recall", "depthwise"): (24.1, 24.5, 23.9),
    ("recall", "pooling"): (6.2, 60.0, 6.4),
    ("majority", "attention"): (99.0, 99.5, 99.2),
    ("majority", "depthwise"): (99.1, 99.2, 99.4),
    ("majority", "pooling"): (99.6, 99.0, 99.1),
}


def write_task(root, task, scores, config=None, courses=(), grid="probes", mixers=(), **metric):
    """A grid on one task; `scores` of each variant's seeds, `courses` the validation scores of each of 3 epochs."""
    metric = {"name": "accuracy", "label": "accuracy", "unit": "%", "decimals": 2, "chance": 6.25, **metric}
    runs = []
    for name, values in scores.items():
        for seed, value in enumerate(values):
            folder = root / key(grid, task, name, seed)
            folder.mkdir()
            both = {"accuracy": value, "loss": 0.1}
            result = {"state": "done", "epochs": 3, "weights": "raw", "metric": "accuracy", **both, "raw": both}
            network = {"blocks": [{"token_mixer": dict(mixers).get(name, {"name": name})}]}
            content = {"data": {"task": config or {"name": task}}, "model": network}
            (folder / "config.json").write_text(json.dumps({"schema": 2, "config": content}))
            (folder / "result.json").write_text(json.dumps({**result, "seconds": 1.0, "macs": 1000, "parameters": 10}))
            course = dict(courses).get((name, seed), ())
            rows = [{"epoch": n, "step": 100 * n, "val_accuracy": at} for n, at in enumerate(course, 1)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            runs.append({"hash": folder.name, "variant": name, "seed": seed, "on": None, "changes": {}})
    manifest = {"schema": 2, "grid": grid, "data": task, "base": "attention", "metric": metric, "runs": runs}
    (root / "grids").mkdir(exist_ok=True)
    (root / "grids" / f"{grid}@{task}.json").write_text(json.dumps(manifest))


@pytest.fixture
def root(tmp_path):
    for task, levels in TASKS.items():
        write_task(tmp_path, task, {name: values for (of, name), values in SCORES.items() if of == task}, **levels)
    return tmp_path


def test_levels_and_one_correction_over_all_tasks(root):
    table, _ = profile(root, "probes")
    found = table.set_index(["task", "variant"])
    p = {}
    for (task, variant), values in SCORES.items():
        row = found.loc[(task, variant)]
        chance, solved = TASKS[task]["chance"], TASKS[task]["solved"]
        assert row["level"] == pytest.approx(np.clip((np.mean(values) - chance) / (solved - chance), 0, 1))
        if variant != "attention":
            p[task, variant] = stats.ttest_rel(values, SCORES[task, "attention"]).pvalue
    keys = [key for key in found.index if key in p]
    expected = multipletests([p[key] for key in keys], method="holm")[1]
    assert found.loc[keys, "p_holm"].to_numpy() == pytest.approx(expected)
    assert found.loc[("recall", "depthwise"), "verdict"] == "worse"
    assert found.loc[("recall", "pooling"), "verdict"] == "inside noise"  # one seed of three got far
    assert set(found.loc["majority"]["verdict"]) == {"base", "inside noise"}


def test_table_and_picture_show_the_same(root):
    table, metas = profile(root, "probes")
    shown = render(table, metas).cells
    assert list(shown) == ["variant", "majority", "recall"] and list(shown["variant"][:2]) == ["chance", "solved"]
    assert list(shown["recall"][:2]) == ["6.25", "90.6"]
    axes = plots.profile_map(table, metas)
    said = {text.get_text() for text in axes.texts}
    assert "24.2▼" in said and len(axes.texts) == 6
    assert np.nanmax(axes.collections[0].get_array()) == 1
    assert "recall\n6.25–90.6" in [label.get_text() for label in axes.get_xticklabels()]
    plt.close("all")


def test_where_seeds_are_mixed_their_shares_are_compared(tmp_path):
    """Six seeds of attention solve it, none of pooling, one of gelu; steps come from the validation scores."""
    scores = {"attention": [99.0, 99.1, 99.2, 99.0, 99.3, 99.1], "gelu": [98.0, 20.0, 21.0, 19.0, 20.0, 22.0],
              "pooling": [6.0, 6.3, 6.1, 6.2, 6.0, 6.4]}  # fmt: skip
    courses = {("attention", seed): (30, 95, 99) if seed else (95, 30, 99) for seed in range(6)}
    courses |= {("pooling", seed): (6, 6, 6) for seed in range(6)} | {("gelu", 0): (20, 50, 98)}
    write_task(tmp_path, "recall", scores, courses=courses.items(), solved=90.0)
    runs, meta = load(tmp_path, "probes")
    found = statistics.compare(runs, meta).set_index("variant")
    assert list(found["solved"]) == [6, 1, 0] and list(found["test"]) == ["", "shares", "t"]
    assert found.loc["attention", "solved_at"] == 200 and np.isnan(found.loc["gelu", "solved_at"])
    assert found.loc["gelu", "p"] == pytest.approx(stats.boschloo_exact([[1, 6], [5, 0]]).pvalue)
    reference = stats.ttest_rel(scores["pooling"], scores["attention"]).pvalue
    assert found.loc["pooling", "p"] == pytest.approx(reference)
    assert found.loc["gelu", "p_holm"] == pytest.approx(found.loc["gelu", "p"])  # the larger of two
    assert list(found["verdict"]) == ["base", "worse", "worse"]
    text = str(tables.render(found.reset_index(), meta))
    assert "| 19.00 to 98.00 | 1/6 [0, 64] | – | −83 % solve, p" in text and "| 6/6 [54, 100] | 200 |" in text
    assert "fewer than twice the base's 200" in text and "shares are tested" in text and "accuracy, % ± sd" in text
    table, metas = profile(tmp_path, "probes")
    assert cells(table, metas).loc["gelu", "recall"] == "1/6▼"
    assert any(line.startswith("recall: 300 steps are fewer than twice") for line in notes(table, metas))


def test_steps_have_a_test_of_their_own(tmp_path):
    """All seeds of both solve it, one variant in a third of the steps: 2 of the 924 ways to share out the ranks."""
    courses = {("attention", seed): (30, 50, 99) for seed in range(6)}
    courses |= {("fast", seed): (95, 99, 99) for seed in range(6)}
    scores = {name: [99.0, 99.1, 99.2, 99.0, 99.3, 99.1] for name in ("attention", "fast")}
    write_task(tmp_path, "recall", scores, courses=courses.items(), solved=90.0)
    runs, meta = load(tmp_path, "probes")
    found = statistics.compare(runs, meta)
    assert found.loc[1, "p_steps_holm"] == pytest.approx(2 / 924) and found.loc[1, "verdict"] == "no spread"
    assert tables.texts(found, meta)["steps"].tolist() == ["300", "100 *"]


def test_less_is_better_where_the_task_says_so(tmp_path):
    """Errors: the rate, the order, the verdict and the front follow the direction."""
    scores = {"attention": [0.30, 0.31, 0.30], "less": [0.101, 0.110, 0.102], "more": [0.501, 0.512, 0.503]}
    metric = {"label": "error", "unit": "", "higher_is_better": False, "chance": 1.0, "solved": 0.2}
    courses = {("less", seed): (0.3, 0.3, 0.1) for seed in range(3)}
    write_task(tmp_path, "errors", scores, courses=courses.items(), **metric)
    runs, meta = load(tmp_path, "probes")
    found = statistics.compare(runs, meta)
    assert list(found["verdict"]) == ["base", "better", "worse"] and list(found["solved"]) == [0, 3, 0]
    levels = [min((1 - np.mean(of)) / 0.8, 1) for of in scores.values()]
    assert profile(tmp_path, "probes")[0]["level"].tolist() == pytest.approx(levels)
    axes = plots.accuracy_by_variant(found, meta)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["more", "attention", "less"]
    plt.close("all")


def test_bases_that_differ_in_one_number_make_a_curve(tmp_path):
    for distance in (1, 2, 4):
        scores = {"attention": [90.0, 92.0], "depthwise": [99.0 - 10 * distance, 97.0 - 10 * distance]}
        task = {"name": "shift", "distance": distance, "permuted": False}
        write_task(tmp_path, f"shift_{distance}", scores, config=task, solved=90.0)
    write_task(tmp_path, "recall", {"attention": [90.0, 92.0], "depthwise": [9.0, 8.0]}, solved=90.0)
    table, metas = profile(tmp_path, "probes")
    assert set(table.loc[table["kind"] == "shift", "dial"]) == {"distance"} and table["dial"].isna().sum() == 2
    (axes,) = plots.dial_curves(table, metas)
    assert axes.get_xlabel() == "distance of shift"
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    np.testing.assert_allclose(lines["depthwise"].get_xydata(), [[1, 88], [2, 78], [4, 58]])
    plt.close("all")


def test_a_grid_without_levels_is_refused(tmp_path):
    write_task(tmp_path, "recall", {"attention": [90.0]}, solved=None)
    with pytest.raises(ValueError, match="no task that has a chance level"):
        profile(tmp_path, "probes")


def test_a_grid_runs_on_all_its_tasks_at_once_and_ends_with_the_profile(tmp_path):
    grid = tmp_path / "tiny.py"
    grid.write_text(
        '"""Two tasks."""\n'
        "from ablations.profile import GRID\nfrom metamixer.config import override\nfrom sweeps import Grid\n"
        'few = {"data.train_samples": 64, "data.val_samples": 0, "data.test_samples": 20, "recipe.epochs": 2, '
        '"recipe.warmup_epochs": 0}\n'
        'GRID = Grid(bases={name: override(GRID.bases[name], few) for name in ("parity", "majority")}, seeds=(0,), '
        'base="no_mixing", variants={name: GRID.variants[name] for name in ("no_mixing", "pooling")})\n'
    )
    shown = launch("run", grid, "--data", "all", "--workers", "2", "--runs", tmp_path / "runs").stdout
    assert "the same on majority" in shown
    assert "chance" in shown and " 25 " in shown and " 50" in shown
    for form in (".csv", ".tex", ".png", ".pdf"):
        assert (tmp_path / f"runs/grids/tiny_profile{form}").is_file()
    again = launch("run", grid, "--data", "majority, parity", "--runs", tmp_path / "runs").stdout
    assert "nothing to run" in again
    assert "majority" in launch("collect", "tiny", "--runs", tmp_path / "runs").stdout


def test_a_probe_of_one_mixer_is_an_ordinary_grid_that_trains_only_what_is_missing(tmp_path):
    """Attention is the profile's own run. A mixer by name, an operation of the user's own, JSON."""
    profile = load_grid("profile")
    loaded = grid_of("pooling", [], tmp_path)
    for task in ("parity", "majority"):
        plan = make_plan(loaded, tmp_path, task)
        assert list(dict.fromkeys(run.variant for run in plan.runs)) == ["attention", "ffnified_attention", "pooling"]
        assert len(plan.runs) == 27
        ladder = {run.hash for run in profile.grid.runs(task, only=["attention", "parallel_branch"])}
        assert ladder < {run.hash for run in plan.runs}
        for run in plan.runs:
            RunFolder(plan.root / run.hash).create(run.config)
            score = 60.0 + 10 * (run.variant == "pooling") + run.seed + (run.lr == 5e-3)
            rows = {"accuracy": score, "loss": 1.0, "images": 5}
            result = {"state": "done", "metric": "accuracy", "epochs": 1, "weights": "raw", "raw": rows, **rows}
            RunFolder(plan.root / run.hash).write("result.json", {**result, "seconds": 1.0})
    shown = launch("probe", "pooling", "--data", "parity, majority", "--runs", tmp_path).stdout
    assert "nothing to run" in shown and "chance" in shown and " 50" in shown
    assert (tmp_path / "grids/probe_pooling_profile.png").is_file()


def test_a_probe_takes_a_users_own_operation_and_json(tmp_path):
    (tmp_path / "own.py").write_text(
        "from metamixer import Activation, register\n\n\n@register\nclass Sine(Activation):\n    name = 'sine'\n\n"
        "    def forward(self, scores):\n        return scores.sin()\n"
    )
    loaded = grid_of("sine", [str(tmp_path / "own.py")], tmp_path)
    (run,) = loaded.grid.runs("recall", seeds=[0], only=["sine"], lrs=[])
    assert run.config.model.stages[0].token_mixer.activation.name == "sine" and len(run.config.modules) == 1
    assert list(grid_of('{"name": "pooling", "kernel_size": 5}', [], tmp_path).grid.variants)[-1] == "mixer"


@pytest.mark.parametrize(
    "words, message",
    [
        (["poolin"], "no mixer, operation or task 'poolin'; did you mean 'pooling'?"),
        (["pooling", "--data", "recal"], "no data 'recal'; there are recall, parity"),
        (['{"name": '], "not JSON"),
        ([json.dumps(PRESETS["attention"] | {"query_key": {"name": "scaled_dot", "head_dim": 7}})], "heads of 7"),
    ],
)
def test_a_probes_bad_input_is_one_line(words, message, tmp_path):
    error = launch("probe", *words, "--runs", tmp_path / "runs", code=2).stderr
    assert message in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
