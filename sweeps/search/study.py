"""Where a search's trials are kept: an Optuna study in a journal file or a database, never torn and never another's.

The folder of a search, `searches/NAME@SETTING` in the folder of the runs:

search.json        the definition and where the study is
journal.log        the study, unless it is in a database; what was torn out of it lies beside it as journal.log.torn-*
lock, watch        who decides on the next trial; who waits for the last ones
workers/           a folder for each worker: its log, its lock, how its jobs ended
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from metamixer.config import SCHEMA_VERSION, ConfigError, parse
from metamixer.training.folder import RunFolder

from .definition import Definition, changed, schema_of

JOURNAL = "journal"  # as the storage of a search
DRIVER = "postgresql+psycopg"


def search_folder(root: Path, label: str) -> Path:
    return root / "searches" / label


class Journal(JournalFileBackend):
    """Optuna's journal file with its NFS-safe lock, which mends what a killed writer left half-written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard = JournalFileOpenLock(str(path))
        super().__init__(str(path), self.guard)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines; a torn last one is cut off first, as what follows it would be unreadable with it."""
        with self._locked():
            self._cut_torn_end()
            text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def mend(self) -> int:
        """Make every line readable and return how many were not; a backup of the journal is left beside it.

        Another writer may have appended to a torn line: what it wrote is kept. The torn record itself is lost, which
        nobody relies on, as its writer was killed before it knew that it was written. Lines before the first unreadable
        one keep their place: others may be reading.
        """
        with self._locked():
            lines = self.path.read_bytes().splitlines(keepends=True)
            whole = [_readable(line) for line in lines]
            torn = sum(kept != line for kept, line in zip(whole, lines, strict=True))
            if torn:
                self._back_up()
                aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
                with aside.open("wb") as file:
                    file.write(b"".join(whole))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, self.path)
            return torn

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.guard.acquire()
        try:
            yield
        finally:
            try:
                self.guard.release()
            except RuntimeError:  # held for so long that another took it for a dead one's
                pass

    def _cut_torn_end(self) -> None:
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return
            self._back_up()
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def _back_up(self) -> None:
        backup = self.path.with_name(f"{self.path.name}.torn-{time.time_ns()}")
        backup.write_bytes(self.path.read_bytes())


def _readable(line: bytes) -> bytes:
    """A journal's line if it is whole, else the whole record at its end, else nothing."""
    if line.endswith(b"\n"):
        start = 0
        while start >= 0:
            try:
                if isinstance(json.loads(line[start:]), dict):
                    return line[start:]
            except ValueError:
                pass
            start = line.find(b'{"op_code"', start + 1)
    return b""


def normal_url(storage: str) -> str:
    """A database's URL with the driver that the project has for PostgreSQL.

    Raises:
        ConfigError: no URL, or one with a password, which would end up in files that others read.
    """
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):  # no URL; a port that is no number
        url = None
    if url is not None and (url.password or "password" in url.query):
        raise ConfigError("--storage: leave the password out and put it into ~/.pgpass or PGPASSWORD")
    if url is None or url.drivername not in ("postgresql", DRIVER):
        raise ConfigError(f"--storage {storage!r}: {JOURNAL} or a URL of PostgreSQL, e.g. postgresql://host/database")
    return url.set(drivername=DRIVER).render_as_string()


def open_storage(folder: Path, storage: str) -> BaseStorage:
    """The storage of a search, mended if need be.

    Raises:
        ConfigError: it can't be reached or read.
    """
    if storage == JOURNAL:
        try:
            journal = Journal(folder / "journal.log")
            journal.mend()
            return JournalStorage(journal)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot use the journal here ({error.strerror or error})") from None
    try:
        return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(f"--storage {storage}: {error}; install the extra `postgres`") from None
    except DBAPIError as error:  # not reached, or no right to make tables there
        raise ConfigError(f"--storage {storage}: {' '.join(str(error.orig).split())}") from None


def create_study(root: Path, definition: Definition, storage: str | None) -> tuple[optuna.Study, str]:
    """The study of a search, made or found; and its storage.

    Raises:
        ConfigError: the search is not what its study was made from, it lies in another storage, or this folder or
            storage can't be used.
    """
    folder = search_folder(root, definition.label)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            content = RunFolder(folder).read("search.json")
            if content is None:
                chosen = normal_url(storage) if storage not in (None, JOURNAL) else JOURNAL  # type: ignore[arg-type]
            else:
                chosen = _same_storage(folder, content, storage)
                _same_search(folder, content, definition)
            study = _make(folder, chosen, definition)
            latest = {"schema": SCHEMA_VERSION, "definition": definition.to_dict(), "storage": chosen}
            if content != latest:  # new; or with another question, more that is known, modules that lie elsewhere
                RunFolder(folder).write("search.json", latest)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write here ({error.strerror or error})") from None
    return study, chosen


def _same_storage(folder: Path, content: dict[str, Any], storage: str | None) -> str:
    known = str(content["storage"])
    wanted = known if storage is None else JOURNAL if storage == JOURNAL else normal_url(storage)
    if wanted != known:
        raise ConfigError(f"{folder.name} is kept in {known}, not in {wanted}; a study does not move")
    return known


def _same_search(folder: Path, content: dict[str, Any], definition: Definition) -> None:
    schema_of(content)
    lines = changed(parse(Definition, content["definition"], f"{folder}: search.json"), definition)
    if lines:
        raise ConfigError(
            f"{folder.name} was begun with another search: {'; '.join(lines)}. Give the changed one a name of its own "
            f"(another file), or put {folder} aside"
        )


def _make(folder: Path, storage: str, definition: Definition) -> optuna.Study:
    better = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    directions = [better[name != "top1"] for name in definition.objectives]
    opened = open_storage(folder, storage)
    study = optuna.create_study(
        storage=opened,
        study_name=definition.label,
        directions=directions,
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),  # proposals are made elsewhere: sweeps.search.trials
        pruner=_pruner(definition),
    )
    # a database may hold a study of this name that belongs to another folder of runs
    owner = study.user_attrs.get("definition")
    if owner is None:
        study.set_user_attr("definition", definition.to_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(definition.objectives))  # for optuna-dashboard
    else:
        _same_search(folder, {"schema": SCHEMA_VERSION, "definition": owner}, definition)
    return study


def _pruner(definition: Definition) -> optuna.pruners.BasePruner:
    if definition.pruning is None:
        return optuna.pruners.NopPruner()
    # before step `n_warmup_steps` nothing is pruned, and steps are epochs from 1
    return optuna.pruners.MedianPruner(definition.pruning.startup, n_warmup_steps=definition.pruning.warmup)


def open_study(folder: Path, snapshot: Path | None = None) -> tuple[optuna.Study, Definition]:
    """The study in a search's folder, as a worker finds it; users' modules as they are in its snapshot of the code.

    Raises:
        ConfigError: there is none.
    """
    content = RunFolder(folder).read("search.json")
    if content is None:
        raise ConfigError(f"{folder}: no search here (search.json is missing or unreadable)")
    schema_of(content)
    definition = parse(Definition, content["definition"], f"{folder}: search.json")
    return _make(folder, str(content["storage"]), definition), definition


@contextmanager
def lock(folder: Path, name: str = "lock") -> Iterator[None]:
    """One process at a time, across the machines of an NFS; the kernel lets go of what is killed."""
    with (folder / name).open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def first_at(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process is the first to hold the lock; it holds it until the end."""
    with (folder / name).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
