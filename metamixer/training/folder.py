"""A run's folder: everything that a run made, written so that a kill at any moment loses nothing whole.

config.json        the resolved configuration, with the schema version
modules/           copies of the user's own files that the run uses
environment.json   versions, commit, device of the latest start
data.json          class names; by split and class, the number of files and a digest of their names and sizes
metrics.jsonl      one row an epoch, as they happen
progress.json      where the run is now (a heartbeat; rewritten every few seconds)
last.pt            the newest checkpoint; previous.pt the one before
best.pt            the weights of the epoch that was best on the validation split, where there is one
broken.json        images that were left out because they are broken, with the reason, where there are any
predictions.npz    class predicted for each test image, and its label
result.json        how it ended: state `done` or `failed`
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import jsonl, plugins
from ..config import SCHEMA_VERSION, ConfigError, digest, parse
from .surroundings import SurroundingsError

if TYPE_CHECKING:
    from .run_config import RunConfig


LOCK_TRIES = 20


class RunBusy(SurroundingsError):
    """Another process is training this run."""


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def create(self, config: RunConfig) -> None:
        """Make the folder and record the configuration.

        Raises ConfigError: it can't be written, or holds another configuration.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "config.json").exists():
                if (self.read("config.json") or {}).get("digest") != digest(config):
                    raise ConfigError(f"{self.path}: holds another run's configuration; choose another folder")
            else:
                plugins.write_copies(self.path / "modules", [module.digest for module in config.modules])
                content = {"schema": SCHEMA_VERSION, "digest": digest(config), "config": config.to_dict()}
                self.write("config.json", content)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write the run's folder: {error.strerror or error}") from None

    def config(self, name: str = "config.json") -> RunConfig:
        """The run's configuration, from its file; the run's own copies of users' files are loaded for it.

        Raises ConfigError: no such file, one of another schema, or one that does not make a run.
        """
        from .run_config import RunConfig  # loads torch, which reading the other files does not need

        content = self.read(name)
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ConfigError(f"{self.path / name}: no run here (the file is missing, or holds no run's configuration)")
        if (schema := content.get("schema")) != SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path / name}: it has schema {schema}, but this version reads schema {SCHEMA_VERSION}"
            )
        for module in content["config"].get("modules", ()):
            plugins.load_copy(self.path / "modules", module["name"], module["digest"])
        return parse(RunConfig, content["config"], str(self.path))

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; None if it is missing or not whole."""
        try:
            with open(os.path.join(self.path, name)) as file:  # plain, as some ask ten thousand folders
                return json.load(file)
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: Any, sync: bool = True) -> None:
        """Replace a JSON file in one step."""
        self.replace(name, lambda path: path.write_text(json.dumps(content, indent=1)), sync)

    def replace(self, name: str, writer: Any, sync: bool = True, keep: str | None = None) -> None:
        """Write a file aside, with `sync` make sure that it is on the disk, then rename it into place.

        With `keep` the file that was there stays under that name.
        """
        aside = self.path / f".{name}.{socket.gethostname()}.{os.getpid()}"
        try:
            writer(aside)
            if sync:
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
            if keep is not None and (self.path / name).exists():
                os.replace(self.path / name, self.path / keep)
            os.replace(aside, self.path / name)
        finally:
            aside.unlink(missing_ok=True)

    def result(self) -> dict[str, Any] | None:
        return self.read("result.json")

    def fail(self, error: str, epoch: int, write: bool = True) -> dict[str, Any]:
        """Record that the run can't go on, why, and in which epoch (from 1); returns the record."""
        result = {"state": "failed", "epoch": epoch, "error": error, "time": time.time()}
        if write:
            self.write("result.json", result)
        return result

    def append_metrics(self, row: dict[str, Any]) -> None:
        jsonl.append(self.path / "metrics.jsonl", row)

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the rows of the first `epochs` epochs: what came after the checkpoint is trained again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            rows = jsonl.read(path, report=lambda line: None)  # a line torn by a kill is trained again
            kept = [json.dumps(row) + "\n" for row in rows if row["epoch"] <= epochs]
            self.replace("metrics.jsonl", lambda aside: aside.write_text("".join(kept)))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go when the process ends, however it ends.

        Raises RunBusy: another process holds it.
        """
        file = os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, 0o644)
        _held.add(file)
        try:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)  # it may be `is_locked`, which takes it for a moment
            else:
                raise RunBusy(f"{self.path}: another process is training this run")
            yield
        finally:
            if file in _held:
                _held.discard(file)
                os.close(file)

    def is_locked(self) -> bool:
        """Whether a process holds the run; writes nothing."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False


_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    """In a forked data worker, which would else go on holding the run of a process that was killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
