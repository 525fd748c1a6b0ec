"""The grid that confirms what a search found: its best trials with other seeds, on the test samples."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamixer.config import ConfigError, digest

from .search import Definition
from .trials import best_trials, find_search, proposals, study_of

GRID = '''"""Does what the search {name} found on {data} hold, over seeds and on the test samples?

The best trials by their validation score against {base}. Written by `launch.py confirm`; seeds are not those of the
search, as its own score is the best of many.
"""

from metamixer.config import parse
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

BASE = {config}
CHANGES = {changes}

GRID = Grid(
    bases={{{data!r}: parse(RunConfig, BASE)}},
    base={base!r},
    variants={{name: Variant(changes=changes) for name, changes in CHANGES.items()}},
    seeds={seeds},
    modules={modules},
)
'''


def confirm(root: Path, definition: Definition, top: int, seeds: Sequence[int] | None, path: Path) -> None:
    """Write a grid of the best trials and the first known configuration (the base, if there is none).

    Args:
        seeds: three that the search did not use, if None.
        path: its file.

    Raises:
        ConfigError: nothing was searched, or no trial is done.
        OSError: the file is there already, or can't be written.
    """
    folder = find_search(root, definition.name, definition.data)
    found, rows = best_trials(study_of(folder), top + 1), proposals(folder)
    if not found:
        raise ConfigError("no trial is done yet: there is nothing to confirm")
    base, reference, changes = "base", definition.base, dict[str, Any](base={})
    for base in list(definition.search.known)[:1]:
        known = definition.known(base)
        reference, changes = definition.config(known), {base: definition.changes(known)}
    chosen = [rows[trial.number] for trial in found if trial.user_attrs["hash"] != digest(reference)][:top]
    changes |= {f"trial_{row['trial']}": row["changes"] for row in chosen}
    own = definition.base.seed
    text = GRID.format(
        name=definition.name,
        data=definition.data,
        base=base,
        config=pprint.pformat({**definition.base.to_dict(), "modules": []}, width=100, sort_dicts=False),
        changes=pprint.pformat(changes, width=100, sort_dicts=False),
        seeds=tuple(seeds or range(own + 1, own + 4)),
        modules=definition.search.modules,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
