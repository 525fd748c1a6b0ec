"""The grid that confirms what a search found: its best trials with other seeds, on the test images."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from metamixer.config import ConfigError, digest, override

from .definition import Definition
from .study import search_folder
from .trials import Owner, Trials


def confirm_search(root: Path, definition: Definition, top: int, seeds: Sequence[int] | None, out: Path | None) -> Path:
    """Write the grid's file, `confirm_NAME.py` unless said otherwise, with three seeds that the search did not use.

    Raises:
        ConfigError: nothing was searched or no trial is done, the file can't be written, or another stands there.
    """
    trials = Trials(root, search_folder(root, definition.label), Owner.here("reader"))
    own = trials.base.seed
    return write_confirming_grid(
        trials, top, tuple(seeds or range(own + 1, own + 4)), out or Path(f"confirm_{definition.name}.py")
    )


def best(trials: Trials, top: int) -> list[FrozenTrial]:
    """The best feasible trials, the most accurate first: of the front where costs are sought too.

    Raises:
        ConfigError: none is done.
    """
    done = [t for t in trials.all() if t.state == TrialState.COMPLETE and _feasible(t)]
    if not done:
        raise ConfigError("no trial is done yet: there is nothing to confirm")
    found = done if trials.single else list(trials.study.best_trials)
    return sorted(found, key=lambda trial: -trial.values[0])[:top]


def _feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


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


def write_confirming_grid(trials: Trials, top: int, seeds: tuple[int, ...], path: Path) -> Path:
    """A grid's file of the best trials and the first known configuration (the base, if there is none).

    Raises:
        ConfigError: no trial is done, the file can't be written, or one of other content stands there.
    """
    definition = trials.definition
    name, changes = next(iter(definition.known.items()), ("base", {}))
    reference = digest(override(trials.base, changes))
    chosen = [trial for trial in best(trials, top + 1) if trial.user_attrs["hash"] != reference][:top]
    variants = {name: changes}
    for trial in chosen:
        variants[f"trial_{trial.number}"] = definition.changes(partial(_parameter, trial))
    rows = [
        f"        {variant!r}: Variant(changes={pprint.pformat(values, width=100, sort_dicts=False)}),"
        for variant, values in variants.items()
    ]
    base = {**definition.base, "modules": []}
    text = GRID.format(
        name=definition.name,
        setting=definition.setting,
        count=len(chosen),
        base=name,
        config=pprint.pformat(base, width=100, sort_dicts=False),
        variants="\n".join(rows),
        seeds=seeds,
        modules=tuple(module["source"] for module in definition.base["modules"]),
    )
    try:
        if path.exists() and path.read_bytes() != text.encode():  # of another setting, or edited since
            raise ConfigError(f"{path}: another file stands there: name one with --out, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot write here ({error.strerror or error})") from None
    return path


def _parameter(trial: FrozenTrial, name: str, _: BaseDistribution) -> Any:
    return trial.params[name]
