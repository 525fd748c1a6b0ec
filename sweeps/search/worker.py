"""Workers of a search: each takes trials until as many have finished as are wanted.

A trial is a run like any other: in the folder of its hash, resumed from its checkpoint whoever had it before. A worker
that is told to go gives its trial back; one that is killed leaves it, until the others learn that it is dead.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy.exc import OperationalError

from metamixer.config import ConfigError, digest
from metamixer.training.data import Data, default_workers
from metamixer.training.distributed import joined
from metamixer.training.folder import RunBusy, RunFolder
from metamixer.training.run_config import RunConfig
from metamixer.training.train import Interrupted, train

from ..attempts import Attempts
from ..payload import Signals, end_job, job_number, log_to
from ..snapshot import verify
from ..submissions import read_submissions
from .known import last_metrics, metrics, top1
from .study import first_at, search_folder
from .trials import Claim, Nothing, Owner, Trials

POLL_SECONDS = 2.0
LONGEST_PAUSE = 30.0  # SLURM is asked each time


class Pruned(Interrupted):
    """The pruner wants no more of this trial."""


class Stop:
    """Whether this worker was told to go; a signal's handler. (An Event may be locked where the signal comes.)

    A worker whose launch was killed is to go too; `launch_lives` says whether it was.
    """

    def __init__(self, launch_lives: Callable[[], bool] = lambda: True) -> None:
        self._told, self._launch_lives = False, launch_lives

    def __call__(self, *_: Any) -> None:
        self._told = True

    @property
    def asked(self) -> bool:
        return self._told or not self._launch_lives()

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        return self.asked


class Worker:
    """Takes one trial after another in this process; `stop` lets it leave at the end of a step."""

    def __init__(
        self, trials: Trials, stop: Stop, device: str = "auto", beside: int = 1, workers: int | None = None
    ) -> None:
        self.trials, self.stop, self.device, self.beside, self.workers = trials, stop, device, beside, workers

    def work(self) -> str:
        """Train trials until there are none to take; returns why.

        Raises:
            ConfigError: what fails one trial would fail the next too, e.g. missing data.
        """
        self._look_around()
        while not self.stop.asked:
            claim = self.trials.claim()
            if claim is Nothing.BUSY:
                # one worker stays, lest a trial be lost with its worker; the others free their machines
                with first_at(self.trials.folder, "watch") as first:
                    if not first:
                        return claim.value
                    pause = POLL_SECONDS
                    while claim is Nothing.BUSY and not self.stop.wait(pause):
                        claim, pause = self.trials.claim(), min(1.5 * pause, LONGEST_PAUSE)
            if isinstance(claim, Claim):
                self._train(claim)
            elif claim is not Nothing.BUSY:
                return claim.value
        return "stopped"

    def _look_around(self) -> None:
        """Refuse to take trials where not even the base could be trained: three such workers would fail a trial.

        Raises:
            ConfigError: no such device here, or the base's data can't be used.
        """
        base = self.trials.base
        with joined(self.device):
            Data(base.data, base.recipe, base.seed)

    def _data_refuse(self, config: RunConfig) -> bool:
        """Whether the data can't be used with this configuration, e.g. its batch size, while they can with the base."""
        try:
            self._look_around()
        except (ConfigError, OSError, MemoryError):
            return False
        try:
            Data(config.data, config.recipe, config.seed)
        except ConfigError:
            return True
        except (OSError, MemoryError):
            pass
        return False

    def _train(self, claim: Claim) -> None:
        folder = RunFolder(self.trials.root / digest(claim.config))
        try:
            folder.create(claim.config)
            while folder.is_locked() and not self.stop.wait(POLL_SECONDS):
                pass  # a grid trains it, or what a killed worker left behind still ends
            if self.stop.asked:
                return self.trials.release(claim)
            with _output_to(folder.path / "log.txt"):
                result = self._run(claim, folder)
        except Pruned:
            return self.trials.prune(claim)
        except RunBusy:
            return self.trials.release(claim)
        except Interrupted:
            self.stop()
            return self.trials.release(claim)
        except (ConfigError, OSError) as error:
            # of this configuration, not of the next
            if "out of memory" in str(error) or self._data_refuse(claim.config):
                return self.trials.fail(claim, str(error))
            self.trials.give_up(claim, str(error))
            raise ConfigError(str(error)) from None
        except Exception as error:
            return self.trials.fail(claim, f"{type(error).__name__}: {error}")
        if result["state"] != "done":
            return self.trials.fail(claim, result.get("error", "the run failed"))
        row = last_metrics(folder.path, claim.config)
        if row is None:  # a grid's run, say, whose files were meddled with
            return self.trials.fail(claim, f"{folder.path}: done, but metrics.jsonl has no row of its last epoch")
        return self.trials.finish(claim, row)

    def _run(self, claim: Claim, folder: RunFolder) -> dict[str, Any]:
        reported = set(self.trials.all()[claim.number].intermediate_values)

        def report(row: dict[str, Any]) -> None:
            if self.trials.single and row["epoch"] not in reported:
                claim.trial.report(top1(row), row["epoch"])
                reported.add(row["epoch"])

        def after_epoch(row: dict[str, Any]) -> None:
            last = row["epoch"] >= claim.config.recipe.total_epochs
            try:
                report(row)
                unpromising = self.trials.single and not last and claim.trial.should_prune()
            except UpdateFinishedTrialError:  # others took this worker for dead; the run is of use all the same
                return
            except (OSError, OperationalError):  # a database that is away costs a report, not the run
                traceback.print_exc()
                return
            if unpromising:
                raise Pruned(f"below the median in epoch {row['epoch']}")
            if self.stop.asked and not last:
                raise Interrupted("stopped between two epochs")

        workers = self.workers
        if workers is None:
            workers = default_workers(claim.config.data, self.device, self.beside)
        for row in metrics(folder.path):  # of an earlier attempt
            report(row)
        try:
            return train(claim.config, folder.path, self.device, workers, self.trials.root / "teachers", after_epoch)
        except (Interrupted, RunBusy, ConfigError):
            raise
        except Exception:
            traceback.print_exc()  # into the run's own log
            raise


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What this process prints goes to a run's log while the body runs."""
    before = [(stream, os.dup(number)) for stream, number in ((sys.stdout, 1), (sys.stderr, 2))]
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for (stream, _), number in zip(before, (1, 2), strict=True):
            stream.flush()
            os.dup2(log, number)
        os.close(log)
        yield
    finally:
        for (stream, saved), number in zip(before, (1, 2), strict=True):
            stream.flush()
            os.dup2(saved, number)
            os.close(saved)


