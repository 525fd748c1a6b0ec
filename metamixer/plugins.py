"""Users' modules: importing one registers the operations in it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable
from itertools import dropwhile
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .config import ConfigError

T = TypeVar("T")

# where a frame of a traceback is not the user's
_OURS = tuple(str(path) for path in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib"))))


def load_module(source: str) -> ModuleType:
    """Import a module by its dotted name, or from the path of a .py file.

    A file that is loaded again runs again only if it has changed; its operations then take the place of the old.

    Raises:
        ConfigError: no such module, or one that fails; the line says where.
    """
    if not source.endswith(".py"):
        return _run(source, lambda: importlib.import_module(source))
    path = _file(source)
    content = source_digest(source)
    # the name tells files of one name in two folders apart
    name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__content__", None) == content:
        return known
    module = ModuleType(name)
    module.__dict__.update(__file__=str(path), __content__=content)
    sys.modules[name] = module  # TorchScript and pickle look classes up there
    linecache.checkcache(str(path))

    def execute() -> ModuleType:
        # not by an import, which may take the bytecode of a file that was changed a moment ago
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        return module

    try:
        return _run(source, execute)
    except BaseException:
        del sys.modules[name]
        raise


def source_digest(source: str) -> str:
    """16 hexadecimal digits of what a module's file holds; its own imports are not part of it.

    Raises:
        ConfigError: no such module.
    """
    return hashlib.blake2b(_file(source).read_bytes(), digest_size=8).hexdigest()


def _file(source: str) -> Path:
    """The file of a module that is given as `load_module` takes it."""
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"no module {source!r}: there is no such file")
        return path

    def find() -> Path:
        found = importlib.util.find_spec(source)
        if found is None or found.origin is None or not Path(found.origin).is_file():
            raise ModuleNotFoundError("no module of this name has a file: give its path, ending in .py, or install it")
        return Path(found.origin)

    return _run(source, find)


def _run(source: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:
        where = place(error)
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}: "
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"module {source!r}: {where}{kind}{' '.join(str(error).split())}") from None


def place(error: BaseException) -> str:
    """`FILE:LINE: ` of the user's code that this package called and that failed; empty where there is none."""
    called = dropwhile(lambda f: not f.filename.startswith(_OURS[0]), traceback.extract_tb(error.__traceback__))
    frames = [f for f in called if not f.filename.startswith(("<", *_OURS))]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
