"""Files of questions: each assigns a grid or a search to a name, and its docstring asks the question."""

from __future__ import annotations

import ast
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from metamixer.config import Config, ConfigError, explain, unknown
from metamixer.plugins import load_module, place

from .grid import Grid, LoadedGrid, Question

GRIDS = Path(__file__).resolve().parent.parent / "ablations"


def grid_questions(folder: Path = GRIDS) -> dict[str, str]:
    """The grids that ship with the project and their questions, or the searches; imports none of them."""
    return {path.stem: question_of(path) for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find_file(name: str, folder: Path, kind: str) -> Path:
    """The file of a grid or a search that ships with the project, or of the user's own by its path.

    Raises ConfigError: no such file.
    """
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        known = grid_questions(folder)
        raise unknown(kind, name, known, f"there are {', '.join(known)}, or give a file's path")
    return path


def load_grid(name: str, more_modules: Sequence[str] = (), root: Path = Path("runs")) -> LoadedGrid:
    """A grid by the name of its file in `ablations`, or by the path of a file anywhere.

    Args:
        more_modules: absolute paths, loaded first and added to the grid's own, whose relative paths
            are taken from the grid's folder.
        root: the folder of the runs; a grid that builds on other runs is a function of it.

    Raises ConfigError: no such grid, or a file that does not make one; the line says where.
    """
    path = find_file(name, GRIDS, "grid")
    grid = from_file(path, "GRID", Grid, more_modules, root)
    return LoadedGrid(path.stem, question_of(path), grid)


Q = TypeVar("Q", bound=Question)


def from_file(
    path: Path, variable: str, cls: type[Q], more_modules: Sequence[str] = (), root: Path = Path("runs")
) -> Q:
    """The value of `variable` in a question's file; if it is a function, its result for `root`.

    The file may import other files beside it. Its `modules` are made absolute and joined by `more_modules`.

    Raises ConfigError: the file does not make one; the line says where.
    """
    for source in more_modules:
        load_module(source)  # before the file, which may be made from what is registered
    beside, before = str(path.parent.resolve()), set(sys.modules)
    sys.path.append(beside)  # behind the standard library, which has a `profile` too
    try:
        found = runpy.run_path(str(path)).get(variable)
        found = found(root) if callable(found) else found
    except Exception as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        line = next((f.lineno for f in frames if f.filename == str(path)), "?")
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line = error.lineno or "?"
        raise ConfigError(f"{path}:{line}: {_one_line(error, cls)}") from None
    finally:
        sys.path.remove(beside)
        for name in set(sys.modules) - before:  # another question may have a file of the same name beside it
            if str(Path(getattr(sys.modules[name], "__file__", None) or "/").parent) == beside:
                del sys.modules[name]
    if not isinstance(found, cls):
        raise ConfigError(f"{path}: no {cls.__name__.lower()} in it: assign one to {variable}")
    modules = (str((path.parent / m).resolve()) for m in (*found.modules, *more_modules))
    return found.model_copy(update={"modules": tuple(modules)})


def question_of(path: Path) -> str:
    """The first paragraph of a file's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
    return " ".join(docstring.split("\n\n")[0].split())


def _one_line(error: Exception, cls: type[Config]) -> str:
    if isinstance(error, ValidationError):
        # the configuration that was being made, if not the whole
        made = {each.__name__: each for each in Config.__subclasses__()}
        return explain(error, made.get(error.title, cls))
    line = " ".join(str(error).split())
    return line if isinstance(error, ValueError) and line else f"{place(error)}{type(error).__name__}: {line}"
