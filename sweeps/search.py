"""Searches: base runs, a function that proposes changes to them, what is sought and what it may cost."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import optuna
from optuna.trial import FixedTrial
from pydantic import AfterValidator, Field

from metamixer.config import SCHEMA_VERSION, ConfigError, override
from metamixer.training.run_config import RunConfig

from .grid import Question, as_json, data_label
from .iso_cost import check_measure
from .questions import GRIDS, find_file, from_file, grid_questions, question_of

SEARCHES = GRIDS / "searches"

# macs, params, or latency:RUNTIME in units of the base's
CostName = Annotated[str, AfterValidator(check_measure)]


class Search(Question):
    """A search as the author of its file writes it.

    Attributes:
        propose: takes a trial of Optuna, asks it for parameters (`trial.suggest_categorical` and so on), and returns
            changes of the base by dotted key. A ValueError means that these parameters make no run.
        minimize: costs that are sought as low as possible, beside the best value of the task's first metric.
        constraints: the most that a trial may cost; one above it is never trained.
        known: parameters of configurations that are tried first, by name.
        sampler_seed: seed of the sampler, Optuna's TPE.
        trials: how many have to end.
    """

    propose: Callable[[Any], dict[str, Any]]
    minimize: tuple[CostName, ...] = ()
    constraints: dict[CostName, Annotated[float, Field(gt=0)]] = {}
    known: dict[str, dict[str, Any]] = {}
    sampler_seed: int = Field(default=0, ge=0)
    trials: int = Field(default=40, gt=0)


@dataclass(frozen=True)
class LoadedSearch:
    """A search on one data set or task, with its name and the question in its file's docstring."""

    name: str
    question: str
    data: str
    search: Search
    base: RunConfig

    def about(self) -> dict[str, Any]:
        """The content of `search.json`: what the trials of a search have in common, as JSON types."""
        metric = asdict(self.base.metrics[0])
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "setting": self.data,
            "question": self.question,
            "metric": metric,
            "objectives": [metric["name"], *self.search.minimize],
            "constraints": self.search.constraints,
            "base": self.base.identity(),
        }

    def changes(self, trial: optuna.trial.Trial | FixedTrial) -> dict[str, Any]:
        """What a trial changes in the base, as JSON types by dotted key.

        Raises ValueError: the search's function fails, or says that these parameters make no run.
        """
        try:
            changes = as_json(self.search.propose(trial))
        except ValueError:
            raise
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[:2][-1]
            raise ConfigError(f"{at.filename}:{at.lineno}: {type(error).__name__}: {error}") from None
        if not isinstance(changes, dict):
            raise ConfigError(f"propose returned {changes!r}: return changes by dotted key, as a dict")
        return changes

    def config(self, trial: optuna.trial.Trial | FixedTrial) -> RunConfig:
        """The run of a trial; a ValueError if its parameters make none."""
        return override(self.base, self.changes(trial))


def search_questions() -> dict[str, str]:
    """The searches that ship with the project and their questions; imports none of them."""
    return grid_questions(SEARCHES)


def load_search(
    name: str, data: str | None = None, overrides: dict[str, Any] | None = None, more_modules: Sequence[str] = ()
) -> LoadedSearch:
    """A search on one data set or task, by the name of its file in `ablations/searches` or by a path.

    Args:
        data: which of the bases; the first if None.
        overrides: changes to the base by dotted key.
        more_modules: absolute paths of files that register operations, besides the search's own.

    Raises ConfigError: no such search or data, no validation samples, or a file that makes no search.
    """
    path = find_file(name, SEARCHES, "search")
    search = from_file(path, "SEARCH", Search, more_modules)
    base = search.start(data, overrides)
    if not base.data.val_samples:
        raise ConfigError("a search chooses on validation samples: give the base some, e.g. data.val_samples=1000")
    label = data_label(data or next(iter(search.bases)), overrides or {})
    return LoadedSearch(path.stem, question_of(path), label, search, base)
