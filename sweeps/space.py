"""The space of a search: what may change in its base, by dotted key.

A dimension inside an option of `Choice` exists only where that option is chosen:

    "model.stages.*.token_mixer.query_key": Choice(options=(
        {"name": "depthwise", "kernel_size": Choice(options=(3, 5, 7))},
        "linear",
    ))

Each dimension is one parameter of Optuna. Its name says where it stands: `….query_key`, and, for what is inside an
option, `….query_key[depthwise].kernel_size`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, Trial
from pydantic import AfterValidator, Field, model_validator

from metamixer.config import Config, ConfigError, digest, override
from metamixer.mixer import accepts, makes, takes
from metamixer.operation import Layout, resolve
from metamixer.training.run_config import RunConfig

Label = str | int | float | bool | None


def _labelled(options: Any) -> dict[Label, Any]:
    """Options by their labels.

    Raises:
        ConfigError: no options, one without a label, or two with one label (1 and True are one).
    """
    if not isinstance(options, tuple | list | dict) or not options:
        raise ConfigError(f"options {options!r}: give at least one, as a tuple or as a dict by label")
    if isinstance(options, dict):
        return options
    labels = [_label(option) for option in options]
    for label in labels:
        same = [each for each in labels if each == label]
        if len(same) > 1:
            shown = " and ".join(dict.fromkeys(map(repr, same)))
            raise ConfigError(f"option {shown} is there twice: give labels, options={{'a label': ...}}")
    return dict(zip(labels, options, strict=True))


def _label(option: Any) -> Label:
    if isinstance(option, dict) and isinstance(option.get("name"), str):
        return option["name"]
    if option is None or isinstance(option, str | int | float):
        return option
    raise ConfigError(f"option {option!r} needs a label: options={{'a label': ...}}")


Options = Annotated[Any, AfterValidator(_labelled)]


class Integer(Config):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Integer:
        IntDistribution(self.low, self.high, self.log, self.step)  # a ValueError if they do not fit
        return self


class Real(Config):
    """A number from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Real:
        FloatDistribution(self.low, self.high, self.log)
        return self


class Choice(Config):
    """One of several values, which may hold dimensions of their own.

    The label of a number or a string is the value, that of an operation its name. Other values, or an operation that
    is there twice, need labels: `options={"weak": [0.6, 1.0], "strong": [0.08, 1.0]}`.
    """

    options: Options


class Together(Config):
    """One of several sets of changes by dotted key, for values that change together; its own key is a free name."""

    options: dict[str, dict[str, Any]] = Field(min_length=2)


class Mixer(Config):
    """Four slots with options each, of which only those that fit each other by their layouts are combined.

    The query-key interaction is chosen first, then an activation and a coefficient-value interaction that work on the
    coefficients it makes. Where the options depend on the layout, the parameter's name holds it:
    `….activation[token pairs]`.
    """

    query: Options
    query_key: Options
    activation: Options
    coefficient_value: Options

    def layouts(self) -> dict[Label, Layout]:
        """The query-key interactions that some activation and some coefficient-value interaction fit, with layouts."""
        found = {label: makes(resolve("query_key", _example(option))) for label, option in self.query_key.items()}
        fitting = {label: each for label, each in found.items() if all(self.fitting(each))}
        if not fitting:
            raise ConfigError("no query_key option fits any activation and coefficient_value option by its layout")
        return fitting

    def fitting(self, layout: Layout) -> tuple[dict[Label, Any], dict[Label, Any]]:
        """Activations and coefficient-value interactions for coefficients of a layout."""
        activations, values = self.activation.items(), self.coefficient_value.items()
        return (
            {label: each for label, each in activations if layout in accepts(resolve("activation", _example(each)))},
            {label: each for label, each in values if takes(resolve("coefficient_value", _example(each))) == layout},
        )


def _example(node: Any) -> Any:
    """A value that a node may take."""
    if isinstance(node, Choice):
        return _example(next(iter(node.options.values())))
    if isinstance(node, Integer | Real):
        return node.low
    return {key: _example(value) for key, value in node.items()} if isinstance(node, dict) else node


def keys_of(key: str, node: Any) -> list[str]:
    """The keys of a configuration that a part of a space sets."""
    if isinstance(node, Together):
        return list(dict.fromkeys(each for option in node.options.values() for each in option))
    return [key]


# a parameter's name, the key of the configuration that it sets, and its dimension → the label or number chosen
Pick = Callable[[str, str, Integer | Real | Choice | Together], Any]


