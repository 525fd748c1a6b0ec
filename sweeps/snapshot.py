"""Snapshots: a copy of the code for what waits in a queue, so that editing the tree changes nothing there."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from pathlib import Path

import metamixer
from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import source_version

PROJECT = Path(metamixer.__file__).resolve().parent.parent
PACKAGES = ("metamixer", "sweeps")


def take(root: Path) -> str:
    """Copy the code as it is now to `snapshots/` of the runs' folder, once for each content; the launch lock is held.

    Returns:
        16 hexadecimal digits of all that was copied; the snapshot's name.
    """
    aside = root / "snapshots" / f".{uuid.uuid4().hex}"
    try:
        for package in PACKAGES:
            shutil.copytree(PROJECT / package, aside / package, ignore=shutil.ignore_patterns("__pycache__"))
        name = content_hash(aside)
        RunFolder(aside).write("snapshot.json", {"snapshot": name, **source_version()})
        place = root / "snapshots" / name
        if place.is_dir() and content_hash(place) != name:  # somebody edited it
            shutil.rmtree(place)
        if not place.is_dir():
            aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return name


def content_hash(folder: Path) -> str:
    """16 hexadecimal digits of the Python files under a snapshot's packages, names included."""
    digest = hashlib.blake2b(digest_size=8)
    for part in PACKAGES:
        for path in sorted((folder / part).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def verify(folder: Path) -> None:
    """Refuse to run if this process runs other code than the snapshot in `folder`, or somebody edited it."""
    if folder.resolve() != PROJECT:
        raise ConfigError(f"the job runs the code in {PROJECT}, not its snapshot {folder}")
    if (found := content_hash(folder)) != folder.name:
        raise ConfigError(f"{folder}: the snapshot was edited; it now holds {found}")
