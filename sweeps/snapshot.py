"""Snapshots: a copy of the code for what waits in a queue, so that editing the tree changes nothing there."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import metamixer
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import source_version

PROJECT = Path(metamixer.__file__).resolve().parent.parent
PACKAGES = ("metamixer", "sweeps")


def take(root: Path) -> str:
    """Copy the code as it is now to `snapshots/` of the runs' folder, once for each content; the launch lock is held.

    Returns:
        16 hexadecimal digits of all that was copied; the snapshot's name.
    """
    place = root / "snapshots"
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place) as aside:
        copy = Path(aside) / "code"
        for package in PACKAGES:
            shutil.copytree(PROJECT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        name = content_hash(copy)
        RunFolder(copy).write("snapshot.json", {"snapshot": name, **source_version()})
        if not (place / name).is_dir():
            copy.rename(place / name)
    return name


def content_hash(folder: Path) -> str:
    """16 hexadecimal digits of the Python files under a snapshot's packages, names included."""
    digest = hashlib.blake2b(digest_size=8)
    for part in PACKAGES:
        for path in sorted((folder / part).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
