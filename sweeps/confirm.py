"""The grid that confirms what a search found: its best trials with other seeds, on the test images."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FixedTrial

from metamixer.config import ConfigError, digest, override
from metamixer.training.folder import RunFolder

from .search import Definition
from .space import changes_of, suggested_by
from .trials import best_trials, find_search, make_study

GRID = '''"""Does what the search {name} found on {setting} hold, over seeds and on the test images?

The {count} best trials by validation top-1 against {base}. Written by `launch.py confirm`; seeds are not those of the
search, as its own top-1 is the best of many.
"""

from metamixer.config import parse
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

BASE = {config}

GRID = Grid(
    bases={{{setting!r}: parse(RunConfig, BASE)}},
    base={base!r},
    variants={{
{variants}
    }},
    seeds={seeds},
    modules={modules},
)
'''


def confirm(root: Path, definition: Definition, top: int, seeds: Sequence[int] | None, out: Path | None) -> Path:
    """Write a grid of the best trials and the first known configuration (the base, if there is none).

    Args:
        seeds: three that the search did not use, if None.
        out: its file, `confirm_NAME.py` if None.

    Raises:
        ConfigError: nothing was searched, no trial is done, or another file stands there.
        OSError: the file can't be written.
    """
    folder = find_search(root, definition.name, definition.setting)
    study = make_study(root, folder, RunFolder(folder).read("search.json") or {})
    name, changes = next(iter(definition.search.known.items()), ("base", {}))
    reference = digest(override(definition.base, changes))
    found = best_trials(study, top + 1)
    if not found:
        raise ConfigError("no trial is done yet: there is nothing to confirm")
    chosen = [trial for trial in found if trial.user_attrs["hash"] != reference][:top]
    space = definition.search.space
    variants = {name: changes} | {
        f"trial_{trial.number}": changes_of(space, suggested_by(FixedTrial(trial.params))) for trial in chosen
    }
    rows = [
        f"        {variant!r}: Variant(changes={pprint.pformat(values, width=100, sort_dicts=False)}),"
        for variant, values in variants.items()
    ]
    own = definition.base.seed
    text = GRID.format(
        name=definition.name,
        setting=definition.setting,
        count=len(chosen),
        base=name,
        config=pprint.pformat({**definition.base.to_dict(), "modules": []}, width=100, sort_dicts=False),
        variants="\n".join(rows),
        seeds=tuple(seeds or range(own + 1, own + 4)),
        modules=definition.search.modules,
    )
    path = out or Path(f"confirm_{definition.name}.py")
    if path.exists() and path.read_bytes() != text.encode():  # of another setting, or edited since
        raise ConfigError(f"{path}: another file stands there: name one with --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path
