"""Rows of latencies, and the file beside the runs that keeps them.

The file, `latency.jsonl` in the runs' folder, is only ever appended to; of several measurements of one thing the last
counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from .. import jsonl
from ..config import Config, hash_of, parse

FILE = "latency.jsonl"
SCHEMA = 1  # of the rows, and of the values that keys are made from

Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(ge=1, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Ms = Annotated[float, Field(ge=0)]


class Row(Config):
    """One network on one runtime.

    Attributes:
        network: what tells networks apart: a timm model's name, or a run's `network_key`.
        name: what it was called: a timm model, a variant.
        resolution: pixels, the width.
        runtime: one of `runtimes`, or what another program measured on, e.g. Core ML.
        threads: None where the runtime decides.
        median_ms: of the sessions' medians; a session is a fresh process.
        iqr_ms: interquartile range of all samples.
        spread_ms: of the sessions' medians, 10th to 90th percentile; None for fewer than three.
        quiet: whether the spread is small; None where it isn't known.
        parameters, macs, activations, moved: of the folded network, for one image (`metamixer.cost`).
        source: "measured", an imported file's name, or a paper.
        samples_ms: the samples of each session.
    """

    network: Text
    name: Text
    resolution: Whole
    batch: Whole = 1
    device: Text
    os: Text
    runtime: Text
    version: str = ""
    precision: str = ""
    threads: Whole | None = None
    compute_units: Text
    median_ms: float = Field(gt=0)
    iqr_ms: Ms | None = None
    sessions: Whole | None = None
    spread_ms: Ms | None = None
    quiet: bool | None = None
    parameters: Count | None = None
    macs: Count | None = None
    activations: Count | None = None
    moved: Count | None = None
    source: str = ""
    samples_ms: tuple[tuple[float, ...], ...] = ()


def network_key(run: dict[str, Any], image_size: int | tuple[int, int] | None = None) -> str:
    """What tells the networks of runs apart: 16 hexadecimal digits of the values that one is built from, no weights.

    Args:
        run: a run's configuration, as config.json has it.
        image_size: the images' side, or height and width, where they aren't the run's own.
    """
    data = run["data"]
    parts = {"model": run["model"], "image_size": image_size or data.get("image_size")}
    parts |= {"task": data["task"]} if "task" in data else {key: data[key] for key in ("channels", "num_classes")}
    if run.get("modules"):
        parts["modules"] = [module["digest"] for module in run["modules"]]
    return hash_of(json.dumps({"schema": SCHEMA, "config": parts}, sort_keys=True, separators=(",", ":")))


def append(root: str | Path, rows: Iterable[Row]) -> Path:
    """Keep rows beside the runs; several processes may do so at once. Returns the file."""
    path = Path(root) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.append(path, *({"schema": SCHEMA, **row.to_dict()} for row in rows))
    return path


def read(root: str | Path, report: Callable[[str], object]) -> list[Row]:
    """The rows beside the runs in `root`; `report` gets a line for each that is torn or of another form."""
    return jsonl.read(Path(root) / FILE, _row, report)


def _row(values: dict[str, Any]) -> Row:
    if values.pop("schema") != SCHEMA:
        raise ValueError("of another schema")
    return parse(Row, values)
