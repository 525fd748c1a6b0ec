"""What other programs measured, as rows: a table in CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from ..config import ConfigError, parse
from .rows import Row

# headings, and the fields of a row that they stand for
NEEDED = {"model": "name", **{name: name for name in ("resolution", "device", "os", "runtime")}}
NEEDED |= {"compute units": "compute_units", "median (ms)": "median_ms"}
OPTIONAL = ("version", "precision", "batch", "threads", "source", "parameters", "macs", "activations", "moved")


class _Line(Row):
    """A row of a table, whose cells are texts."""

    model_config = ConfigDict(strict=False)


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
    """Rows of a table with the columns `NEEDED`, and perhaps some of `OPTIONAL`.

    The model is a timm name or a run's hash; names are taken as they are.

    Raises ConfigError: a missing or unknown column, or a row's value that can't be; the line names the row.
    """
    name = Path(path).name
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        head, *lines = [[cell.strip() for cell in line] for line in csv.reader(file)] or [[]]
    heads = [cell.lower() for cell in head]
    unknown = [cell for cell in heads if cell not in (*NEEDED, *OPTIONAL)]
    if unknown or not NEEDED.keys() <= set(heads):
        raise ConfigError(
            f"{name}: row 1: {f'column {unknown[0]!r} is unknown; ' if unknown else ''}"
            f"the columns are {', '.join(NEEDED)}, and if you like {', '.join(OPTIONAL)}"
        )
    rows: list[Row] = []
    for number, cells in enumerate(lines, 2):
        if not any(cells):
            continue
        if len(cells) != len(heads):
            raise ConfigError(f"{name}: row {number}: {len(cells)} cells under {len(heads)} headings")
        filled = [(head, cell) for head, cell in zip(heads, cells, strict=True) if cell or head in NEEDED]
        values = {NEEDED.get(head, head): cell for head, cell in filled}
        rows.append(parse(_Line, {"source": name, "network": values["name"], **values}, f"{name}: row {number}"))
    if not rows:
        raise ConfigError(f"{name}: no rows below the headings")
    return rows
