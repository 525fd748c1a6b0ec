"""What other programs measured, as rows: a table in CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from ..config import ConfigError, explain
from .rows import Row

UNITS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
NEEDED = ("model", "resolution", "device", "os", "runtime", "compute units", "median")
OPTIONAL = ("version", "precision", "batch", "threads", "source", "parameters", "macs", "activations", "moved")

_HEADS = {"name": "model", "compute_units": "compute units", "median_ms": "median"}


class _Line(Row):
    """A row of a table, whose cells are texts, by its headings."""

    model_config = ConfigDict(strict=False, alias_generator=lambda name: _HEADS.get(name, name))


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
        folder, network = Path(root) / row.name, (row.name, row.resolution)
        run = (folder / "config.json").is_file()
        lacks = [cost for cost in COSTS if getattr(row, cost) is None]
        if network not in known and (run or lacks):
            known[network] = {}
            try:
                subject = Subject(find_network(str(folder) if run else row.name, row.resolution))
                known[network] = {"network": subject.key if run else row.name, **subject.costs()}
            except ValueError as error:
                notes.append(f"kept without costs: {row.name!r}: {str(error).removeprefix(f'{row.name!r}: ')}")
        found = known.get(network, {})
        rows[i] = row.model_copy(update={name: found[name] for name in ("network", *lacks) if name in found})
    return notes


def read_csv(path: str | Path) -> list[Row]:
    """Rows of a table with the columns `NEEDED`, the median's unit in its heading: `median (ms)`, or s, or us.

    More columns may be those of `OPTIONAL`. The model is a timm name or a run's hash; names are taken as they are.

    Raises:
        ConfigError: a missing or unknown column, a unit, or a row's value that can't be; the line names the row.
    """
    name = Path(path).name
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:  # a quote that is never closed swallows rows
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    heads = [cell.strip().lower() for cell in lines[0]] if lines else []
    unit = next((found[1] for head in heads if (found := re.fullmatch(r"median \((ms|s|us|µs)\)", head))), None)
    columns = [head.partition(" (")[0] for head in heads]
    wrong = [head for head in columns if head not in (*NEEDED, *OPTIONAL) or columns.count(head) > 1]
    if unit is None or wrong or not set(NEEDED) <= set(columns):
        raise ConfigError(
            f"{name}: row 1: " + (f"column {wrong[0]!r} is unknown or there twice; " if wrong else "")
            + f"the columns are {', '.join(NEEDED)} (ms, s or us), and if you like {', '.join(OPTIONAL)}"
        )  # fmt: skip
    rows: list[Row] = []
    for number, cells in enumerate(lines[1:], 2):
        stripped = [cell.strip() for cell in cells]
        if not any(stripped):
            continue
        if len(cells) != len(columns):
            raise ConfigError(f"{name}: row {number}: {len(cells)} cells under {len(columns)} headings")
        filled = zip(columns, stripped, strict=True)
        values = {column: cell for column, cell in filled if cell or column in NEEDED}
        try:
            row = _Line.model_validate({"source": name, "network": values["model"], **values})
        except ValidationError as error:
            raise ConfigError(f"{name}: row {number}: {explain(error, _Line)}") from None
        units = row.compute_units.replace(" ", "").upper().replace("ALL", "all")
        rows.append(row.model_copy(update={"median_ms": row.median_ms * UNITS[unit], "compute_units": units}))
    if not rows:
        raise ConfigError(f"{name}: no rows below the headings")
    return rows