def changes_of(space: dict[str, Any], pick: Pick) -> dict[str, Any]:
    """Changes by dotted key, each dimension's value as `pick` says; it is asked only for dimensions that exist."""
    changes = dict[str, Any]()
    for key, node in space.items():
        if isinstance(node, Together):
            label = pick(key, key, node)
            for each, value in node.options[label].items():
                changes[each] = _value(value, f"{key}[{label}].{each}", each, pick)
        else:
            changes[key] = _value(node, key, key, pick)
    return changes


def _value(node: Any, name: str, key: str, pick: Pick) -> Any:
    if isinstance(node, Integer | Real):
        return pick(name, key, node)
    if isinstance(node, Choice):
        label = pick(name, key, node) if len(node.options) > 1 else next(iter(node.options))
        return _value(node.options[label], f"{name}[{label}]", key, pick)
    if isinstance(node, Mixer):
        return _slots(node, name, key, pick)
    if isinstance(node, dict):
        return {each: _value(value, f"{name}.{each}", f"{key}.{each}", pick) for each, value in node.items()}
    return node


def _slots(node: Mixer, name: str, key: str, pick: Pick) -> dict[str, Any]:
    layouts = node.layouts()
    query_keys = Choice(options={label: node.query_key[label] for label in layouts})
    slots = {
        "query": _value(Choice(options=node.query), f"{name}.query", f"{key}.query", pick),
        "query_key": _value(query_keys, f"{name}.query_key", f"{key}.query_key", pick),
    }
    layout = makes(resolve("query_key", slots["query_key"]))
    for number, slot in enumerate(("activation", "coefficient_value")):
        options = node.fitting(layout)[number]
        alike = all(node.fitting(each)[number] == options for each in layouts.values())
        parameter = f"{name}.{slot}" if alike else f"{name}.{slot}[{layout}]"
        slots[slot] = _value(Choice(options=options), parameter, f"{key}.{slot}", pick)
    return slots


def suggested_by(trial: Trial | FixedTrial) -> Pick:
    """The answers of Optuna's trial."""

    def pick(name: str, _: str, node: Integer | Real | Choice | Together) -> Any:
        if isinstance(node, Integer):
            return trial.suggest_int(name, node.low, node.high, step=node.step, log=node.log)
        if isinstance(node, Real):
            return trial.suggest_float(name, node.low, node.high, log=node.log)
        return trial.suggest_categorical(name, list(node.options))

    return pick


def parameters_of(space: dict[str, Any], base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The parameters that make `config` from the base.

    Raises:
        ConfigError: it does not lie in the space; the line says where.
    """
    found = dict[str, Any]()

    def pick(name: str, key: str, node: Integer | Real | Choice | Together) -> Any:
        fitting: dict[Any, Any] = {}
        if isinstance(node, Integer | Real):
            if _agrees(node, key, config):
                fitting[value_at(config, key)] = node
        else:
            fitting = {label: each for label, each in node.options.items() if _agrees(each, key, config, node)}
        if not fitting:
            keys = keys_of(key, node)
            values = ", ".join(f"{each}={value_at(config, each)!r}" for each in keys)
            raise ConfigError(f"{name}: the search's space does not have {values}")
        # of options that agree the one that says most: another leaves open what this one sets
        found[name] = max(fitting, key=lambda label: len(fitting[label]) if isinstance(fitting[label], dict) else 0)
        return found[name]

    if digest(override(base, changes_of(space, pick))) != digest(config):
        raise ConfigError("it differs from the base in more than the search's space")
    return found


def _agrees(node: Any, key: str, config: RunConfig, parent: Any = None) -> bool:
    """Whether the run may have got its value at a key from this node of a space."""
    if isinstance(node, Integer | Real):
        value = value_at(config, key)
        if isinstance(node, Integer):
            return type(value) is int and value in range(node.low, node.high + 1, node.step)
        return type(value) is float and node.low <= value <= node.high
    if isinstance(parent, Together):
        return all(_agrees(value, each, config) for each, value in node.items())
    if isinstance(node, Choice):
        return any(_agrees(option, key, config, node) for option in node.options.values())
    if isinstance(node, Mixer):
        return all(_agrees(Choice(options=getattr(node, slot)), f"{key}.{slot}", config) for slot in Mixer.model_fields)
    if isinstance(node, dict) and node != _example(node):
        return all(_agrees(value, f"{key}.{each}", config) for each, value in node.items())
    try:
        return override(config, {key: node}).identity() == config.identity()
    except ValueError:
        return False


def value_at(config: RunConfig, key: str) -> Any:
    """The value at a dotted key, of several (`*`) the first; None if there is none."""
    node: Any = config.to_dict()
    for part in key.split("."):
        if isinstance(node, list):
            node = node[0 if part == "*" else int(part)]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node
