"""Other programs' measurements as rows: a table in CSV, or a performance report of Xcode."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from ..config import Config, ConfigError, explain, parse
from .rows import Row, Text

UNITS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
NEEDED = ("model", "resolution", "device", "os", "runtime", "compute units", "median")
OPTIONAL = ("version", "precision", "batch", "threads", "source", "parameters", "macs", "activations", "moved")
_OF_REPORT = ("CPU", "CPU+GPU", "all", "CPU+NE")  # MLComputeUnits, as a report has them


_HEADS = {"name": "model", "compute_units": "compute units", "median_ms": "median"}


class _Line(Row):
    """A row of a table, whose cells are texts, by its headings."""

    model_config = ConfigDict(strict=False, alias_generator=lambda name: _HEADS.get(name, name))


class _Part(Config):
    """Of what another program wrote; the rest isn't read."""

    model_config = ConfigDict(extra="ignore")


class _Metadata(_Part):
    fileName: Text


class _Device(_Part):
    modelName: Text
    osNameAndVersionWithoutBuildNumber: Text


class _Predictions(_Part):
    samples: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)  # seconds


class _Results(_Part):
    predict: _Predictions


class _XcodeReport(_Part):
    """What of a report is read; its form is known from programs that read it. It names its device's owner too."""

    modelMetadata: _Metadata
    deviceInfo: _Device
    computeUnit: Literal[0, 1, 2, 3]
    deviceResults: _Results


def read(path: str | Path, root: str | Path, model: str | None = None, resolution: int | None = None) -> list[Row]:
    """Rows of a file, by its kind: a table (.csv) or an Xcode report (.mlperf, or its report.json).

    Args:
        root: folder of the runs; the resolution of one of them is known.
        model: what a report measured, in place of its file's name.
        resolution: of a report's model, which does not say.

    Raises:
        ConfigError: the file can't be read; the line names the row or key.
    """
    path = Path(path)
    if path.suffix == ".csv":
        if model or resolution:
            raise ConfigError(f"{path.name}: a table has columns for model and resolution; leave out the options")
        return read_csv(path)
    if path.suffix not in (".mlperf", ".json"):
        raise ConfigError(f"{path}: neither a table (.csv) nor an Xcode report (.mlperf, or its report.json)")
    return [_read_report(path, Path(root), model, resolution)]


def add_costs(rows: list[Row], root: str | Path) -> list[str]:
    """Give a run's rows the key of its network, and all rows the costs that they lack, as `measure` counts them.

    Returns:
        A line for each name that no network can be made of, or that nothing counts: its rows stay as they are.
    """
    from ..networks import find_network  # loads torch, which reading rows does without
    from .measure import COSTS, Subject

    known: dict[tuple[str, int], dict[str, Any]] = {}
    notes = []
    for i, row in enumerate(rows):
        network = row.name, row.resolution
        folder = Path(root) / row.name
        run = (folder / "config.json").is_file()
        lacks = [cost for cost in COSTS if getattr(row, cost) is None]
        if network not in known and (run or lacks):
            known[network] = {}
            try:
                subject = Subject(find_network(str(folder) if run else row.name, row.resolution))
                known[network]["network"] = subject.key if run else row.name
                known[network] |= subject.costs()
            except ValueError as error:
                notes.append(f"kept without costs: {row.name!r}: {str(error).removeprefix(f'{row.name!r}: ')}")
        found = known.get(network, {})
        rows[i] = row.model_copy(update={name: found[name] for name in ("network", *lacks) if name in found})
    return notes


def _read_report(path: Path, root: Path, model: str | None, resolution: int | None) -> Row:
    file = path / "report.json" if path.is_dir() else path
    try:
        report = parse(_XcodeReport, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or 'no JSON'}") from None
    name = model or re.sub(r"\.ml(package|model|modelc)$", "", report.modelMetadata.fileName)
    if resolution is None:
        config = root / name / "config.json"
        if not config.is_file():
            raise ConfigError(f"{path.name}: a report does not say its resolution: give --resolution")
        resolution = json.loads(config.read_text())["config"]["data"]["image_size"]
    ms = 1e3 * np.array(report.deviceResults.predict.samples)
    return Row(
        network=name,
        name=name,
        resolution=resolution,
        device=report.deviceInfo.modelName,
        os=report.deviceInfo.osNameAndVersionWithoutBuildNumber,
        runtime="Core ML",
        compute_units=_OF_REPORT[report.computeUnit],
        median_ms=float(np.median(ms)),
        iqr_ms=float(np.subtract(*np.percentile(ms, [75, 25]))),
        sessions=1,
        source="Xcode report",
        samples_ms=(tuple(round(float(sample), 4) for sample in ms),),
    )


def read_csv(path: str | Path) -> list[Row]:
    """Rows of a table with the columns `NEEDED`, the median's unit in its heading: `median (ms)`, or s, or us.

    More columns may be those of `OPTIONAL`. The model is a timm name or a run's hash; names are taken as they are.

    Raises:
        ConfigError: a missing or unknown column, a unit, or a row's value that can't be; the line names the row.
    """
    name = Path(path).name
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            heads, *lines = csv.reader(file, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as error:  # a quote that is never closed swallows rows
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError:
        raise ConfigError(f"{name}: row 1: no headings; they are {', '.join(NEEDED)} (ms)") from None
    columns, factor = _columns(name, heads)
    rows: list[Row] = []
    for number, cells in enumerate(lines, 2):
        stripped = [cell.strip() for cell in cells]
        if not any(stripped):
            continue
        if len(cells) != len(columns):
            raise ConfigError(f"{name}: row {number}: {len(cells)} cells under {len(columns)} headings")
        filled = zip(columns, stripped, strict=True)
        values = {column: cell for column, cell in filled if cell or column in NEEDED}
        try:
            row = _Line.model_validate({"source": name, "network": values.get("model", "?"), **values})
        except ValidationError as error:
            raise ConfigError(f"{name}: row {number}: {explain(error, _Line)}") from None
        units = row.compute_units.replace(" ", "").upper().replace("ALL", "all")
        rows.append(row.model_copy(update={"median_ms": row.median_ms * factor, "compute_units": units}))
    if not rows:
        raise ConfigError(f"{name}: no rows below the headings")
    return rows


def _columns(name: str, heads: list[str]) -> tuple[list[str], float]:
    """The headings without the unit of the median, and what makes milliseconds of it."""
    factor, found = None, []
    for cell in heads:
        head, _, unit = cell.strip().lower().partition(" (")
        if head == "median":
            if unit.removesuffix(")") not in UNITS:
                raise ConfigError(f"{name}: row 1: {cell!r}: name the unit as in `median (ms)`: {', '.join(UNITS)}")
            factor = UNITS[unit.removesuffix(")")]
        if head not in (*NEEDED, *OPTIONAL):
            raise ConfigError(f"{name}: row 1: unknown column {cell!r}; there are {', '.join((*NEEDED, *OPTIONAL))}")
        if head in found:
            raise ConfigError(f"{name}: row 1: column {cell!r} twice")
        found.append(head)
    if missing := [head for head in NEEDED if head not in found]:
        raise ConfigError(f"{name}: row 1: no column {missing[0]!r}; needed are {', '.join(NEEDED)} (ms)")
    assert factor is not None
    return found, factor
