"""The trials of a search: who takes which, how each ends, and what becomes of a dead worker's.

Every decision is taken under the search's lock from what then is true. A trial enters the study whole, in one record:
its parameters, what it costs, its run's hash and who has it. It is proposed on a copy of the study in memory, so what
turns out impossible (sizes that do not fit) or was tried before is never a trial.

| Optuna's state | what it means here |
|---|---|
| WAITING | to be trained: a known configuration, or one that was begun and left |
| RUNNING | a worker has it |
| COMPLETE | trained to its end; its values |
| PRUNED | ended early by the pruner; or, with a violated constraint, too costly (never trained) or failed |
| FAIL | its worker died; the same configuration waits again as another trial |

A trial has finished when it was trained: complete, pruned or failed. Those are counted against what was asked for.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from metamixer.config import ConfigError, digest, override
from metamixer.cost import Cost
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig
from metamixer.training.state import SILENT_AFTER

from .. import scheduler
from ..latency import Clock
from .known import finished_runs, metrics, top1
from .space import suggested_by
from .study import lock, open_study

ATTEMPTS = 3  # workers that one configuration may take with it
PROPOSALS = 300  # of one trial, until the space counts as exhausted
BY_SAMPLER = 50  # of these; the rest is drawn at random
TOO_COSTLY = 200  # trials in a row that cost too much, until the constraints count as out of reach

WANTED = "wanted"  # the study's attribute with the number of trials asked for
TRAINED = "trained"  # a trial's attribute once it has been
FAILED = "failed"  # the constraint that a failed trial violates


class Nothing(Enum):
    """Why there is no trial to take."""

    FINISHED = "all trials have finished"
    BUSY = "the last trials are with other workers"
    EXHAUSTED = "every configuration of the space was tried"


@dataclass(frozen=True)
class Owner:
    """Who has a trial: a worker by its name, with SLURM's number of its job or this machine's name."""

    name: str
    job: str | None = None
    host: str = ""

    @classmethod
    def here(cls, name: str, job: str | None = None) -> Owner:
        return cls(name, job, socket.gethostname())


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has, and its run."""

    trial: Trial
    config: RunConfig

    @property
    def number(self) -> int:
        return self.trial.number


