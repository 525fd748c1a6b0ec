"""Mixers from what a configuration says: a name, four slots, or a baseline."""

from typing import Any

from torch import nn

# importing `fast_paths` registers them and the operations that ship with the project
from . import fast_paths  # noqa: F401
from .config import ConfigError, parse
from .operation import REGISTRY, SLOTS, OperationConfig, Site, operation_class, resolve
from .presets import PRESETS, preset
from .slots import FAST_PATHS, MetaMixer, MetaMixerConfig, build_operation


def resolve_mixer(value: Any) -> MetaMixerConfig | OperationConfig:
    """A mixer from the name of a preset or a baseline, its four slots, or a baseline's `name` and parameters.

    Raises ConfigError: none of these, an unknown operation or parameter, or slots that do not fit.
    """
    if isinstance(value, MetaMixerConfig):
        return value
    if isinstance(value, OperationConfig):
        return resolve("baseline", value)
    if isinstance(value, str):
        value = preset(value)
    if isinstance(value, dict) and "name" in value:
        return resolve("baseline", value)
    if isinstance(value, dict):
        unknown = value.keys() - set(SLOTS)
        if unknown or len(value) < len(SLOTS):
            missing = [slot for slot in SLOTS if slot not in value]
            wrong = f"unknown {', '.join(sorted(unknown))}" if unknown else f"missing {', '.join(missing)}"
            raise ConfigError(f"a mixer has the slots {', '.join(SLOTS)}: {wrong}")
        return parse(MetaMixerConfig, value)
    raise ConfigError(
        f"a mixer is a preset's name ({', '.join(PRESETS)}), a baseline's ({', '.join(REGISTRY['baseline'])}), a dict "
        f"of the four slots ({', '.join(SLOTS)}) or {{'name': a baseline, parameters}}, got {value!r}"
    )


def build_mixer(config: MetaMixerConfig | OperationConfig, site: Site) -> nn.Module:
    """The module of a mixer: a `MetaMixer`, by its fast path where it has one, or a baseline."""
    if not isinstance(config, MetaMixerConfig):
        return build_operation("baseline", config, site)
    operations = [operation_class(slot, getattr(config, slot)) for slot in SLOTS[1:]]
    cls = FAST_PATHS.get(tuple(operations), MetaMixer)  # type: ignore[arg-type]
    return (cls if cls.applies(config, site) else MetaMixer)(config, site)
