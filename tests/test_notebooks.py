"""The notebooks run from top to bottom, headless, whatever the result folder holds; kept without outputs."""

import json
import os
import shutil
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import papermill
import pytest
from factorials import write_factorial
from small import RUN
from test_analysis import LADDER, write_grid
from test_factorial import noisy

matplotlib.use("Agg")

from analysis import plots
from analysis.results import of_grid, write
from metamixer.config import override

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in a kernel of its own; gives the notebook with its outputs."""
    # No kernel of the user's may come in between: without one, jupyter_client's `python3` is the interpreter
    # of the tests with its own ipykernel, also where no kernel specification was installed.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    search = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [search])]))

    def run(path, **parameters):
        options = {"kernel_name": "python3", "cwd": str(ROOT / "notebooks"), "progress_bar": False}
        return papermill.execute_notebook(path, tmp_path / path.name, parameters, start_timeout=120, **options)

    return run


def text(notebook, cell):
    """What one cell printed or showed, as text."""
    (found,) = (c for c in notebook.cells if c.id == cell)
    shown = [output.get("text") or output["data"].get("text/markdown", "") for output in found.outputs]
    return "".join("".join(part) for part in shown)


def pictures(notebook):
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source.splitlines()[0]
    assert any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.fixture
def play(tmp_path, monkeypatch, capsys):
    """Run a notebook's cells in this process, which takes no kernel; gives what each cell printed and its variables."""
    monkeypatch.chdir(ROOT / "notebooks")

    def run(name, **parameters):
        (path,) = (ROOT / "notebooks").glob(f"{name}*.ipynb")
        said, variables = {}, {}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                capsys.readouterr()
                exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), variables)
                if cell.id == "parameters":
                    assert parameters.keys() <= variables.keys()
                    variables |= {"RUNS": str(tmp_path / "runs"), **parameters}
                said[cell.id] = capsys.readouterr().out
        for number in plots.plt.get_fignums():
            plots.plt.figure(number).canvas.draw()
        plots.plt.close("all")
        return said, variables

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_on_the_shipped_results(execute, path):
    """In a kernel, from top to bottom, with pictures and a conclusion; of what is shipped, one that concludes."""
    notebook = execute(path)
    assert pictures(notebook)
    conclusion = text(notebook, "conclusion")
    parameters = next(cell.source for cell in notebook.cells if cell.id == "parameters")
    shipped = [pack.name.partition("@")[0] for pack in (ROOT / "notebooks" / "results").glob("*.tar.xz")]
    if any(f'GRID = "{name}"' in parameters for name in shipped):
        assert "No conclusion" not in conclusion.splitlines()[0]
    assert conclusion.strip()


EMPTY = {
    "01": "No conclusion for ffnification on digits: there are no runs.",
    "02": "No latency of ffnification on digits lies beside the runs",
    "03": "No conclusion for ffnification on digits: no step has finished runs",
    "04": "No conclusion for slot_interactions on digits: no full factorial",
    "05": "No conclusion for recipe_ingredients on digits: there are no runs.",
    "06": "No conclusion for the search: no trial is done.",
    "07": "No conclusion: there is no network to look at.",
}


@pytest.mark.parametrize("name", EMPTY)
def test_on_nothing_it_says_so(play, name):
    said, _ = play(name, DATA="digits")
    assert EMPTY[name] in said["conclusion"]
    if name != "06":
        assert "everything: no grid" in said["runs"] and "no grid was launched there yet" in said["runs"]


def partly_finished_and_mixed(root, grid):
    """Half of the runs not started, one torn, one of another schema."""
    part = {name: ([*results[:2], None], macs) for name, (results, macs) in LADDER.items()}
    write_grid(root, part, grid=grid)
    (root / f"{grid}digitsgelu0" / "result.json").write_text('{"state": "do')
    (root / f"{grid}digitsidentity0" / "config.json").write_text('{"schema": 2}')


@pytest.mark.parametrize("name, grid", [("01", "ffnification"), ("02", "ffnification"), ("03", "ffnification"),
                                        ("05", "recipe_ingredients"), ("07", "ffnification")])  # fmt: skip
def test_on_what_is_not_finished_it_says_what_was_left_out(play, tmp_path, name, grid):
    partly_finished_and_mixed(tmp_path / "runs", grid)
    said, _ = play(name, DATA="digits")
    for part in ("not started: 9 of 27 runs", "gelu seed 0: result.json is half-written", "has schema 2"):
        assert part in said["runs"]
    if name == "03":
        assert "fewer than two pairs: attention → gelu" in said["conclusion"]
    if name in ("01", "05"):
        assert "fewer than two pairs: gelu" in said["conclusion"]
        assert "Preliminary: of 27 runs, 1 failed and" in said["conclusion"]