def worker_folder(folder: Path, name: str) -> RunFolder:
    place = RunFolder(folder / "workers" / name)
    place.path.mkdir(parents=True, exist_ok=True)
    return place


def work_here(root: str, label: str, name: str, device: str, beside: int, measure: Any, sender: Any) -> None:
    """Body of a local worker's process; sends why it ended and whether that was an error."""
    import signal

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parent = multiprocessing.parent_process()
    stop = Stop(parent.is_alive) if parent else Stop()
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    folder = search_folder(Path(root), label)
    try:
        place = worker_folder(folder, name)
        with place.lock():
            log_to(place.path / "log.txt")
            trials = Trials(Path(root), folder, Owner.here(name), measure)
            sender.send((Worker(trials, stop, device, beside).work(), False))
    except (ConfigError, OSError) as error:
        sender.send((str(error), True))


@dataclass(frozen=True)
class SearchPayload:
    """A worker as a job; all that it needs besides this is in the runs' folder."""

    label: str
    root: str
    worker: str
    submission: str
    snapshot: str

    def __call__(self) -> str:
        signals, stop = Signals(), Stop()
        signals.listen(stop)
        root = Path(self.root)
        snapshot = root / "snapshots" / self.snapshot
        verify(snapshot)
        mine = next(each for each in read_submissions(root) if each.id == self.submission)
        folder = search_folder(root, self.label)
        place = worker_folder(folder, self.worker)
        history = Attempts(place, self.submission)
        with place.lock():
            owner = Owner.here(self.worker, job_number())
            trials = Trials(root, folder, owner, snapshot=snapshot)
            # a node whose GPUs don't work must not train on its CPU for days
            device = "cuda" if mine.profile.gpus_per_node else "auto"
            said = Worker(trials, stop, device, workers=mine.profile.cpus_per_task - 1).work()
        if stop.asked:
            return end_job(history, signals, mine.profile, "the same command starts another worker")
        history.stop("done")
        return said

    def checkpoint(self) -> Any:  # submitit requeues what can be asked for this
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
