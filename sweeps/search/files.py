"""Searches by name: files of `ablations/searches`, or anywhere, and what they define in one setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from metamixer.config import ConfigError, override
from metamixer.plugins import load_module
from metamixer.training.run_config import RunConfig

from ..grid import GRIDS, from_file, question_of, setting_label
from .definition import Definition, Search, What
from .space import dimensions, keys_of, mixers, suggested_by

SEARCHES = GRIDS / "searches"
DRAWS = 300  # so many, as sizes that have to fit each other may leave few that do


@dataclass(frozen=True)
class LoadedSearch:
    """A search with its name and the question in its file's docstring."""

    name: str
    question: str
    search: Search

    def define(self, data: str | None = None, overrides: dict[str, Any] | None = None) -> Definition:
        """The search in one setting, everything in it checked.

        Args:
            data: which of the bases; the first if None.
            overrides: changes to the base by dotted key.

        Raises:
            ConfigError: no such setting, no validation images, a known configuration outside the space, or a key that
                is none of the base's.
        """
        search = self.search
        setting = data or next(iter(search.bases))
        if setting not in search.bases:
            raise ConfigError(f"no setting {setting!r}; the search has {', '.join(search.bases)}")
        for source in search.modules:
            load_module(source)
        base = override(search.bases[setting], overrides or {})
        if not base.data.val_samples:
            raise ConfigError("a search chooses on validation images: give the base some, e.g. data.val_samples=1000")
        what = {key: getattr(search, key) for key in What.model_fields}
        label = setting_label(setting, overrides or {})
        definition = Definition(**what, name=self.name, setting=label, question=self.question, base=base.to_dict())
        self._check(definition, base)
        return definition

    def _check(self, definition: Definition, base: RunConfig) -> None:
        """There is something to choose, every option makes a run, every known configuration lies in the space."""
        for mixer in mixers(definition.space):
            mixer.check()
        if not list(dimensions(definition.space)):
            raise ConfigError("the space has nothing to choose from")
        before = list[str]()
        for name, node in definition.space.items():
            for key in keys_of(name, node):
                hidden = next((each for each in before if _covers(key, each)), None)
                if hidden is not None:
                    raise ConfigError(
                        f"{key} comes after {hidden}, which would have no effect: put it before or leave one out"
                    )
            before += keys_of(name, node)
        for name, changes in definition.known.items():
            try:
                definition.parameters_of(base, override(base, changes))
            except ConfigError as error:
                raise ConfigError(f"known {name!r}: {error}") from None
        _check_options(definition, base)


def _covers(key: str, other: str) -> bool:
    """Whether setting `key` sets all of `other`."""
    parts, others = key.split("."), other.split(".")
    pairs = zip(parts, others, strict=False)
    return len(parts) <= len(others) and all(part in ("*", own) for part, own in pairs)


def _check_options(definition: Definition, base: RunConfig) -> None:
    """Every option makes a run with some choice of all else: a misspelt one would never be tried, and nobody be told.

    Raises:
        ConfigError: one makes none; the line says which and why.
    """
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    whole, problem = ("", None), ""
    met: dict[tuple[str, Any], dict[str, Any]] = {whole: {}}  # each option, by parameter and label, and what it is in
    good = set[tuple[str, Any]]()
    while waiting := [option for option in met if option not in good]:
        for _ in range(DRAWS):
            drawn.enqueue_trial(met[waiting[0]])
            trial = drawn.ask()
            try:
                definition.run(base, suggested_by(trial))
                good |= {whole, *trial.params.items()}
            except ValueError as error:
                problem = str(error)
            for name, distribution in trial.distributions.items():
                above = {n: label for n, label in trial.params.items() if name.startswith(f"{n}[{label}]")}
                for label in distribution.choices if isinstance(distribution, CategoricalDistribution) else ():
                    met.setdefault((name, label), {**above, name: label})
            if waiting[0] in good:
                break
        else:
            name, label = waiting[0]
            what = f"{name}: option {label!r}: " if name else ""
            raise ConfigError(f"{what}none of {DRAWS} draws from the space makes a run: {problem}")


def search_questions() -> dict[str, str]:
    """The searches that ship with the project and their questions; imports none of them."""
    return {path.stem: question_of(path) for path in sorted(SEARCHES.glob("*.py")) if path.stem != "__init__"}


def load_search(name: str, more_modules: tuple[str, ...] = ()) -> LoadedSearch:
    """A search by the name of its file in `ablations/searches`, or by the path of a file anywhere.

    Raises:
        ConfigError: no such search, or a file that does not make one; the line says where.
    """
    path = Path(name) if name.endswith(".py") else SEARCHES / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        raise ConfigError(f"no search {name!r}; there are {', '.join(search_questions())}, or give a file's path")
    return LoadedSearch(path.stem, question_of(path), from_file(path, "SEARCH", Search, more_modules))
