"""The dimensions of a search: typed, nested, and never a combination of slots that do not fit.

A search's space is a dict: dotted keys of a run's configuration, each with a dimension or a value that holds some.
A dimension inside an option of `Choice` exists only where that option is chosen:

    "model.stages.*.token_mixer.query_key": Choice(options=(
        {"name": "depthwise", "kernel_size": Choice(options=(3, 5, 7))},
        "linear",
    ))

Each dimension becomes one parameter of Optuna, named by where it stands: `….query_key`, and, for what is inside an
option, `….query_key[depthwise].kernel_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from pydantic import AfterValidator, Field, model_validator

from metamixer.config import Config, ConfigError, parse
from metamixer.mixer import accepts, makes, takes
from metamixer.operation import SLOTS, Layout, Slot, resolve

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every trial

Suggest = Callable[[str, BaseDistribution], Any]
Label = str | int | float | bool | None


def _decode(value: Any) -> Any:
    """The dimensions in a value that came as JSON, or as they are; everything else as JSON types."""
    if isinstance(value, Dimension):
        return value
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, dict) and value.get("dimension") in DIMENSIONS:
        return parse(DIMENSIONS[value["dimension"]], value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list | tuple) else value


Node = Annotated[Any, AfterValidator(_decode)]
Options = tuple[Node, ...] | dict[str, Node]


class Dimension(Config):
    """Base of all dimensions."""


class Integer(Dimension):
    """A whole number from `low` to `high`, both included."""

    dimension: Literal["integer"] = "integer"
    low: int
    high: int
    step: int = Field(default=1, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        _check_range(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ConfigError(f"step {self.step}: a logarithmic dimension has none")
        if beyond := (self.high - self.low) % self.step:
            right = self.high - beyond + self.step
            raise ConfigError(
                f"high {self.high} is no whole number of steps of {self.step} from low {self.low}: take {right}"
            )
        return self

    def distribution(self) -> BaseDistribution:
        return IntDistribution(self.low, self.high, self.log, self.step)


class Real(Dimension):
    """A number from `low` to `high`."""

    dimension: Literal["real"] = "real"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Real:
        _check_range(self.low, self.high, self.log)
        return self

    def distribution(self) -> BaseDistribution:
        return FloatDistribution(self.low, self.high, self.log)


def _check_range(low: float, high: float, log: bool) -> None:
    if low >= high:
        raise ConfigError(f"low {low} must be below high {high}")
    if log and low <= 0:
        raise ConfigError(f"low {low}: a logarithmic dimension begins above 0")


class Choice(Dimension):
    """One of several values, which may hold dimensions of their own.

    A number, a string or an operation's dict is known by itself or its name; other values, or an operation that is
    there twice, need labels: `options={"weak": [0.6, 1.0], "strong": [0.08, 1.0]}`.
    """

    dimension: Literal["choice"] = "choice"
    options: Options

    @model_validator(mode="after")
    def _labelled(self) -> Choice:
        labelled(self.options)
        return self


class Changes(Dimension):
    """One of several sets of changes by dotted key, for what changes together, as widths do; its key is a free name."""

    dimension: Literal["changes"] = "changes"
    options: dict[str, dict[str, Node]] = Field(min_length=2)


class Mixer(Dimension):
    """Four slots with options each, of which only those that fit each other by their layouts are ever combined.

    The query-key interaction is chosen first, then an activation and a coefficient-value interaction among those that
    work on the coefficients it makes. Where that set depends on the layout, the parameter's name says which:
    `….activation[token pairs]`.
    """

    dimension: Literal["mixer"] = "mixer"
    query: Options
    query_key: Options
    activation: Options
    coefficient_value: Options

    @model_validator(mode="after")
    def _labelled(self) -> Mixer:
        for slot in SLOTS:
            labelled(getattr(self, slot))
        return self

    def check(self) -> None:
        """Refuse what is no operation, and slots of which nothing fits; users' operations must be registered by now.

        Raises:
            ConfigError: the line says which option.
        """
        for slot in SLOTS:
            for label, option in labelled(getattr(self, slot)):
                try:
                    resolve(slot, some(option))
                except ConfigError as error:
                    raise ConfigError(f"{slot} option {label!r}: {error}") from None
        if not self.fitting("query_key"):
            raise ConfigError("no query_key option fits any activation and coefficient_value option by its layout")

    def fitting(self, slot: Slot, layout: Layout | None = None) -> list[tuple[Label, Any]]:
        """Options of a slot: query-key interactions that fit something, and what fits coefficients of a layout."""
        options = labelled(getattr(self, slot))
        if slot == "query_key":
            return [option for option in options if self._partners(made(option[1]))]
        if slot == "activation" and layout is not None:
            return [option for option in options if layout in accepts(resolve(slot, some(option[1])))]
        if slot == "coefficient_value" and layout is not None:
            return [option for option in options if takes(resolve(slot, some(option[1]))) == layout]
        return options

    def _partners(self, layout: Layout) -> bool:
        return bool(self.fitting("activation", layout) and self.fitting("coefficient_value", layout))

    def parameter(self, slot: Slot, layout: Layout) -> str:
        """A slot's name, with the layout where that decides what there is to choose from."""
        layouts = {made(option) for _, option in self.fitting("query_key")}
        sets = [[label for label, _ in self.fitting(slot, each)] for each in layouts]
        return slot if all(each == sets[0] for each in sets) else f"{slot}[{layout}]"


DIMENSIONS: dict[str, type[Dimension]] = {
    "integer": Integer,
    "real": Real,
    "choice": Choice,
    "changes": Changes,
    "mixer": Mixer,
}


