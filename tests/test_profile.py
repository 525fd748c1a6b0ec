"""Every variant on every task: levels between chance and solved, and one correction over the whole table."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_commands import launch

from analysis import plots
from analysis.profile import profile, render

TASKS = {"recall": {"chance": 6.25, "solved": 90.625}, "majority": {"chance": 25.0, "solved": 92.5}}
SCORES = {
    ("recall", "attention"): (100.0, 99.8, 100.0),
    ("recall", "depthwise"): (24.1, 24.5, 23.9),
    ("recall", "pooling"): (6.2, 60.0, 6.4),
    ("majority", "attention"): (99.0, 99.5, 99.2),
    ("majority", "depthwise"): (99.1, 99.2, 99.4),
    ("majority", "pooling"): (99.6, 99.0, 99.1),
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "grids").mkdir()
    for task, levels in TASKS.items():
        runs = []
        for number, (name, values) in enumerate((v, s) for (t, v), s in SCORES.items() if t == task):
            for seed, value in enumerate(values):
                key = f"{task[:4]}{number}{seed}".encode().hex()[:16].ljust(16, "0")
                folder = tmp_path / key
                folder.mkdir()
                result = {"state": "done", "epochs": 1, "weights": "raw", "top1": value, "raw": {"images": 10}}
                (folder / "config.json").write_text(json.dumps({"schema": 2, "config": {}}))
                (folder / "result.json").write_text(json.dumps({**result, "seconds": 1.0}))
                runs.append({"hash": key, "variant": name, "seed": seed, "on": None, "changes": {}})
        manifest = {"schema": 2, "grid": "probes", "data": task, "base": "attention", "metric": "top1", "runs": runs}
        (tmp_path / "grids" / f"probes@{task}.json").write_text(json.dumps({**manifest, "levels": levels}))
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
    assert found.loc[("recall", "depthwise"), "verdict"] == "below"
    assert found.loc[("recall", "pooling"), "verdict"] == "inside noise"  # one seed of three got far
    assert set(found.loc["majority"]["verdict"]) == {"base", "inside noise"}


def test_table_and_picture_show_the_same(root):
    table, metric = profile(root, "probes")
    shown = render(table, metric)
    assert [column.header for column in shown.columns] == ["variant", "majority", "recall"]
    axes = plots.profile_map(table, metric)
    said = {text.get_text() for text in axes.texts}
    assert "24.17 ▼" in said and len(axes.texts) == 6
    assert np.nanmax(axes.collections[0].get_array()) == 1
    plt.close("all")


def test_a_grid_without_levels_is_refused(root):
    for path in (root / "grids").glob("*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "levels"}))
    with pytest.raises(ValueError, match="no task that has a chance level"):
        profile(root, "probes")


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
    shown = launch("run", grid, "--data", "all", "--cluster", "debug", "--runs", tmp_path / "runs").stdout
    assert "the same on majority" in shown
    assert "chance" in shown and "25.00" in shown and "50.00" in shown
    assert (tmp_path / "runs/grids/tiny_profile.png").is_file()
    again = launch("run", grid, "--data", "majority, parity", "--runs", tmp_path / "runs").stdout
    assert "nothing to run" in again
    assert "majority" in launch("collect", "tiny", "--runs", tmp_path / "runs").stdout
