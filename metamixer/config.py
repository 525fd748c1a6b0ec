"""Frozen, strict configuration: parsing with one-line errors, overriding by key, hashing.

Every configuration of the project derives from `Config`. Configurations travel as JSON; a hash is taken
over all resolved values, so that neither a changed default nor `1` against `1.0` can confuse two runs.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# Raised by one when the meaning of a configuration changes, so that no old result is taken for a new one.
SCHEMA_VERSION = 2

C = TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """What a user got wrong, in one line."""


def unknown(kind: str, name: str, known: Collection[str], otherwise: str = "") -> ConfigError:
    """The error about a name that nothing has: the nearest known name, or else what to do (a list if not given)."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else otherwise or f"there are {', '.join(known)}"
    return ConfigError(f"no {kind} {name!r}; {hint}")


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys are errors, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The resolved values as JSON types."""
        return self.model_dump(mode="json")

    @classmethod
    def parsing(cls, values: Any) -> AbstractContextManager[None]:
        """What surrounds the reading of `values` by `parse`."""
        return nullcontext()

    def identity(self) -> dict[str, Any]:
        """What of the values a hash covers."""
        return self.hashed(self.to_dict())

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        """What of its own `values`, as `to_dict` gives them, a hash covers."""
        for key, field in type(self).model_fields.items():
            own = getattr(self, key)
            if field.json_schema_extra and own == field.default:
                del values[key]
            else:
                values[key] = _hashed(own, values[key])
        return values


def _hashed(own: Any, value: Any) -> Any:
    """What a hash covers of a value, whose configurations are left in `own`."""
    if isinstance(own, Config):
        return own.hashed(value)
    if isinstance(own, tuple):
        return [_hashed(*each) for each in zip(own, value, strict=True)]
    if isinstance(own, dict):
        return {key: _hashed(each, value[key]) for key, each in own.items()}
    return value


def later(default: Any, **bounds: Any) -> Any:
    """A parameter that came after runs were hashed: at its default, it is not part of a run's hash."""
    return Field(default=default, json_schema_extra={"later": True}, **bounds)


def parse(cls: type[C], values: Any, where: str = "") -> C:
    """Validate `values` (JSON types, tuples or configs) as a `cls`.

    Raises ConfigError: one line that names the key, what was given and what would be right.
    """
    try:
        text = json.dumps(values, default=_encode)
        with cls.parsing(json.loads(text)):
            return cls.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(explain(error, cls, where)) from None


def _encode(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    raise ConfigError(f"{value!r} is not a configuration value: use numbers, strings, lists and dicts")


def explain(error: ValidationError, cls: type[Config], where: str = "") -> str:
    """The first problem of a validation error, in one line; the number of the others behind it."""
    problems = error.errors()
    first = problems[0]
    path = [*([where] if where else []), *(str(part) for part in first["loc"])]
    if first["type"] == "extra_forbidden":
        message = f"unknown key {path[-1]!r}; {describe(cls) if len(first['loc']) == 1 else 'check its spelling'}"
    elif first["type"] == "missing":
        message = f"missing key {path[-1]!r}; {describe(cls) if len(first['loc']) == 1 else 'it has no default'}"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] == "string_type" and isinstance(first["input"], int | float):
        message = f"should be text, got the number {first['input']}: on a command line write '\"{first['input']}\"'"
    else:
        given = repr(first["input"])
        given = given if len(given) <= 100 else given[:99] + "…"
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {given}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (f"{'.'.join(path)}: " if path else "") + message + more


def describe(cls: type[Config]) -> str:
    """What a configuration takes, e.g. `it takes kernel_size = 7, norm = False`."""
    # a required name is that by which the class was found
    fields = {key: field for key, field in cls.model_fields.items() if key != "name" or not field.is_required()}
    parts = [key + ("" if field.is_required() else f" = {field.get_default()!r}") for key, field in fields.items()]
    return f"it takes {', '.join(parts)}" if parts else "it takes no parameters"


def override(config: C, changes: dict[str, Any]) -> C:
    """A copy of `config` with some values changed.

    Args:
        changes: new values by dotted key. A part may be an index into a sequence (`-1` is the last) or `*`
            for all of them: `{"model.stages.*.token_mixer.activation": "relu"}`. A key below a null makes a new
            configuration there: `{"initial.source": "last.pt"}`.

    Raises ConfigError: a key that does not exist, or a value that does not fit.
    """
    values = config.to_dict()
    for key in changes:
        _forget(values, key, changes)
    for key, value in changes.items():
        encoded = json.loads(json.dumps(value, default=_encode))
        _assign(values, key.split("."), encoded, key)
    return parse(type(config), values)


