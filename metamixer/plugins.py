"""Users' files: loading one registers the operations and tasks in it, and a run keeps a copy of those that it uses.

A file is known by its code, comments and formatting aside. What it imports is not part of it.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .config import ConfigError, hash_of
from .errors import place


@dataclass
class Plugin:
    """A user's file that was loaded.

    Attributes:
        path: where it was read; of a run's copy, that is in the run's folder.
        registered: each class of it with the registry that holds it, and the class whose place it took.
    """

    path: Path
    digest: str
    source: bytes
    copy: bool
    module: ModuleType
    registered: list[tuple[dict[str, Any], Any, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name; a run's copy of `my_op.py` is called `my_op-DIGEST.py`."""
        return self.path.name.replace(f"-{self.digest}", "") if self.copy else self.path.name


_loaded: dict[str, Plugin] = {}  # by digest


def load_module(source: str | Path) -> ModuleType:
    """Run a .py file, whose classes then stand in the registries; again only if its code has changed.

    Raises ConfigError: no such file, or one that fails; the line says where.
    """
    path = Path(source).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"no module {str(source)!r}: give the path of a .py file")
    plugin = _load(path, copy=False)
    for registry, cls, _ in plugin.registered:
        registry[cls.name] = cls
    return plugin.module


def load_copy(folder: Path, name: str, digest: str) -> None:
    """Have a run's copy of a user's file ready for `active`; classes that stand in the registries stay there.

    Raises ConfigError: the copy is missing or was edited.
    """
    if digest in _loaded:
        return
    path = folder / _copy_name(name, digest)
    if not path.is_file():
        raise ConfigError(f"{path} is missing, and with it the run's copy of {name}")
    if (found := code_digest(path)) != digest:
        raise ConfigError(f"{path} was edited: its code is {found} now; put the run's own back")
    for registry, cls, before in _load(path, copy=True).registered:
        if before is not None:
            registry[cls.name] = before


def write_copies(folder: Path, digests: Collection[str]) -> None:
    """Write the files of these digests to a run's folder."""
    for plugin in map(_loaded.__getitem__, digests):
        folder.mkdir(exist_ok=True)
        (folder / _copy_name(plugin.name, plugin.digest)).write_bytes(plugin.source)


def _copy_name(name: str, digest: str) -> str:
    return f"{name.removesuffix('.py')}-{digest}.py"


def _load(path: Path, copy: bool) -> Plugin:
    source, digest = path.read_bytes(), code_digest(path)
    if digest in _loaded:
        return _loaded[digest]
    module = ModuleType(f"{path.stem.partition('-')[0]}_{digest}")
    plugin = Plugin(path, digest, source, copy, module)
    module.__dict__.update(__file__=str(path), __plugin__=plugin)
    sys.modules[module.__name__] = module  # TorchScript and pickle look classes up there
    linecache.checkcache(str(path))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[module.__name__]
        for registry, cls, before in reversed(plugin.registered):
            registry.pop(cls.name)
            if before is not None:
                registry[cls.name] = before
        if not isinstance(error, Exception):
            raise
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        at = place(error)  # in this file, or in one that it imports
        at = at if at.startswith(f"{path}:") else f"{path}: {at}"
        raise ConfigError(f"module {at}{kind}{' '.join(str(error).split())}") from None
    _loaded[digest] = plugin
    return plugin


def add(registry: dict[str, Any], cls: Any) -> None:
    """Put a class into a registry under its `name`.

    Raises ConfigError: another class has the name. The same class of the same file again is a reload after an edit, and
    of a run's copy another version of it.
    """
    known = registry.get(cls.name)
    plugin = _plugin(cls)
    if known is not None:
        other = _plugin(known)
        again = cls.__qualname__ == known.__qualname__ and (
            plugin.name == other.name and (plugin.copy or other.copy or plugin.path == other.path)
            if plugin is not None and other is not None
            else cls.__module__ == known.__module__
        )
        if not again:
            by = f"{known.__qualname__} of {known.__module__ if other is None else other.path}"
            raise ConfigError(f"{cls.__qualname__}: {cls.name!r} is already registered by {by}")
    registry[cls.name] = cls
    if plugin is not None:
        plugin.registered.append((registry, cls, known))


def _plugin(cls: type) -> Plugin | None:
    return getattr(sys.modules.get(cls.__module__), "__plugin__", None)


def loaded() -> list[Plugin]:
    """All that were loaded, in order."""
    return list(_loaded.values())


def used(values: Any) -> list[Plugin]:
    """The loaded files whose classes a configuration's JSON values name, as the registries are now."""
    names = set(_strings(values)) if _loaded else set()
    return [
        plugin
        for _, plugin in sorted(_loaded.items())
        if any(cls.name in names and registry.get(cls.name) is cls for registry, cls, _ in plugin.registered)
    ]


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _strings(value)


@contextmanager
def active(digests: Collection[str]) -> Iterator[None]:
    """Let the classes of these loaded files stand in the registries, in place of other versions of them.

    Raises ConfigError: one of them is not loaded.
    """
    replaced = []
    for digest in digests:
        if digest not in _loaded:
            raise ConfigError(f"the run uses a module of yours (code {digest}) that is not loaded: give --module FILE")
        for registry, cls, _ in _loaded[digest].registered:
            replaced.append((registry, cls.name, registry.get(cls.name)))
            registry[cls.name] = cls
    try:
        yield
    finally:
        for registry, name, before in reversed(replaced):
            if before is not None:
                registry[name] = before


def code_digest(path: Path) -> str:
    """16 hexadecimal digits of a Python file's code; comments, docstrings and formatting do not count.

    Raises ConfigError: the file holds no Python; the line says where.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise ConfigError(f"module {path}:{error.lineno}: SyntaxError: {error.msg}") from None
    except ValueError as error:  # e.g. null bytes
        raise ConfigError(f"module {path}: {error}") from None
    for node in ast.walk(tree):
        named = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return hash_of(ast.unparse(tree))
