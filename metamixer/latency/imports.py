"""Other programs' measurements as rows: a table in CSV, or a performance report of Xcode."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

UNITS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
COMPUTE_UNITS = {
    "all": "all",
    "cpu": "CPU",
    "cpu+gpu": "CPU+GPU",
    "cpu+ne": "CPU+NE",
}
# MLComputeUnits, as a report has them
_OF_REPORT = {0: "CPU", 1: "CPU+GPU", 2: "all", 3: "CPU+NE"}
_NEEDED = ("model", "resolution", "device", "os", "compute units", "median")
COSTS = ("parameters", "macs", "activations", "moved")  # of the folded network, for one image
_OPTIONAL = ("runtime", "version", "precision", "batch", "threads", "source", *COSTS)
_UNIT = re.compile(r"median \((.*)\)")


def read(path: str | Path, root: str | Path, model: str | None = None, resolution: int | None = None) -> list[Json]:
    """Rows of a file, by its kind: a table (.csv) or an Xcode report (.mlperf, or its report.json).

    Args:
        root: folder of the runs; a model of a run's name there (its hash) gets the key of the run's network.
        model: what a report measured, in place of its file's name.
        resolution: of a report's model, which does not say; that of a run is known.

    Raises:
        ValueError: what can't be read, with its row or key.
    """
    path = Path(path)
    if path.suffix == ".csv":
        if model or resolution:
            raise ValueError(f"{path.name}: a table has columns for model and resolution; leave out the options")
        rows = read_csv(path)
    elif path.suffix in (".mlperf", ".json"):
        rows = [read_report(path, model, resolution)]
    else:
        raise ValueError(f"{path}: neither a table (.csv) nor an Xcode report (.mlperf, or its report.json)")
    for row in rows:
        _identify(row, Path(root))
        if row["resolution"] is None:
            raise ValueError(f"{path.name}: a report does not say its resolution: give --resolution")
    return rows


def add_costs(rows: list[Json], root: str | Path) -> list[str]:
    """Count what rows do not say of their networks' costs, as `measure` does.

    Returns:
        A line for each name that no network can be made of, or that nothing counts: its rows stay as they are.
    """
    counted: dict[tuple[str, int], Json] = {}
    uncounted = []
    for row in rows:
        network = row["name"], row["resolution"]
        if network not in counted and any(row.get(cost) is None for cost in COSTS):
            try:
                counted[network] = _cost(*network, Path(root))
            except ValueError as error:
                counted[network] = {}
                uncounted.append(f"kept without costs: {error}")
        row |= {cost: value for cost, value in counted.get(network, {}).items() if row.get(cost) is None}
    return uncounted


def _cost(name: str, resolution: int, root: Path) -> Json:
    from ..cost import count  # loads torch, which reading rows does without
    from ..networks import find_network

    network = find_network(str(root / name) if (root / name / "config.json").is_file() else name, resolution)
    try:
        found = asdict(count(network.model, network.input_size, inplace=True))
        return {cost: found[cost] for cost in COSTS}
    except ValueError as error:  # its operations have no count
        raise ValueError(f"{name!r}: {error}") from None


def _identify(row: Json, root: Path) -> None:
    """Give a run's network its key, which is that of its configuration, not the run's hash."""
    from .rows import network_key

    try:
        content = json.loads((root / row["name"] / "config.json").read_text())
        run, data = content["config"], content["config"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    row["resolution"] = row["resolution"] or data["image_size"]
    sizes = data["channels"], row["resolution"], data["num_classes"]
    row["network"] = network_key(run["model"], *sizes, run.get("modules"))


def read_report(path: str | Path, model: str | None = None, resolution: int | None = None) -> Json:
    """The row of a performance report that Xcode wrote (a folder X.mlperf, which holds report.json).

    Its form is known from programs that read it: times in seconds under `deviceResults.predict.samples`. Serial numbers
    and names of the device's owner that it holds are not taken over.

    Raises:
        ValueError: it can't be read, or a key is missing; the line names it.
    """
    path = Path(path)
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {getattr(error, 'strerror', None) or 'no JSON'}") from None

    def value(*keys: str) -> Any:
        node = content
        for key in keys:
            if not isinstance(node, dict) or key not in node:
                raise ValueError(f"{file}: no key {'.'.join(keys)}: not a report as Xcode 16 writes it")
            node = node[key]
        return node

    samples = value("deviceResults", "predict", "samples")
    if not isinstance(samples, list) or not samples or not all(map(_is_time, samples)):
        raise ValueError(f"{file}: deviceResults.predict.samples: a list of seconds, got {str(samples)[:60]}")
    units = value("computeUnit")
    if not isinstance(units, int) or units not in _OF_REPORT:
        raise ValueError(f"{file}: computeUnit {units!r}: one of {', '.join(map(str, _OF_REPORT))}")

    def text(*keys: str) -> str:
        found = value(*keys)
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"{file}: {'.'.join(keys)}: a text, got {str(found)[:60]!r}")
        return found.strip()

    name = model or re.sub(r"\.ml(package|model|modelc)$", "", text("modelMetadata", "fileName"))
    ms = 1e3 * np.array(samples, float)
    return {
        "network": name,
        "name": name,
        "resolution": resolution,
        "batch": 1,
        "device": text("deviceInfo", "modelName"),
        "os": text("deviceInfo", "osNameAndVersionWithoutBuildNumber"),
        "runtime": "Core ML",
        "version": "",
        "precision": "",
        "threads": None,
        "compute_units": _OF_REPORT[units],
        "median_ms": float(np.median(ms)),
        "iqr_ms": float(np.subtract(*np.percentile(ms, [75, 25]))),
        "sessions": 1,
        "source": "Xcode report",
        "samples_ms": [[round(float(sample), 4) for sample in ms]],
    }


def read_csv(path: str | Path) -> list[Json]:
    """Rows of a table with the columns model, resolution, device, os, compute units and `median (ms)`.

    The unit in the heading is ms, s or us. More columns may be runtime (Core ML if there is none), version, precision,
    batch, threads and source, and what the folded network costs: parameters, macs, activations and moved (numbers read
    and written). The model is a timm name or a key; names are taken as they are.

    Raises:
        ValueError: a missing or unknown column, a unit, or a row's value that can't be; the line names the row.
    """
    name = Path(path).name
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            table = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    except csv.Error as error:  # a quote that is never closed would swallow the rows behind it
        raise ValueError(f"{name}: line {reader.line_num}: {error}") from None
    if not table:
        raise ValueError(f"{name}: row 1: no headings; they are {', '.join(_NEEDED)} (ms)")
    heads, factor = _heads(name, table[0])
    rows = []
    for number, cells in enumerate(table[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(heads):
            raise ValueError(f"{name}: row {number}: {len(cells)} cells under {len(heads)} headings")
        values = dict(zip(heads, (cell.strip() for cell in cells), strict=True))
        try:
            rows.append(_row(values, factor, name))
        except ValueError as error:
            raise ValueError(f"{name}: row {number}: {error}") from None
    if not rows:
        raise ValueError(f"{name}: no rows below the headings")
    return rows


def _heads(name: str, cells: list[str]) -> tuple[list[str], float]:
    """The headings without the unit of the median, and what makes milliseconds of it."""
    factor, heads = None, []
    for cell in cells:
        head = cell.strip().lower()
        if unit := _UNIT.fullmatch(head):
            if unit[1] not in UNITS:
                raise ValueError(f"{name}: row 1: unit {unit[1]!r} of the median: one of {', '.join(UNITS)}")
            head, factor = "median", UNITS[unit[1]]
        if head not in (*_NEEDED, *_OPTIONAL):
            raise ValueError(f"{name}: row 1: unknown column {cell!r}; there are {', '.join((*_NEEDED, *_OPTIONAL))}")
        if head in heads:
            raise ValueError(f"{name}: row 1: column {cell!r} twice")
        heads.append(head)
    missing = [head for head in _NEEDED if head not in heads]
    if missing:
        raise ValueError(f"{name}: row 1: no column {missing[0]!r}; needed are {', '.join(_NEEDED)} (ms)")
    if factor is None:
        raise ValueError(f"{name}: row 1: the median has no unit: write `median (ms)`, or s, or us")
    return heads, factor


def _row(values: dict[str, str], factor: float, source: str) -> Json:
    empty = [head for head in _NEEDED if not values[head]]
    if empty:
        raise ValueError(f"{empty[0]} is empty")
    units = values["compute units"].lower().replace(" ", "")
    if units not in COMPUTE_UNITS:
        raise ValueError(
            f"compute units {values['compute units']!r}: one of {', '.join(dict.fromkeys(COMPUTE_UNITS.values()))}"
        )
    return {
        "network": values["model"],
        "name": values["model"],
        "resolution": _whole(values, "resolution"),
        "batch": _whole(values, "batch", 1),
        "device": values["device"],
        "os": values["os"],
        "runtime": values.get("runtime") or "Core ML",
        "version": values.get("version", ""),
        "precision": values.get("precision") or "",
        "threads": _whole(values, "threads", None),
        "compute_units": COMPUTE_UNITS[units],
        "median_ms": _time(values["median"]) * factor,
        "source": values.get("source") or source,
        **{cost: _whole(values, cost, digits=15) for cost in COSTS},
    }


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _whole(values: dict[str, str], head: str, default: int | None = None, digits: int = 9) -> int | None:
    text = values.get(head, "")
    if not text:
        return default
    if not re.fullmatch(f"[0-9]{{1,{digits}}}", text) or int(text) == 0:
        raise ValueError(f"{head} {text!r}: a whole number from 1 to {10**digits - 1}")
    return int(text)


def _time(text: str) -> float:
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not _is_time(value):
        raise ValueError(f"median {text!r}: a time above 0, without its unit (that stands in the heading)")
    return value
