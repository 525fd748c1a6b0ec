"""Users' modules: importing one registers the operations in it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from .config import ConfigError


def load_module(spec: str) -> ModuleType:
    """Import a module by its dotted name, or from the path of a .py file.

    A file that is loaded again runs again only if it has changed; its operations then take the place of the old.

    Raises:
        ConfigError: no such module, or one that fails; the line says where.
    """
    if not spec.endswith(".py"):
        return _run(spec, lambda: importlib.import_module(spec), Path(spec))
    path = Path(spec).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no module {spec!r}: there is no such file")
    content = hashlib.blake2b(path.read_bytes()).digest()
    # the name tells files of one name in two folders apart
    name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__content__", None) == content:
        return known
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module, loader = importlib.util.module_from_spec(found), found.loader
    module.__dict__["__content__"] = content
    sys.modules[name] = module  # TorchScript and pickle look classes up there

    def execute() -> ModuleType:
        loader.exec_module(module)
        return module

    try:
        return _run(spec, execute, path)
    except BaseException:
        del sys.modules[name]
        raise


def _run(spec: str, action, path: Path) -> ModuleType:  # type: ignore[no-untyped-def]
    try:
        return action()
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _users(frame.filename, path)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else spec
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        text = " ".join(str(error).split()) or "failed"
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"module {spec!r}: {where}: {kind}{text}") from None


def _users(filename: str, path: Path) -> bool:
    """Whether a frame lies in the file itself, or, for a dotted name, in no part of Python's or this project."""
    if path.suffix == ".py":
        return Path(filename) == path
    return not filename.startswith("<") and Path(filename).parent != Path(__file__).parent and (
        "importlib" not in Path(filename).parts
    )


def source_digest(spec: str) -> str:
    """16 hexadecimal digits over a module's source, which tell whether it has changed.

    Raises:
        ConfigError: no such module.
    """
    path = Path(spec).expanduser()
    if not spec.endswith(".py"):
        try:
            found = importlib.util.find_spec(spec)
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None:
            raise ConfigError(f"no module {spec!r}: give a dotted name, or the path of a .py file")
        path = Path(found.origin)
    if not path.is_file():
        raise ConfigError(f"no module {spec!r}: there is no such file")
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
