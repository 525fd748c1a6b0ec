"""The grid that confirms what a search found: its best trials with other seeds, on the test samples."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FixedTrial

from metamixer.config import ConfigError

from .search import LoadedSearch
from .trials import best_trials, find_search, study_of

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


def confirm(root: Path, loaded: LoadedSearch, top: int, seeds: Sequence[int] | None, path: Path) -> None:
    """Write a grid of the best trials and the first known configuration (the base, if there is none).

    Args:
        seeds: three that the search did not use, if None.
        path: its file.

    Raises:
        ConfigError: nothing was searched, or no trial is done.
        OSError: the file is there already, or can't be written.
    """
    study = study_of(find_search(root, loaded.name, loaded.data))
    if not (found := best_trials(study)):
        raise ConfigError("no trial is done yet: there is nothing to confirm")
    first = next((trial for trial in study.trials if trial.user_attrs["source"] != "sampler"), None)
    base = first.user_attrs["source"] if first else "base"
    chosen = [trial for trial in found if first is None or trial.number != first.number][:top]
    changes = {base: loaded.changes(FixedTrial(first.params)) if first else {}}
    changes |= {f"trial_{trial.number}": loaded.changes(FixedTrial(trial.params)) for trial in chosen}
    own = loaded.base.seed
    text = GRID.format(
        name=loaded.name,
        data=loaded.data,
        base=base,
        config=pprint.pformat({**loaded.base.to_dict(), "modules": []}, width=100, sort_dicts=False),
        changes=pprint.pformat(changes, width=100, sort_dicts=False),
        seeds=tuple(seeds or range(own + 1, own + 4)),
        modules=loaded.search.modules,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
