"""Searches by name: files of `ablations/searches`, or anywhere, and what they define in one setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from metamixer.config import ConfigError, override
from metamixer.training.config import RunConfig, UserModule

from ..grid import GRIDS, from_file, question_of, setting_label
from .definition import Definition, Search, What
from .space import dimensions, mixers, suggested_by

SEARCHES = GRIDS / "searches"
DRAWS = 100


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
        modules = [UserModule.of(source) for source in search.modules]
        base = override(override(search.bases[setting], {"modules": modules}), overrides or {})
        if not base.data.val_samples:
            raise ConfigError("a search chooses on validation images: give the base some, e.g. data.val_samples=1000")
        what = {key: getattr(search, key) for key in What.model_fields}
        label = setting_label(setting, overrides or {})
        definition = Definition(**what, name=self.name, setting=label, question=self.question, base=base.to_dict())
        self._check(definition, base)
        return definition

    def _check(self, definition: Definition, base: RunConfig) -> None:
        """There is something to choose, some choice makes a run, and every known configuration lies in the space."""
        for mixer in mixers(definition.space):
            mixer.check()
        if not list(dimensions(definition.space)):
            raise ConfigError("the space has nothing to choose from")
        for name, changes in definition.known.items():
            try:
                definition.parameters_of(base, override(base, changes))
            except ConfigError as error:
                raise ConfigError(f"known {name!r}: {error}") from None
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(DRAWS):
            try:
                definition.run(base, suggested_by(drawn.ask()))
                return
            except ValueError as error:
                problem = str(error)
        raise ConfigError(f"none of {DRAWS} draws from the space makes a run: {problem}")


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
