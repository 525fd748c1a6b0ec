"""The notebooks run from top to bottom, headless, whatever the result folder holds; kept without outputs."""

import os
from pathlib import Path

import nbformat
import papermill
import pytest
from test_analysis import LADDER, write_grid

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook on the runs in `tmp_path / "runs"`; gives the notebook with its outputs."""
    # No kernel of the user's may come in between: without one, jupyter_client's `python3` is the interpreter
    # of the tests with its own ipykernel, also where no kernel specification was installed.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    search = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [search])]))

    def run(path, **parameters):
        parameters = {"RUNS": str(tmp_path / "runs"), **parameters}
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


def test_accuracy_vs_flops_on_a_finished_grid(execute, tmp_path):
    write_grid(tmp_path / "runs")
    notebook = execute(ROOT / "notebooks" / "01_accuracy_vs_flops.ipynb")
    conclusion = text(notebook, "conclusion")
    assert "attention (the base) reaches 96.11 % top-1 at 4.02 M multiply-adds" in conclusion
    assert "Below it beyond the noise: identity −7.50 points" in conclusion
    assert "Inside the noise: gelu +0.07 points" in conclusion
    assert "Of 27 runs, 1 failed" in conclusion
    assert "pooling seed 1: loss is not finite" in text(notebook, "runs")
    assert all(f"| {variant} |" in text(notebook, "table") for variant in LADDER)
    assert len(pictures(notebook)) == 1


def test_accuracy_vs_flops_on_what_is_not_finished(execute, tmp_path):
    """Half of the runs not started, one torn, one of another schema: said, and the rest is shown."""
    part = {name: ([*results[:2], None], macs) for name, (results, macs) in LADDER.items()}
    write_grid(tmp_path / "runs", part)
    (tmp_path / "runs" / "ffnificationdigitsgelu0" / "result.json").write_text('{"state": "do')
    (tmp_path / "runs" / "ffnificationdigitsidentity0" / "config.json").write_text('{"schema": 2}')
    notebook = execute(ROOT / "notebooks" / "01_accuracy_vs_flops.ipynb")
    said = text(notebook, "runs")
    for part in ("not started: 9 of 27 runs", "gelu seed 0: result.json is half-written", "has schema 2"):
        assert part in said
    assert "fewer than two pairs: gelu" in text(notebook, "conclusion")
    assert "Preliminary: of 27 runs, 1 failed and" in text(notebook, "conclusion")
    assert len(pictures(notebook)) == 1


def test_accuracy_vs_flops_on_nothing(execute):
    notebook = execute(ROOT / "notebooks" / "01_accuracy_vs_flops.ipynb")
    assert "no grid ffnification on digits" in text(notebook, "runs")
    assert text(notebook, "conclusion").startswith("No conclusion for ffnification on digits")
    assert len(pictures(notebook)) == 1
