"""Errors of a user's code in one line: where it failed, and what torch says about it."""

from __future__ import annotations

import re
import sysconfig
import traceback
from itertools import dropwhile
from pathlib import Path

# where a frame of a traceback is not the user's
_OURS = tuple(str(path) for path in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib"))))
# the lines of TorchScript's and torch.export's messages that name types and arguments
_TELLING = re.compile(r"instead found|but got|invalid types|Keyword argument|failed to convert")


def place(error: BaseException) -> str:
    """`FILE:LINE: ` of the user's code that this package called and that failed; empty where there is none."""
    called = dropwhile(lambda f: not f.filename.startswith(_OURS[0]), traceback.extract_tb(error.__traceback__))
    frames = [(f.filename, f.lineno) for f in called if not f.filename.startswith(("<", *_OURS))]
    # compilers were not called by the user's code, but quote it
    quoted = [(file, line) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error)) if file[0] == "/"]
    found = frames[-1:] or [each for each in quoted if not each[0].startswith(_OURS)][:1]
    return "".join(f"{file}:{line}: " for file, line in found)


def in_one_line(error: BaseException, limit: int = 400) -> str:
    """The kind of an error, its place in the user's code, and the lines of its message that say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = "; ".join(line.rstrip(":.") for i, line in enumerate(lines) if i == 0 or _TELLING.search(line))
    text = f"{place(error)}{type(error).__name__}: {told}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