def made(query_key: Any) -> Layout:
    return makes(resolve("query_key", some(query_key)))


def labelled(options: tuple[Any, ...] | dict[str, Any]) -> list[tuple[Label, Any]]:
    """Options with their labels.

    Raises:
        ConfigError: none, one that needs a label, or two of one label; 1 and True are one, as 1 == True.
    """
    if isinstance(options, dict):
        found: list[tuple[Label, Any]] = list(options.items())
    else:
        found = [(_label(option), option) for option in options]
    if not found:
        raise ConfigError("no options: a choice has at least one")
    labels = [label for label, _ in found]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        shown = " and ".join(dict.fromkeys(repr(label) for label in labels if label == twice[0]))
        raise ConfigError(f"option {shown} is there twice: give labels, options={{'a label': ...}}")
    return found


def _label(option: Any) -> Label:
    if isinstance(option, dict) and isinstance(option.get("name"), str):
        return option["name"]
    if option is None or isinstance(option, str | int | float):
        return option
    raise ConfigError(f"option {option!r} needs a label: options={{'a label': ...}}")


def some(node: Any) -> Any:
    """A value that a node may take: of each dimension the first option or the low end."""
    if isinstance(node, Choice):
        return some(labelled(node.options)[0][1])
    if isinstance(node, Integer | Real):
        return node.low
    return {key: some(value) for key, value in node.items()} if isinstance(node, dict) else node


def mixers(node: Any) -> Iterator[Mixer]:
    """Every `Mixer` within a space or a part of it."""
    if isinstance(node, Mixer):
        yield node
    parts: Any = node.options if isinstance(node, Choice | Changes) else node
    for part in parts.values() if isinstance(parts, dict) else parts if isinstance(parts, tuple) else ():
        yield from mixers(part)


def keys_of(key: str, node: Any) -> list[str]:
    """The keys of a configuration that a part of a space changes."""
    if isinstance(node, Changes):
        return list(dict.fromkeys(k for changes in node.options.values() for k in changes))
    return [key]


def resolve_space(space: dict[str, Any], suggest: Suggest) -> dict[str, Any]:
    """Changes by dotted key, every dimension's value as `suggest` says; it is asked for those that are there only."""
    changes = dict[str, Any]()
    for key, node in space.items():
        if isinstance(node, Changes):
            label = _pick(key, list(node.options.items()), suggest)
            chosen = node.options[label]
            changes |= {k: _value(value, f"{key}[{label}].{k}", suggest) for k, value in chosen.items()}
        else:
            changes[key] = _value(node, key, suggest)
    return changes


def suggested_by(trial: Trial) -> Suggest:
    """Optuna's answers for a trial that it was asked for."""

    def suggest(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        if isinstance(distribution, IntDistribution):
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        assert isinstance(distribution, FloatDistribution)
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    return suggest


def _pick(name: str, options: list[Any], suggest: Suggest) -> Any:
    labels = [label for label, _ in options]
    return suggest(name, CategoricalDistribution(labels)) if len(labels) > 1 else labels[0]


def _value(node: Any, name: str, suggest: Suggest) -> Any:
    if isinstance(node, Integer | Real):
        return suggest(name, node.distribution())
    if isinstance(node, Choice):
        return _option(name, labelled(node.options), suggest)[1]
    if isinstance(node, Mixer):
        query = _option(f"{name}.query", node.fitting("query"), suggest)[1]
        label, key = _option(f"{name}.query_key", node.fitting("query_key"), suggest)
        layout = made(dict(node.fitting("query_key"))[label])
        rest = {
            slot: _option(f"{name}.{node.parameter(slot, layout)}", node.fitting(slot, layout), suggest)[1]
            for slot in SLOTS[2:]
        }
        return {"query": query, "query_key": key, **rest}
    if isinstance(node, dict):
        return {key: _value(value, f"{name}.{key}", suggest) for key, value in node.items()}
    return node


def _option(name: str, options: list[Any], suggest: Suggest) -> tuple[Any, Any]:
    label = _pick(name, options, suggest)
    return label, _value(dict(options)[label], f"{name}[{label}]", suggest)


def dimensions(space: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every parameter that a trial may have, and its range in words."""
    for key, node in space.items():
        if isinstance(node, Changes):
            yield key, " · ".join(node.options)
            for label, changes in node.options.items():
                for k, value in changes.items():
                    yield from _describe(value, f"{key}[{label}].{k}")
        else:
            yield from _describe(node, key)


def _describe(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Integer | Real):
        step = f" by {node.step}" if isinstance(node, Integer) and node.step > 1 else ""
        yield name, f"{node.low:g} to {node.high:g}{step}{', logarithmic' if node.log else ''}"
    elif isinstance(node, Choice):
        yield from _describe_options(name, labelled(node.options))
    elif isinstance(node, Mixer):
        layouts = list(dict.fromkeys(made(option) for _, option in node.fitting("query_key")))
        for slot in SLOTS:
            by_name = {f"{name}.{slot if slot in SLOTS[:2] else node.parameter(slot, each)}": each for each in layouts}
            for full, layout in by_name.items():
                yield from _describe_options(full, node.fitting(slot, layout))
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _describe(value, f"{name}.{key}")


def _describe_options(name: str, options: list[Any]) -> Iterator[tuple[str, str]]:
    if len(options) > 1:
        yield name, " · ".join(str(label) for label, _ in options)
    for label, option in options:
        yield from _describe(option, f"{name}[{label}]")
