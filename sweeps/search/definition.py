"""Searches: a base run, a space of changes to it, what is sought and what it may cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from metamixer.config import SCHEMA_VERSION, Config, ConfigError, differences, digest, override, parse
from metamixer.cost import Cost
from metamixer.training.run_config import RunConfig

from ..latency import Clock
from ..match import cost
from .match import match_space
from .space import Node, Suggest, resolve_space

CostName = Literal["macs", "params", "latency"]  # multiply-adds and parameters of the folded network, milliseconds
Objective = Literal["top1", "macs", "params", "latency"]
Limit = Annotated[float, Field(gt=0)]


class Pruning(Config):
    """A trial ends early once it is below the median of the others at the same epoch (Optuna's MedianPruner).

    `startup` trials end without it, and no trial before epoch `warmup`.
    """

    startup: int = Field(default=5, ge=0)
    warmup: int = Field(default=1, ge=0)


class What(Config):
    """What a search and the study that it makes have in common.

    Attributes:
        space: dimensions by dotted key (`sweeps.search.space`).
        objectives: `top1`, on validation images, first; with costs after it, the front of best trades is sought.
        constraints: what a trial may cost at most; one above it is recorded as infeasible, not trained.
        runtime: where latency is among those two, what it is measured on, e.g. "onnxruntime" (`launch.py bench`).
        pruning: for a search of accuracy alone.
        known: changes of the base by dotted key that are tried first, by name; they must lie in the space.
        startup: trials before the sampler (Optuna's TPE) stops drawing at random; too costly ones count too, from which
            it learns what is within the limits.
        draws: seed of the sampler.
    """

    space: dict[str, Node] = Field(min_length=1)
    objectives: tuple[Objective, ...] = ("top1",)
    constraints: dict[CostName, Limit] = {}
    runtime: str | None = None
    pruning: Pruning | None = None
    known: dict[str, dict[str, Any]] = {}
    startup: int = Field(default=10, ge=0)
    draws: int = Field(default=0, ge=0)

    @property
    def times(self) -> bool:
        """Whether latency is sought or limited."""
        return "latency" in (*self.objectives, *self.constraints)

    def model_post_init(self, _: Any) -> None:
        if self.objectives[:1] != ("top1",) or len(set(self.objectives)) < len(self.objectives):
            raise ConfigError(f"objectives {self.objectives}: 'top1' first, then each cost at most once")
        if self.times and self.runtime is None:
            raise ConfigError('latency is sought or limited, but on what? Name it, e.g. runtime="onnxruntime"')
        if self.runtime is not None and not self.times:
            raise ConfigError(f"runtime {self.runtime!r}, but latency is neither sought nor limited")
        if self.pruning is not None and len(self.objectives) > 1:
            raise ConfigError(
                f"objectives {self.objectives} can't be pruned: seek top1 alone and put the costs into constraints"
            )


class Search(What):
    """A search as a file's author writes it, with a base run for each setting, the first of which is the default.

    `trials` is how many have to finish; `modules` register operations of your own, as in a grid.
    """

    bases: dict[str, Any] = Field(min_length=1)  # str → RunConfig
    trials: int = Field(default=40, gt=0)
    modules: tuple[str, ...] = ()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        for setting, base in self.bases.items():
            if not isinstance(base, RunConfig):
                raise ConfigError(f"base {setting!r} must be a RunConfig, got {type(base).__name__}")


class Definition(What):
    """A search in one setting, complete as JSON: what its study must not change while it lasts."""

    name: str
    setting: str
    question: str
    base: dict[str, Any]  # RunConfig as JSON: a worker reads it with its own copies of the modules

    @property
    def label(self) -> str:
        return f"{self.name}@{self.setting}"

    def base_run(self) -> RunConfig:
        return parse(RunConfig, self.base)

    def changes(self, suggest: Suggest) -> dict[str, Any]:
        """What a trial changes in the base, by dotted key."""
        return resolve_space(self.space, suggest)

    def run(self, base: RunConfig, suggest: Suggest) -> RunConfig:
        """A trial's run.

        Raises:
            ValueError: the values do not fit together.
        """
        return override(base, self.changes(suggest))

    def parameters_of(self, base: RunConfig, config: RunConfig) -> dict[str, Any]:
        """The parameters that make `config`.

        Raises:
            ConfigError: it does not lie in the space.
        """
        parameters = match_space(self.space, base, config)
        made = self.run(base, lambda name, _: parameters[name])
        if digest(made) != digest(config):
            keys = differences(made, config)
            raise ConfigError(f"{', '.join(keys)}: not in the search's space, and not as in its base")
        return parameters

    def costs(self, config: RunConfig, measure: Clock | None = None, counted: Cost | None = None) -> dict[str, float]:
        """What the run's network costs; latency only if `measure` is there and nothing else is over its limit.

        Args:
            counted: its multiply-adds and parameters, if they were counted before.

        Raises:
            ValueError: its sizes do not fit each other.
        """
        counted = counted or cost(config)
        found: dict[str, float] = {"macs": counted.macs, "params": counted.parameters}
        if measure is not None and self.times and not any(excess > 0 for excess in self.excess(found).values()):
            found["latency"] = measure(config)
        return found

    def excess(self, costs: dict[str, float]) -> dict[str, float]:
        """How far each limited cost is above its limit, as a share of it; below 0 where it is within."""
        return {name: costs[name] / limit - 1 for name, limit in self.constraints.items() if name in costs}

    def fixed(self) -> Config:
        """What a study's trials have in common: this must not change, the rest may."""
        modules = [module["digest"] for module in self.base["modules"]]  # where they lie does not matter
        return self.model_copy(update={"base": {**self.base, "modules": modules}, "question": "", "known": {}})


def changed(before: Definition, now: Definition) -> list[str]:
    """What differs between two definitions of one study, a line each."""
    found = differences(before.fixed(), now.fixed())
    return [f"{key}: {_shown(old)} → {_shown(new)}" for key, (old, new) in found.items()]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def schema_of(content: dict[str, Any]) -> None:
    """Refuse what another version wrote."""
    if content.get("schema") != SCHEMA_VERSION:
        raise ConfigError(f"search of schema {content.get('schema')}, this version reads {SCHEMA_VERSION}")