# A value that is worked out from others, by each of them: it is worked out again where one of those changes.
_DERIVED = {**dict.fromkeys(("root", "name", "csv", "layout", "scale"), "manifest"), "source": "digest"}


def _forget(node: Any, key: str, changes: dict[str, Any]) -> None:
    *path, last = key.split(".")
    derived = _DERIVED.get(last)
    if derived is None or ".".join([*path, derived]) in changes:
        return
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(derived, None)


class _New(dict):
    """A configuration in the making, in place of a null: its keys are checked when it is parsed."""


def _assign(node: Any, path: list[str], value: Any, key: str) -> None:
    part, rest = path[0], path[1:]
    slots: list[Any]
    if isinstance(node, dict):
        if part not in node and not isinstance(node, _New):
            listed = f"the keys are {', '.join(node)}" if node else "it is empty: set it as a whole"
            raise ConfigError(f"{key}: {unknown('key', part, node, listed)}")
        slots = [part]
    elif isinstance(node, list):
        if part == "*":
            slots = list(range(len(node)))
        elif part in map(str, range(-len(node), len(node))):
            slots = [int(part)]
        else:
            raise ConfigError(f"{key}: {part!r} is neither an index below {len(node)} nor '*'")
    else:
        raise ConfigError(f"{key}: {part!r} goes below {node!r}, which has no keys of its own")
    for slot in slots:
        if rest:
            if isinstance(node, dict) and node.get(slot) is None:
                node[slot] = _New()
            _assign(node[slot], rest, value, key)
        else:
            node[slot] = value


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """A command line's `KEY=VALUE`s by their keys.

    Raises ConfigError: one is no assignment, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"{text!r} is not an assignment: write KEY=VALUE, e.g. recipe.epochs=20")
        if key in found:
            raise ConfigError(f"{key} is given twice: {text!r} and another value")
        found[key] = _value(value)
    return found


def from_text(text: str) -> Any:
    """A name as it is; JSON where the text begins with a brace. Raises ConfigError: no JSON."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        example = """'{"name": "linear", "expansion": 2.0}'"""
        raise ConfigError(f"{text}: not JSON ({error.msg}, column {error.colno}); write e.g. {example}") from None


def _value(text: str) -> Any:
    """A value as JSON or as Python spells it; numbers with commas between them are a list, all else is text."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
            return list(value) if isinstance(value, tuple) else value
        except (ValueError, SyntaxError, TypeError):  # TypeError: a dict whose key is a list
            continue
    return text


def digest(config: Config) -> str:
    """16 hexadecimal digits that identify all resolved values of `config` and the schema version."""
    return digest_of(config.identity())


def digest_of(identity: dict[str, Any]) -> str:
    """The digest of the configuration with this identity."""
    return hash_of(_content(identity))


def digests_of(identity: dict[str, Any], key: str, values: Iterable[Any]) -> list[str]:
    """The digests of configurations that differ in one key of the identity alone; it is written out only once."""
    before, after = _content({**identity, key: _PLACE}).split(json.dumps(_PLACE))
    return [hash_of(f"{before}{json.dumps(value)}{after}") for value in values]


_PLACE = "\0here"  # no configuration holds it


def _content(identity: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA_VERSION, "config": identity}, sort_keys=True, separators=(",", ":"))


def hash_of(*parts: str | bytes) -> str:
    """16 hexadecimal digits of texts or bytes, one after another."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def hash_of_file(path: Path) -> str:
    """The same of a file's content. Raises OSError: it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def differences(base: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Keys on which two configurations differ, with both values."""
    return dict(sorted(_differences(base.to_dict(), other.to_dict(), "")))


def _differences(a: Any, b: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if a == b:  # most of two configurations is alike
        return
    ours, theirs = _items(a), _items(b)
    values = a if ours is None else None, b if theirs is None else None
    if values[0] != values[1]:
        yield key, values
    ours, theirs = ours or {}, theirs or {}
    for name in dict.fromkeys([*ours, *theirs]):
        yield from _differences(ours.get(name), theirs.get(name), f"{key}.{name}" if key else name)


def _items(node: Any) -> dict[str, Any] | None:
    """What a node holds by key; None for a value."""
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        return {str(index): item for index, item in enumerate(node)}
    return node if isinstance(node, dict) else None
