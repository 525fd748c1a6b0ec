"""The way back: from a configuration to the parameters of a search's space that make it."""

from __future__ import annotations

from typing import Any

from metamixer.config import ConfigError, override
from metamixer.operation import SLOTS
from metamixer.training.run_config import RunConfig

from .space import Changes, Choice, Integer, Mixer, Real, keys_of, labelled, made

Matched = tuple[dict[str, Any], Any]  # parameters by name, and the value that they make


def match_space(space: dict[str, Any], base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The parameters that make a configuration's values from the base; what else it holds is not looked at.

    Raises:
        ConfigError: it has a value that the space has not; the line says where.
    """
    parameters = dict[str, Any]()
    for key, node in space.items():
        found = _match_changes(key, node, base, config) if isinstance(node, Changes) else _match(node, key, key, config)
        if found is None or not (isinstance(node, Changes) or _holds(config, key, found[1])):
            actual = ", ".join(f"{k}={_get(config, k)!r}" for k in keys_of(key, node))
            raise ConfigError(f"{key}: the search's space does not have {actual}")
        parameters |= found[0]
    return parameters


def _match(node: Any, name: str, key: str, config: RunConfig) -> Matched | None:
    if isinstance(node, Integer | Real):
        actual = _get(config, key)
        if isinstance(actual, bool) or not isinstance(actual, int | float):
            return None
        return ({name: actual}, actual) if node.distribution()._contains(actual) else None
    if isinstance(node, Choice):
        return _match_option(name, key, labelled(node.options), config)
    if isinstance(node, Mixer):
        return _match_mixer(node, name, key, config)
    if isinstance(node, dict):
        parts = {k: _match(value, f"{name}.{k}", f"{key}.{k}", config) for k, value in node.items()}
        if any(part is None for part in parts.values()):
            return None
        return _joined({k: part for k, part in parts.items() if part is not None})
    return {}, node


def _joined(parts: dict[str, Matched]) -> Matched:
    parameters = {name: value for found, _ in parts.values() for name, value in found.items()}
    return parameters, {key: value for key, (_, value) in parts.items()}


def _match_option(name: str, key: str, options: list[Any], config: RunConfig) -> Matched | None:
    for label, option in options:
        found = _match(option, f"{name}[{label}]", key, config)
        if found is not None and _holds(config, key, found[1]):
            return ({name: label} if len(options) > 1 else {}) | found[0], found[1]
    return None


def _match_mixer(node: Mixer, name: str, key: str, config: RunConfig) -> Matched | None:
    actual = _get(config, f"{key}.query_key")
    if not isinstance(actual, dict):  # a baseline has no slots
        return None
    layout = made(actual)
    names = {slot: slot if slot in SLOTS[:2] else node.parameter(slot, layout) for slot in SLOTS}
    parts = {
        slot: _match_option(f"{name}.{names[slot]}", f"{key}.{slot}", node.fitting(slot, layout), config)
        for slot in SLOTS
    }
    if any(part is None for part in parts.values()):
        return None
    return _joined({slot: part for slot, part in parts.items() if part is not None})


def _match_changes(name: str, node: Changes, base: RunConfig, config: RunConfig) -> Matched | None:
    for label, changes in node.options.items():
        others = set(keys_of(name, node)) - changes.keys()
        if any(_get(config, k) != _get(base, k) for k in others):  # changed, and not by this option
            continue
        parts = {k: _match(value, f"{name}[{label}].{k}", k, config) for k, value in changes.items()}
        if all(part is not None and _holds(config, k, part[1]) for k, part in parts.items()):
            parameters, value = _joined({k: part for k, part in parts.items() if part is not None})
            return {name: label, **parameters}, value
    return None


def _holds(config: RunConfig, key: str, value: Any) -> bool:
    """Whether the configuration has this value already, its defaults written out or not."""
    try:
        return override(config, {key: value}).identity() == config.identity()
    except ValueError:
        return False


def _get(config: RunConfig, key: str) -> Any:
    """The value at a dotted key, of several (`*`) the first; None if there is none."""
    node: Any = config.to_dict()
    for part in key.split("."):
        if isinstance(node, list) and node and (part == "*" or part.lstrip("-").isdigit()):
            index = 0 if part == "*" else int(part)
            node = node[index] if -len(node) <= index < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node
