"""Searches: a base run, a space of changes to it, what is sought and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial
from pydantic import Field

from metamixer.config import SCHEMA_VERSION, Config, ConfigError, override, parse
from metamixer.plugins import load_module
from metamixer.training.run_config import RunConfig

from .grid import data_label
from .questions import GRIDS, from_file, question_of
from .space import changes_of, keys_of, parameters_of, suggested_by

SEARCHES = GRIDS / "searches"
optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every trial

DRAWS = 100  # from a space, and as many with each option that made no run yet

CostName = Literal["macs", "params", "latency"]  # multiply-adds and parameters of the folded network, milliseconds


class Search(Config):
    """A search as the author of its file writes it.

    Attributes:
        bases: the base run for each setting (usually a data set); the first is the default.
        space: dimensions by dotted key (`sweeps.space`).
        objectives: `top1`, on validation images, first; with costs after it, the front of best trades is sought.
        constraints: the most that a trial may cost; one above it is recorded as infeasible and not trained.
        runtime: where latency is among those two, the runtime that is timed, e.g. "onnxruntime" (`launch.py bench`).
        known: changes of the base by dotted key that are tried first, by name; they must lie in the space.
        startup: trials before the sampler (Optuna's TPE) stops drawing at random; too costly ones count too, from which
            it learns what is within the limits.
        sampler_seed: seed of the sampler.
        trials: how many have to end.
        modules: files (their paths from the search's) that register operations of your own.
    """

    bases: dict[str, Any] = Field(min_length=1)  # str → RunConfig; pydantic would copy and re-validate them
    space: dict[str, Any] = Field(min_length=1)
    objectives: tuple[Literal["top1", "macs", "params", "latency"], ...] = ("top1",)
    constraints: dict[CostName, Annotated[float, Field(gt=0)]] = {}
    runtime: str | None = None
    known: dict[str, dict[str, Any]] = {}
    startup: int = Field(default=10, ge=0)
    sampler_seed: int = Field(default=0, ge=0)
    trials: int = Field(default=40, gt=0)
    modules: tuple[str, ...] = ()

    def model_post_init(self, _: Any) -> None:
        for setting, base in self.bases.items():
            if not isinstance(base, RunConfig):
                raise ConfigError(f"base {setting!r} must be a RunConfig, got {type(base).__name__}")
        if self.objectives[:1] != ("top1",) or len(set(self.objectives)) < len(self.objectives):
            raise ConfigError(f"objectives {self.objectives}: 'top1' first, then each cost at most once")
        timed = "latency" in (*self.objectives, *self.constraints)
        if timed and self.runtime is None:
            raise ConfigError('latency is sought or limited: name what is timed, e.g. runtime="onnxruntime"')
        if self.runtime is not None and not timed:
            raise ConfigError(f"runtime {self.runtime!r}, but latency is neither sought nor limited")


class About(Config):
    """The content of `search.json`: what the trials of a search have in common."""

    schema_version: int
    name: str
    setting: str
    question: str
    objectives: tuple[str, ...]
    constraints: dict[str, float]
    runtime: str | None
    base_latency: float | None  # milliseconds when the search was begun: the scale of every trial's latency
    space: dict[str, Any]
    base: dict[str, Any]


@dataclass(frozen=True)
class Definition:
    """A search in one setting."""

    name: str
    question: str
    setting: str
    search: Search
    base: RunConfig

    @property
    def label(self) -> str:
        return f"{self.name}@{self.setting}"

    def config(self, trial: optuna.trial.Trial | FixedTrial) -> RunConfig:
        """The run of a trial.

        Raises:
            ConfigError: its values make no run.
        """
        return override(self.base, changes_of(self.search.space, suggested_by(trial)))

    def about(self, base_latency: float | None = None) -> About:
        space = self.search.model_dump(mode="json", include={"space"})["space"]
        own = self.search.objectives, self.search.constraints, self.search.runtime
        return parse(About, dict(zip(About.model_fields, (
            SCHEMA_VERSION, self.name, self.setting, self.question, *own, base_latency, space, self.base.identity(),
        ), strict=True)))  # fmt: skip

    def dimensions(self) -> dict[str, BaseDistribution]:
        """Every parameter that a trial may have, met by drawing.

        Raises:
            ConfigError: nothing to choose; a key that a later one hides; an option that makes no run, e.g. a misspelt
                one; or a known configuration outside the space.
        """
        space = self.search.space
        keys = [key for name, node in space.items() for key in keys_of(name, node)]
        for number, key in enumerate(keys):
            hidden = next((each for each in keys[:number] if fnmatch(each, key) or fnmatch(each, f"{key}.*")), None)
            if hidden:
                raise ConfigError(f"{key} comes after {hidden} and sets it too: put it first or leave one out")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        met, good, problems = dict[str, BaseDistribution](), set[Any](), dict[Any, tuple[str, dict[str, Any]]]()

        def draw(fixed: dict[str, Any]) -> str:
            """What is wrong with a trial that has these parameters, the others at random; nothing if it makes a run."""
            study.enqueue_trial(fixed)
            trial, problem = study.ask(), ""
            try:
                self.config(trial)
                good.update(trial.params.items())
            except ValueError as error:
                problem = str(error)
                for option in trial.params.items():
                    problems.setdefault(option, (problem, dict(trial.params)))
            met.update(trial.distributions)
            return problem

        found = [draw({}) for _ in range(DRAWS)]
        if all(found):
            raise ConfigError(f"none of {DRAWS} draws makes a run: {found[0]}")
        if not met:
            raise ConfigError("the space has nothing to choose from")
        for (name, label), (problem, drawn) in list(problems.items()):
            inside = {each: value for each, value in drawn.items() if name.startswith(f"{each}[{value}]")}
            categorical = isinstance(met[name], CategoricalDistribution)
            if categorical and all((name, label) not in good and draw({**inside, name: label}) for _ in range(DRAWS)):
                raise ConfigError(f"{name}: option {label!r} makes no run: {problem}")
        for name, changes in self.search.known.items():
            try:
                parameters_of(space, self.base, override(self.base, changes))
            except ConfigError as error:
                raise ConfigError(f"known {name!r}: {error}") from None
        return met


def search_questions() -> dict[str, str]:
    """The searches that ship with the project and their questions; imports none of them."""
    return {path.stem: question_of(path) for path in sorted(SEARCHES.glob("*.py")) if path.stem != "__init__"}


def load_search(
    name: str, data: str | None = None, overrides: dict[str, Any] | None = None, more_modules: tuple[str, ...] = ()
) -> Definition:
    """A search in one setting, by the name of its file in `ablations/searches` or by the path of a file anywhere.

    Args:
        data: which of the bases; the first if None.
        overrides: changes to the base by dotted key.
        more_modules: absolute paths of files that register operations, besides the search's own.

    Raises:
        ConfigError: no such search or setting, no validation images, or a file that makes no search.
    """
    path = Path(name) if name.endswith(".py") else SEARCHES / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        raise ConfigError(f"no search {name!r}; there are {', '.join(search_questions())}, or give a file's path")
    search = from_file(path, "SEARCH", Search, more_modules)
    setting = data or next(iter(search.bases))
    if setting not in search.bases:
        raise ConfigError(f"no setting {setting!r}; the search has {', '.join(search.bases)}")
    for source in search.modules:
        load_module(source)
    base = override(search.bases[setting], overrides or {})
    if not base.data.val_samples:
        raise ConfigError("a search chooses on validation images: give the base some, e.g. data.val_samples=1000")
    label = data_label(setting, overrides or {})
    return Definition(path.stem, question_of(path), label, search, base)
