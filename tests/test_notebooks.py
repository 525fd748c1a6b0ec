"""The notebooks run from top to bottom, headless, whatever the result folder holds; kept with their outputs."""

import ast
import json
import os
import shutil
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from factorials import write_factorial
from grids import LADDER, METRIC, key, write_grid
from small import RUN
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


def texts(notebook):
    """What each cell of code printed or showed besides pictures, and how many pictures."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [output.get("data", {"printed": output.get("text")}) for output in cell.outputs]
            kinds = ("printed", "text/markdown", "text/html")
            said = "".join(data[kind] for data in shown for kind in kinds if kind in data)
            found[cell.id] = said, sum("image/png" in data for data in shown)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source.splitlines()[0]
    assert any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.get("name", output.output_type) for cell in code for output in cell.outputs}
    assert not kinds & {"stderr", "error"}
    assert path.stat().st_size < 300_000 and "metamixer-results" not in path.read_text()  # a temporary folder's name


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
                *lines, last = ast.parse(cell.source).body
                shown = None
                if isinstance(last, ast.Expr):  # what a notebook shows
                    exec(compile(ast.Module(lines, []), f"{path.name}:{cell.id}", "exec"), variables)
                    shown = eval(compile(ast.Expression(last.value), f"{path.name}:{cell.id}", "eval"), variables)
                else:
                    exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), variables)
                if cell.id == "parameters":
                    assert parameters.keys() <= variables.keys()
                    variables |= {"RUNS": str(tmp_path / "runs"), **parameters}
                words = getattr(shown, "_repr_markdown_", str)()
                said[cell.id] = capsys.readouterr().out + words
        for number in plots.plt.get_fignums():
            plots.plt.figure(number).canvas.draw()
        plots.plt.close("all")
        return said, variables

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_on_the_shipped_results(execute, path):
    """In a kernel, from top to bottom: it says what is kept in it, and shows as many pictures."""
    found = texts(execute(path))
    assert found == texts(nbformat.read(path, as_version=4)), f"python notebooks/execute.py {path}"
    assert any(pictures for _, pictures in found.values())


@pytest.mark.parametrize("name", ["01", "02", "03", "04", "05", "07"])
def test_a_grid_that_never_ran_is_one_line(play, name):
    with pytest.raises(ValueError, match=r"no grid .* on digits in .*: no grid was launched there yet"):
        play(name, DATA="digits")


def test_predictions_from_nothing_are_an_empty_table(play):
    said, _ = play("08")
    assert "| probe |" in said["correlations"]


@pytest.mark.parametrize("name, grid", [("01", "ffnification"), ("02", "ffnification"), ("03", "ffnification"),
                                        ("05", "recipe_ingredients"), ("07", "ffnification")])  # fmt: skip
def test_on_what_is_not_finished_it_says_what_was_left_out(play, tmp_path, name, grid):
    """A third of the runs not started, one torn."""
    part = {variant: ([*results[:2], None], macs) for variant, (results, macs) in LADDER.items()}
    write_grid(tmp_path / "runs", part, grid=grid)
    of = {run["variant"]: tmp_path / "runs" / run["hash"] for run in reversed(
        json.loads((tmp_path / "runs" / "grids" / f"{grid}@digits.json").read_text())["runs"])}  # fmt: skip
    (of["gelu"] / "result.json").write_text('{"state": "do')
    said, _ = play(name, DATA="digits", **({"KERNELS": grid} if name == "07" else {}))
    for words in ("not started: 9 of 27 runs", "interrupted: 1 of 27 runs (gelu seed 0)"):
        assert words in said["runs"]
    if name == "03":
        assert "| attention → gelu | −0.02 | too few pairs | 1 |" in said["steps"]
    if name in ("01", "05"):
        assert "1/3, 2 missing" in said["comparison"]


def test_slot_interactions_on_what_is_not_finished(play, tmp_path):
    y = noisy(0)
    y[1:, 0, 0, 0] = np.nan
    write_factorial(tmp_path / "runs", y)
    said, variables = play("04", DATA="digits")
    assert "not started: 2 of 54 runs" in said["runs"]
    assert not variables["slots"].whole and "interactions need" in said["verdicts"]


def test_accuracy_vs_flops_on_a_finished_grid(play, tmp_path):
    write_grid(tmp_path / "runs")
    said, variables = play("01", DATA="digits")
    assert "| identity | 285 k | 2.10 M | 88.61 ± 0.56 | −7.50 [" in said["comparison"]
    assert "pooling seed 1: loss is not finite" in said["runs"]
    assert key("gelu", 0) in said["all-runs"]
    assert list(variables["comparison"]["variant"]) == list(LADDER)


def test_slot_interactions_on_a_finished_grid(play, tmp_path):
    write_factorial(tmp_path / "runs", noisy(2, corner=3.0))
    said, _ = play("04", DATA="digits")
    assert "| linear-identity-linear | +" in said["verdicts"]


def test_latencies_beside_the_runs_are_shown_by_backend(play, tmp_path):
    from analysis.frame import load
    from metamixer.latency.rows import Row, append

    root = tmp_path / "runs"
    write_networks(root)
    runs = load(root, "ffnification", with_config=True)[0].drop_duplicates("variant")
    for runtime, times in (("onnxruntime", (4.0, 2.0)), ("xnnpack", (3.0, 5.0))):
        append(root, [
            Row(network=row.network, name=row.variant, resolution=int(row.resolution), device="a board", os="Linux",
                runtime=runtime, version="1", precision="fp32", threads=1, compute_units="CPU", median_ms=ms)
            for row, ms in zip(runs.itertuples(), times, strict=True)
        ])  # fmt: skip
    shown = play("02", DATA="digits")[1]["runs"]
    assert [name for name in shown if name.startswith("latency_ms")] == [
        f"latency_ms[{runtime}, 1 thread, fp32, a board]" for runtime in ("onnxruntime", "xnnpack")
    ]
    write(tmp_path / "packs", [of_grid(root, "ffnification", "digits")])
    packed = play("02", DATA="digits", RUNS=str(tmp_path / "packs"))[1]["runs"]
    pd.testing.assert_frame_equal(packed.filter(like="latency_ms"), shown.filter(like="latency_ms"))


def write_networks(root):
    """A finished grid of two real networks, without their weights."""
    runs = []
    for variant, scores in {"gelu": (90.0, 91.0, 92.5), "relu": (90.2, 90.9, 92.6)}.items():
        for seed, top1 in enumerate(scores):
            name = f"{variant}{seed}"
            config = override(RUN, {"model.stages.*.token_mixer.activation": variant, "seed": seed})
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"schema": 2, "config": config.to_dict()}))
            both = {"top1": top1, "top5": 99.0, "loss": 0.3, "images": 300}
            result = {"state": "done", "epochs": 3, "weights": "raw", "raw": both, "parameters": 9000, "macs": 900_000}
            (folder / "result.json").write_text(json.dumps(result | both | {"seconds": 1.0}))
            runs.append({"hash": name, "variant": variant, "seed": seed, "on": None, "changes": {}})
    manifest = {
        "schema": 2,
        "grid": "ffnification",
        "data": "digits",
        "question": "?",
        "base": "gelu",
        "metric": METRIC,
    }
    (root / "grids").mkdir()
    (root / "grids" / "ffnification@digits.json").write_text(json.dumps(manifest | {"runs": runs}))


def test_inside_a_mixer_looks_at_networks_and_says_that_they_are_not_trained(play, tmp_path):
    write_networks(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "relu0")
    said, variables = play("07", DATA="digits", VARIANTS=["gelu", "relu", "nobody"], KERNELS="ffnification")
    assert "gelu: not trained" in said["networks"] and "nobody: no such variant" in said["networks"]
    assert set(variables["extents"]) == {"gelu (not trained)", "relu (not trained)"}
    assert variables["what"] == "64 test images"
