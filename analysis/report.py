"""A grid on one page of HTML: the first notebook, run on the grid and kept with its outputs.

The page needs no network and no other file: pictures and style lie in it.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from . import rates
from .folders import read_json
from .frame import Meta, each, load, plural
from .metrics import VALIDATION
from .statistics import compare
from .tables import markdown, texts

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
    parameters["PAGE"] = str(path.resolve().parent)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the kernel warns of frozen modules
    with tempfile.TemporaryDirectory() as place:
        ran = Path(place) / NOTEBOOK.name
        how = {"kernel_name": "python3", "cwd": str(NOTEBOOK.parent), "progress_bar": False}
        how["extra_arguments"] = ["--IPKernelApp.log_level=50"]  # what a kernel says of its own start and end
        papermill.execute_notebook(NOTEBOOK, ran, parameters, **how)
        body, _ = HTMLExporter(template_name="basic", exclude_input=True).from_filename(str(ran))
    path.write_text(_PAGE.format(title=html.escape(meta.title), body=body), encoding="utf-8")
    return path


def exploratory(runs: pd.DataFrame, meta: Meta) -> str:
    """Comparisons by metrics that the grid did not declare, in Markdown. Each is a hint at most."""
    columns = list(runs.loc[:, "state":"weights"].columns[1:-1])  # type: ignore[misc]
    others = [meta.by(name) for name in columns if name not in (meta.declared.name, VALIDATION)]
    tables = [
        f"By {other.metric.label}:\n\n{markdown(texts(compare(runs, other), other))}"
        for other in others
        if runs[other.metric.name].notna().any() and other.metric.name != f"{meta.declared.name}_{meta.weights}"
    ]
    return "\n\n".join(tables) or "Nothing has finished."


def learning_rates(runs: pd.DataFrame, meta: Meta) -> str:
    """The validation score of each variant at each learning rate that was tried, mean over seeds; in Markdown."""
    if not rates.tried(runs):
        return "One learning rate for each variant, its recipe's."
    found = rates.validation(runs)
    found["text"] = [f"{meta.declared.value(row.mean)} ({row.count})" if row.count else "–" for row in each(found)]
    table = found.pivot(index="variant", columns="lr", values="text").fillna("–").rename(columns="lr {:g}".format)
    return markdown(table.reindex(runs["variant"].unique()).reset_index())


def made_from(root: str | Path, runs: pd.DataFrame, meta: Meta) -> str:
    """What each variant changes, what the runs were made with, and the base's configuration; in Markdown."""
    manifest = read_json(Path(root) / "grids" / f"{meta.grid}@{meta.data}.json")[0] or {}
    changes: dict[str, str] = {}
    for entry in manifest.get("runs", []):
        said = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in (entry.get("changes") or {}).items())
        changes.setdefault(str(entry.get("variant")), said or "nothing")
    ended = runs[runs["state"].isin(["done", "failed"])].drop_duplicates("hash")
    found = [read_json(f"{folder}/environment.json")[0] or {} for folder in ended["folder"]]
    made = pd.DataFrame([{name: str(value) for name, value in environment.items()} for environment in found])
    environment = [
        [name, ", ".join(f"{value} ({plural(n, 'run')})" for value, n in made[name].value_counts().items())]
        for name in made.columns.drop("started", errors="ignore")
    ]
    configs = (read_json(f"{folder}/config.json")[0] or {} for folder in runs.loc[runs["base"], "folder"])
    config: dict = next((found["config"] for found in configs if "config" in found), {})
    return "\n\n".join([
        markdown(pd.DataFrame(changes.items(), columns=["variant", "changes"])),
        markdown(pd.DataFrame(environment, columns=["made with", "by how many runs"])),
        f"<details><summary>Configuration of the base</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre>"
        "</details>",
    ])  # fmt: skip


def all_runs(runs: pd.DataFrame, meta: Meta, page: str | Path | None = None) -> str:
    """Every run, in Markdown; with links to their folders if `page`, the folder that they start from, is given."""
    metric = meta.declared
    rows = []
    for row in runs.to_dict("records"):
        score, key = row[metric.name], row["hash"]
        if page is not None:
            key = f"[{key}]({quote(os.path.relpath(row['folder'], page))}/)"
        rows.append([
            row["variant"], row["seed"], "" if pd.isna(row["lr"]) else f"{row['lr']:g}", row["state"],
            "–" if pd.isna(score) else metric.value(score), "–" if pd.isna(row["epochs"]) else row["epochs"],
            key, "; ".join(filter(None, (row["error"], row["note"]))),
        ])  # fmt: skip
    heads = ["variant", "seed", "lr", "state", metric.heading, "epochs", "folder", "note"]
    return markdown(pd.DataFrame(rows, columns=heads))
