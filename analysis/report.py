"""A grid on one page of HTML: the first notebook, run on the grid and kept with its outputs.

The page needs no network and no other file: pictures and style lie in it.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from pathlib import Path

import pandas as pd

from metamixer.training.folder import RunFolder

from . import rates
from .frame import Meta, each, load, plural
from .tables import markdown

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_accuracy_vs_flops.ipynb"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: .6rem 0; display: block; overflow-x: auto; }}
th {{ border-bottom: 2px solid #444; text-align: left; }} td {{ border-bottom: 1px solid #ddd; }}
th, td {{ padding: .25rem .7rem; white-space: nowrap; }} img {{ max-width: 100%; height: auto; }}
td:has(code) {{ white-space: normal; text-align: left !important; }}
pre {{ font-size: .85rem; white-space: pre-wrap; }} .prompt, .anchor-link {{ display: none; }}
</style></head><body>
{body}
</body></html>
"""


def write_report(root: str | Path, grid: str, data: str | None = None, out: str | Path | None = None) -> Path:
    """Run the notebook on a grid and write its page; beside the grid's other files if `out` is None.

    Raises ValueError: no such grid, or it ran on several data sets and `data` names none; papermill or nbconvert is
    missing.
    """
    try:
        import papermill
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise ValueError(f"a report needs {error.name}: pip install -e '.[notebooks]'") from None
    _, meta = load(root, grid, data)
    if out and not Path(out).parent.is_dir():
        raise ValueError(f"{out}: no such folder")
    path = Path(out) if out else Path(root) / "grids" / f"{meta.grid}@{meta.data}.html"
    parameters = {"RUNS": str(Path(root).resolve()), "GRID": meta.grid, "DATA": meta.data}
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the kernel warns of frozen modules
    with tempfile.TemporaryDirectory() as place:
        ran = Path(place) / NOTEBOOK.name
        how = {"kernel_name": "python3", "cwd": str(NOTEBOOK.parent), "progress_bar": False}
        how["extra_arguments"] = ["--IPKernelApp.log_level=50"]  # what a kernel says of its own start and end
        papermill.execute_notebook(NOTEBOOK, ran, parameters, **how)
        body, _ = HTMLExporter(template_name="basic", exclude_input=True).from_filename(str(ran))
    path.write_text(_PAGE.format(title=html.escape(meta.title), body=body), encoding="utf-8")
    return path


def learning_rates(runs: pd.DataFrame, meta: Meta) -> str:
    """The validation score of each variant at each learning rate that was tried, mean over seeds; in Markdown."""
    if not rates.tried(runs):
        return "One learning rate for each variant, its recipe's."
    found = rates.validation(runs)
    found["text"] = [f"{meta.metric.value(row.mean)} ({row.count})" if row.count else "–" for row in each(found)]
    table = found.pivot(index="variant", columns="lr", values="text").fillna("–").rename(columns="lr {:g}".format)
    return markdown(table.reindex(runs["variant"].unique()).reset_index())


def made_from(root: str | Path, runs: pd.DataFrame, meta: Meta) -> str:
    """What each variant changes, what the runs were made with, and the base's configuration; in Markdown."""
    manifest = RunFolder(Path(root) / "grids").read(f"{meta.grid}@{meta.data}.json") or {}
    changes = {}
    for entry in manifest["runs"]:
        said = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in entry["changes"].items())
        changes[entry["variant"]] = said or "nothing"
    made = pd.DataFrame([RunFolder(folder).read("environment.json") or {} for folder in runs["folder"].unique()])
    environment = [
        [name, ", ".join(f"{value} ({plural(n, 'run')})" for value, n in made[name].value_counts().items())]
        for name in made.columns.drop("started", errors="ignore")
    ]
    base = RunFolder(runs.loc[runs["base"], "folder"].iloc[0]).read("config.json")
    return "\n\n".join([
        markdown(pd.DataFrame(changes.items(), columns=["variant", "changes"])),
        markdown(pd.DataFrame(environment, columns=["made with", "by how many runs"])),
        f"<details><summary>Configuration of the base</summary><pre>{html.escape(json.dumps(base, indent=1))}</pre>"
        "</details>",
    ])  # fmt: skip


def all_runs(runs: pd.DataFrame, meta: Meta) -> str:
    """Every run: its state, its figure, its folder, and what is to be said of it; in Markdown."""
    metric = meta.metric
    table = runs[["variant", "seed", "lr", "state", metric.name, "epochs", "hash", "error", "note"]].astype(object)
    for name, form in (("lr", "{:g}".format), (metric.name, metric.value)):
        table[name] = table[name].map(form, na_action="ignore")
    return markdown(table.fillna("").rename(columns={metric.name: metric.heading, "hash": "folder"}))