def test_slot_interactions_on_what_is_not_finished(play, tmp_path):
    y = noisy(0)
    y[1:, 0, 0, 0] = np.nan
    root = write_factorial(tmp_path / "runs", y)
    next(root.glob("digitsdepthwise3*0")).joinpath("config.json").write_text('{"schema": 2}')
    said, variables = play("04", DATA="digits")
    assert "not started: 2 of 54 runs" in said["runs"] and "has schema 2" in said["runs"]
    assert not variables["slots"].whole and "interactions need" in said["conclusion"]


def test_accuracy_vs_flops_on_a_finished_grid(play, tmp_path):
    write_grid(tmp_path / "runs")
    said, variables = play("01", DATA="digits")
    conclusion = said["conclusion"]
    assert "attention (the base) reaches 96.11 % top-1 at 4.02 M multiply-adds" in conclusion
    assert "Below it beyond the noise: identity −7.50 points" in conclusion
    assert "Inside the noise: gelu +0.07 points" in conclusion
    assert "Of 27 runs, 1 failed" in conclusion
    assert "pooling seed 1: loss is not finite" in said["runs"]
    assert list(variables["comparison"]["variant"]) == list(LADDER)


def test_slot_interactions_on_a_finished_grid(play, tmp_path):
    write_factorial(tmp_path / "runs", noisy(2, corner=3.0))
    said, _ = play("04", DATA="digits")
    assert (
        "Other than the sum of their slots, after correction for 18 cells: linear-identity-linear +"
        in said["conclusion"]
    )


def test_latencies_beside_the_runs_are_shown_by_backend(play, tmp_path):
    from analysis.frame import load
    from metamixer.latency.rows import Row, append

    root = tmp_path / "runs"
    write_networks(root)
    runs = load(root, with_config=True).drop_duplicates("variant")
    for runtime, times in (("onnxruntime", (4.0, 2.0)), ("xnnpack", (3.0, 5.0))):
        append(root, [
            Row(network=row.network, name=row.variant, resolution=int(row.resolution), device="a board", os="Linux",
                runtime=runtime, version="1", precision="fp32", threads=1, compute_units="CPU", median_ms=ms)
            for row, ms in zip(runs.itertuples(), times, strict=True)
        ])  # fmt: skip
    said, _ = play("02", DATA="digits")
    fast, slow = (line for line in said["conclusion"].splitlines() if "a board" in line)
    assert "onnxruntime" in fast and "gelu takes 4 ms" in fast and "relu 0.50× its time" in fast
    assert "xnnpack" in slow and slow.endswith("none.")
    write(tmp_path / "packs", [of_grid(root, "ffnification", "digits")])
    from_pack, _ = play("02", DATA="digits", RUNS=str(tmp_path / "packs"))
    assert from_pack["conclusion"] == said["conclusion"]


def write_networks(root):
    """A finished grid of two real networks, without their weights."""
    runs = []
    for variant, scores in {"gelu": (90.0, 91.0, 92.5), "relu": (90.2, 90.9, 92.6)}.items():
        for seed, top1 in enumerate(scores):
            key = f"{variant}{seed}"
            config = override(RUN, {"model.stages.*.token_mixer.activation": variant, "seed": seed})
            folder = root / key
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"schema": 1, "config": config.to_dict()}))
            both = {"top1": top1, "top5": 99.0, "loss": 0.3, "images": 300}
            result = {"state": "done", "epochs": 3, "weights": "raw", "raw": both, "parameters": 9000, "macs": 900_000}
            (folder / "result.json").write_text(json.dumps(result | both | {"seconds": 1.0}))
            runs.append({"hash": key, "variant": variant, "seed": seed, "on": None, "changes": {}})
    manifest = {
        "schema": 1,
        "grid": "ffnification",
        "data": "digits",
        "question": "?",
        "base": "gelu",
        "metric": "top1",
    }
    (root / "grids").mkdir()
    (root / "grids" / "ffnification@digits.json").write_text(json.dumps(manifest | {"runs": runs}))


def test_inside_a_mixer_looks_at_networks_and_says_that_they_are_not_trained(play, tmp_path):
    write_networks(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "relu0")
    said, variables = play("07", DATA="digits", VARIANTS=["gelu", "relu", "nobody"])
    assert "gelu: not trained" in said["networks"] and "nobody: no variant of these runs" in said["networks"]
    assert (
        set(variables["extents"]) == {"gelu (not trained)", "relu (not trained)"}
        and "64 test images" in said["conclusion"]
    )