class Trials:
    """The trials of one study, for one worker or for whoever launches them."""

    def __init__(
        self, root: Path, folder: Path, owner: Owner, measure: Clock | None = None, snapshot: Path | None = None
    ) -> None:
        self.root, self.folder, self.owner, self.measure = root, folder, owner, measure
        self.study, self.definition = open_study(folder, snapshot)
        self.base = self.definition.base_run()  # and with it users' modules
        # Optuna's own, for what its Study has no word for: giving a trial back
        self._storage = self.study._storage
        self._costly = 0

    def all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def wanted(self) -> int:
        return int(self.study.user_attrs.get(WANTED, 0))

    def config(self, trial: FrozenTrial | Trial) -> RunConfig:
        return self.definition.run(self.base, lambda name, _: trial.params[name])

    def prepare(self, wanted: int) -> int:
        """Set how many trials are wanted, put what is known into the study. Returns how many finished runs came in.

        When it is new, runs of the folder that lie in the space, whatever trained them, are trials already; the
        definition's known configurations that are not among the trials come next, also those that were added since.
        """
        with lock(self.folder):
            self.study.set_user_attr(WANTED, wanted)
            tried = {trial.user_attrs.get("hash") for trial in self.all()}
            came_in, begun = 0, self.study.user_attrs.get("begun")
            for config in () if begun else finished_runs(self.root, self.definition, self.base):
                hash = digest(config)
                added = hash not in tried and self._add(config, "finished run", trained=True)
                came_in += added
                tried |= {hash} if added else set()
            for name, changes in self.definition.known.items():
                config = override(self.base, changes)
                if digest(config) not in tried:
                    self._add(config, name)
                    tried.add(digest(config))
            self.study.set_user_attr("begun", True)
            return came_in

    def _add(self, config: RunConfig, source: str, trained: bool = False) -> bool:
        """Add a configuration, waiting or with what its run gave; returns False if that is of no use."""
        parameters = self.definition.parameters_of(self.base, config)
        distributions = dict[str, BaseDistribution]()

        def answer(name: str, distribution: BaseDistribution) -> Any:
            distributions[name] = distribution
            return parameters[name]

        self.definition.run(self.base, answer)
        result = RunFolder(self.root / digest(config)).result() or {}
        counted = Cost(parameters=result["parameters"], macs=result["macs"]) if trained else None
        costs = self.definition.costs(config, self.measure, counted)
        excess = self.definition.excess(costs)
        attributes = {"hash": digest(config), "source": source, **costs}
        rows = metrics(self.root / digest(config))
        too_costly = any(value > 0 for value in excess.values())
        if trained and too_costly:
            return False
        state = TrialState.COMPLETE if trained else TrialState.PRUNED if too_costly else TrialState.WAITING
        self.study.add_trial(
            create_trial(
                state=state,
                params=parameters,
                distributions=distributions,
                values=self.values(rows[-1], costs) if trained else None,
                user_attrs=attributes | ({TRAINED: True} if trained else {}),
                constraints=excess,
                intermediate_values={row["epoch"]: top1(row) for row in rows} if trained and self.single else {},
            )
        )
        return True

    @property
    def single(self) -> bool:
        return len(self.definition.objectives) == 1

    def values(self, row: dict[str, Any], costs: dict[str, Any]) -> list[float]:
        return [top1(row) if name == "top1" else float(costs[name]) for name in self.definition.objectives]

    def claim(self) -> Claim | Nothing:
        """Take a trial: one that waits, else a new one, as long as more are wanted.

        Raises:
            ConfigError: hundreds of proposals in a row cost too much.
        """
        while True:
            gone = self._dead()
            with lock(self.folder):
                trials = self._bury(gone)
                mine = [t for t in trials if t.state == TrialState.RUNNING and self._has(t, self.owner.name)]
                if mine:  # SLURM started this worker's job again after a kill
                    return self._claim(mine[0])
                finished = sum(has_finished(trial) for trial in trials)
                running = sum(trial.state == TrialState.RUNNING for trial in trials)
                if finished + running >= self.wanted:
                    return Nothing.BUSY if running and finished < self.wanted else Nothing.FINISHED
                for trial in trials:
                    if trial.state == TrialState.WAITING and "hash" in trial.user_attrs:
                        self._storage.set_trial_user_attr(trial._trial_id, "owner", vars(self.owner))
                        self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                        return self._claim(trial)
                proposed = self._propose(trials)
                if proposed is None:
                    return Nothing.BUSY if running else Nothing.EXHAUSTED
                # one record, so that a kill leaves a whole trial or none
                self.study.add_trial(proposed)
                if proposed.state == TrialState.RUNNING:
                    self._costly = 0
                    return self._claim(self.all()[-1])
            self._costly += 1
            if self._costly >= TOO_COSTLY:
                limits = ", ".join(f"{name} ≤ {limit:g}" for name, limit in self.definition.constraints.items())
                raise ConfigError(f"{TOO_COSTLY} proposals in a row cost more than {limits}: allow more")

    def _claim(self, trial: FrozenTrial) -> Claim:
        return Claim(Trial(self.study, trial._trial_id), self.config(trial))

    def _propose(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """A trial that was not tried yet, running or too costly; None if none was found.

        Raises:
            ConfigError: nothing that was proposed makes a run.
        """
        tried = {trial.user_attrs.get("hash") for trial in trials}
        draws = random.Random(f"{self.definition.draws} {len(trials)}")
        sampler = optuna.samplers.TPESampler(seed=draws.getrandbits(32), n_startup_trials=self.definition.startup)
        scratch = optuna.create_study(directions=self.study.directions, sampler=sampler)
        known = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        scratch.add_trials([trial for trial in trials if trial.state in known])
        problem, repeated = "", False
        for attempt in range(PROPOSALS):
            if attempt == BY_SAMPLER:  # it insists on what was tried
                scratch.sampler = optuna.samplers.RandomSampler(seed=draws.getrandbits(32))
            asked = scratch.ask()
            try:
                config = self.definition.run(self.base, suggested_by(asked))
                if digest(config) in tried:
                    repeated = True
                    continue
                costs = self.definition.costs(config, self.measure)
            except ValueError as error:  # values or sizes that do not fit
                problem = str(error)
                continue
            excess = self.definition.excess(costs)
            too_costly = any(value > 0 for value in excess.values())
            attributes = {"hash": digest(config), "source": "sampler", **costs}
            return create_trial(
                state=TrialState.PRUNED if too_costly else TrialState.RUNNING,
                params=asked.params,
                distributions=asked.distributions,
                user_attrs=attributes | ({} if too_costly else {"owner": vars(self.owner)}),
                constraints=excess,
            )
        if not repeated:
            raise ConfigError(f"none of {PROPOSALS} proposals makes a run: {problem}")
        return None

    def finish(self, claim: Claim, row: dict[str, Any]) -> None:
        """Record the values of a trial that was trained to its end, from its last row of metrics."""
        with self._held(claim) as still:
            if still:
                claim.trial.set_user_attr(TRAINED, True)
                self.study.tell(claim.trial, self.values(row, claim.trial.user_attrs))

    def prune(self, claim: Claim) -> None:
        with self._held(claim) as still:
            if still:
                claim.trial.set_user_attr(TRAINED, True)
                self.study.tell(claim.trial, state=TrialState.PRUNED)

    def fail(self, claim: Claim, error: str) -> None:
        """Record that the run itself failed, e.g. diverged: no values, and no place for the sampler to return to."""
        with self._held(claim) as still:
            if still:
                self._fail(claim.trial, error)

    def release(self, claim: Claim) -> None:
        """Give a trial back, for whoever goes on with its run."""
        with self._held(claim) as still:
            if still:
                self._storage.set_trial_state_values(claim.trial._trial_id, TrialState.WAITING)

    def give_up(self, claim: Claim, error: str) -> None:
        """Treat the trial as a dead worker's, because the surroundings failed it."""
        with self._held(claim) as still:
            if still:
                self._again(self.all()[claim.number], error)

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[bool]:
        """The search's lock, and whether the trial is still this worker's.

        It is not once others took the worker for dead, as they do of one that SLURM cancels while it still saves. The
        configuration then waits as another trial, which finds the run where this worker left it.
        """
        with lock(self.folder):
            trial = self.all()[claim.number]
            yield trial.state == TrialState.RUNNING and self._has(trial, self.owner.name)

    def bury(self) -> None:
        """Deal with the trials of dead workers, for a launcher that takes none itself."""
        gone = self._dead()
        with lock(self.folder):
            self._bury(gone)

    def _bury(self, gone: set[tuple[int, str]]) -> list[FrozenTrial]:
        """Fail and enqueue again what dead workers had; the lock is held. Returns the trials as they then are."""
        trials = self.all()
        found = [t for t in trials if t.state == TrialState.RUNNING and (t.number, _owner(t)) in gone]
        for trial in found:
            self._again(trial, "its worker died")
        return self.all() if found else trials

    def _again(self, trial: FrozenTrial, reason: str) -> None:
        deaths = trial.user_attrs.get("deaths", 0) + 1
        if deaths >= ATTEMPTS:
            return self._fail(Trial(self.study, trial._trial_id), f"{reason}, {deaths} times")
        if not any(each.user_attrs.get("again") == trial.number for each in self.all()):
            # also not what its worker had begun to say of its end
            kept = {key: value for key, value in trial.user_attrs.items() if key not in ("owner", TRAINED, "error")}
            self.study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={**kept, "again": trial.number, "deaths": deaths},
                    constraints={key: value for key, value in trial.constraints.items() if key != FAILED},
                )
            )
        self._storage.set_trial_user_attr(trial._trial_id, "error", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        return None

    def _fail(self, trial: Trial, error: str) -> None:
        trial.set_user_attr("error", error)
        trial.set_user_attr(TRAINED, True)
        trial.set_constraint(FAILED, 1.0)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _dead(self) -> set[tuple[int, str]]:
        """Running trials, with their owner, whose worker is confirmed to be gone: by SLURM, by its lock, by silence."""
        running = [t for t in self.all() if t.state == TrialState.RUNNING and not self._has(t, self.owner.name)]
        owners = {t.number: t.user_attrs.get("owner") or {} for t in running}
        answer = scheduler.ask(owner["job"] for owner in owners.values() if owner.get("job"))
        gone = set()
        for trial in running:
            owner = owners[trial.number]
            job = answer.jobs.get(owner.get("job") or "")
            if owner.get("job"):
                dead = not (job.waiting or job.alive) if job else not answer.problem
            elif owner.get("host") == socket.gethostname():
                dead = not RunFolder(self.folder / "workers" / owner["name"]).is_locked()
            else:
                dead = bool(owner) and self._silent(trial)
            if dead:
                gone.add((trial.number, _owner(trial)))
        return gone

    def _silent(self, trial: FrozenTrial) -> bool:
        """Whether a run on another machine, whose locks may not reach here, has not been heard of for long."""
        progress = RunFolder(self.root / trial.user_attrs["hash"]).read("progress.json") or {}
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - max(progress.get("time", 0.0), began) > SILENT_AFTER

    def _has(self, trial: FrozenTrial, name: str) -> bool:
        return (trial.user_attrs.get("owner") or {}).get("name") == name


def _owner(trial: FrozenTrial) -> str:
    return json.dumps(trial.user_attrs.get("owner"), sort_keys=True)


def has_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and bool(trial.user_attrs.get(TRAINED)) and trial.state != TrialState.FAIL
