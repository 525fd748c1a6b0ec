"""Where a run's numbers come from besides its configuration: versions, machine, commit, and the code that it ran."""

from __future__ import annotations

import functools
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..plugins import code_digest
from .folder import RunFolder

PACKAGE = Path(__file__).parents[1]
# files that training runs through but that no number depends on
_WITHOUT_PART = set(
    "board checkpoint data_config folder preload provenance run_config score show signals state statistics "
    "surroundings".split()
)


def code_of(model: Any, *others: Any) -> dict[str, str]:
    """The digest of each file of this package that a network, other objects and training ran, by its path there.

    Comments and formatting do not count. What a user's own files hold is part of a run's configuration.
    """
    modules = {cls.__module__ for part in (*model.modules(), *others) for cls in type(part).__mro__}
    files = {Path(sys.modules[name].__file__ or "") for name in modules if name.startswith("metamixer.")}
    files |= {path for path in (PACKAGE / "training").glob("*.py") if path.stem not in _WITHOUT_PART}
    files |= {PACKAGE / "rng.py", PACKAGE / "ops" / "_common.py", PACKAGE / "tasks" / "streams.py"}
    return {str(path.relative_to(PACKAGE)): _digest(path) for path in sorted(files)}


@functools.cache
def _digest(path: Path) -> str:
    return code_digest(path) if path.is_file() else "gone"


def digest_package() -> None:
    """Work out the digests of all files now: of the code that is loaded, and once for all runs that are forked."""
    for path in PACKAGE.rglob("*.py"):
        _digest(path)


def changed_code(record: Mapping[str, str]) -> list[str]:
    """The files of a record of `code_of` whose code is another one now."""
    return [name for name, digest in record.items() if _digest(PACKAGE / name) != digest]


def mixed_code(records: Iterable[Mapping[str, str]]) -> list[str]:
    """The files that several records of `code_of` hold in more than one version."""
    versions = {(name, digest) for record in records for name, digest in record.items()}
    return sorted(name for name, count in Counter(name for name, _ in versions).items() if count > 1)


def environment(device: Any) -> dict[str, Any]:
    """What the numbers of a run may depend on besides its configuration."""
    import numpy
    import PIL
    import timm
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": gpu,
        "host": socket.gethostname(),
        "memory_format": "channels_last",
        "started": time.time(),
        **source_version(),
    }


def source_version() -> dict[str, Any]:
    """Commit of the code and whether the working tree differs from it; nulls outside a git checkout.

    A copy of the code that a cluster's job runs says so itself, in a `snapshot.json` beside the package.
    """
    snapshot = RunFolder(Path(__file__).parents[2]).read("snapshot.json")
    if snapshot is not None:
        return snapshot

    def git(*arguments: str) -> str | None:
        here = Path(__file__).parent
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": bool(status) if status is not None else None}
