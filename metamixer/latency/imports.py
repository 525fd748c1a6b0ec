"""What other programs measured, as rows: a table in CSV."""

from __future__ import annotations

import csv
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
