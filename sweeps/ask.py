"""A search's loop: Optuna proposes a configuration, an ordinary launch trains it, its validation score is the answer.

A proposal is a row in `trials.jsonl`, written under the launch lock before its run begins. Nothing else has to survive
a kill: the study is made anew from those rows and the runs' folders each time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FixedTrial, TrialState
from rich.console import Console

from metamixer import jsonl
from metamixer.config import ConfigError, digest
from metamixer.latency.measure import time_runs
from metamixer.metric import readable
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

from . import cluster, scheduler
from .grid import PlannedRun, Variant
from .iso_cost import LATENCY, cost
from .profiles import Profile
from .search import LoadedSearch
from .states import State, find_states
from .submissions import launch_lock
from .terminal import show_training
from .trials import FILE, OPEN, read_trials, study_of

PROPOSALS = 300  # of one trial, until the space counts as exhausted
BY_SAMPLER = 50  # of these; the rest is drawn at random
BETWEEN_LOOKS = 30.0  # seconds, at what runs on a cluster
TO_TRAIN = {State.NEW, State.INTERRUPTED}


class Asker:
    """Proposes the trials of a search until `wanted` of them were launched; all that it decides is in its folder."""

    def __init__(self, root: Path, loaded: LoadedSearch, wanted: int) -> None:
        """Make the search's folder or find it.

        Raises ConfigError: the folder can't be written, or holds a search that differs in more than its question.
        """
        self.root, self.loaded, self.wanted = root, loaded, wanted
        self.folder, about = root / "searches" / f"{loaded.name}@{loaded.data}", loaded.about()
        there = RunFolder(self.folder)
        with launch_lock(root):
            begun = there.read("search.json")
            if begun is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                there.write("search.json", begun := about)
        changed = [key for key in about if key != "question" and begun.get(key) != about[key]]
        for row in jsonl.read(self.folder / FILE):
            try:
                trial = FixedTrial(row["parameters"])
                same = digest(loaded.config(trial)) == row["hash"] and _ranges(trial) == row["distributions"]
            except ValueError:
                same = False
            changed += [] if same else [f"trial {row['trial']}"]
        if changed:
            raise ConfigError(
                f"{self.folder.name} was begun with other {', '.join(changed[:3])}: give the changed search a name of "
                f"its own (another file), or put {self.folder} aside"
            )

    def open_runs(self, at_least: int = 0) -> list[PlannedRun]:
        """The runs of trials that have not ended, of which proposals make `at_least` as long as more are wanted.

        Raises ConfigError: of hundreds of first proposals none makes a run within its limits.
        """
        with launch_lock(self.root):
            while True:
                rows = read_trials(self.folder)
                waiting = [row for row in rows if row["ended"]["outcome"] == OPEN]
                if len(waiting) >= at_least or len(rows) >= self.wanted:
                    break
                if row := self._propose(rows):
                    jsonl.append(self.folder / FILE, row)
                else:
                    self.wanted = len(rows)
        configs = {row["trial"]: self.loaded.config(FixedTrial(row["parameters"])) for row in waiting}
        return [PlannedRun(f"trial {n}", each.seed, each, Variant(), digest(each)) for n, each in configs.items()]

    def _propose(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The row of a configuration that was not tried yet; None if the search's function gives no other.

        Raises ConfigError: nothing that was proposed makes a run, or what is known does not.
        """
        search, tried, problem = self.loaded.search, {row["hash"] for row in rows}, "all that it gives were tried"
        rng = random.Random(f"{search.sampler_seed} {len(rows)}")
        study = study_of(self.folder, TPESampler(seed=rng.getrandbits(32)))
        for name, parameters in search.known.items():
            if name not in {row["source"] for row in rows}:
                study.enqueue_trial(parameters, {"source": name})
        for attempt in range(PROPOSALS):
            if attempt == BY_SAMPLER:  # it insists on what was tried
                study.sampler = RandomSampler(seed=rng.getrandbits(32))
            trial = study.ask()
            source = trial.user_attrs.get("source", "sampler")
            try:
                config = self.loaded.config(trial)
                if lacks := trial.params.keys() - search.known.get(source, trial.params).keys():
                    raise ConfigError(f"it lacks {min(lacks)!r}, which propose asks for")
                if digest(config) not in tried:
                    about = {"trial": len(rows), "hash": digest(config), "seed": config.seed, "source": source}
                    ranges = _ranges(trial)
                    return {**about, "parameters": trial.params, "distributions": ranges, "costs": self._costs(config)}
            except ValueError as error:  # sizes that do not fit each other, or a cost above its limit
                if source != "sampler":
                    raise ConfigError(f"known {source!r}: {error}") from None
                problem = str(error)
            study.tell(trial, state=TrialState.FAIL)
        line = f"none of {PROPOSALS} proposals makes a run, e.g. {problem}"
        if not rows:
            raise ConfigError(line)
        Console(soft_wrap=True).print(line, style="yellow", markup=False)
        return None

    def _costs(self, config: RunConfig) -> dict[str, float]:
        """What a run costs, latencies only if its other costs are allowed.

        Raises ConfigError: one is above its limit.
        """
        search, counted = self.loaded.search, cost(config)
        costs: dict[str, float] = {"macs": counted.macs, "params": counted.parameters}
        for name in sorted({*search.constraints, *search.minimize}, key=lambda name: name.startswith(LATENCY)):
            if name.startswith(LATENCY):
                base, own = time_runs(name.removeprefix(LATENCY), [self.loaded.base, config])
                costs[name] = own / base  # timed together: the machine's pace drops out
            if costs[name] > (limit := search.constraints.get(name, inf)):
                raise ConfigError(f"{name} {readable(costs[name])} is above the limit, {readable(limit)}")
        return costs

    def left(self) -> int:
        """How many trials have yet to end."""
        return max(self.wanted - sum(row["ended"]["outcome"] != OPEN for row in read_trials(self.folder)), 0)


def _ranges(trial: Any) -> dict[str, str]:
    return {name: distribution_to_json(each) for name, each in trial.distributions.items()}


def search_here(asker: Asker, workers: int, device: str) -> bool:
    """Train the trials on this machine, each proposed when a worker is free; returns whether all have ended.

    An interrupted trial stays open and keeps its worker's place: something around it is broken.
    """

    def runs() -> Iterator[PlannedRun]:
        given = set[str]()
        while free := [run for run in asker.open_runs(workers) if run.hash not in given]:
            given.add(free[0].hash)
            yield free[0]

    if show_training(runs(), asker.left(), asker.root, workers, device):
        Console().print("stopped; the same command goes on from here", style="yellow")
    return not asker.left()


def search_on_slurm(asker: Asker, workers: int, profile: Profile, max_gpu_hours: float | None) -> bool:
    """Keep `workers` trials queued or running until all have ended or SLURM refuses; returns whether all have ended.

    Jobs run on without this process; a later call goes on with them, and submits interrupted trials again.

    Raises ConfigError: SLURM can't be asked, or the trials may take more than `max_gpu_hours`.
    """
    cluster.check_budget([(profile, asker.left())], max_gpu_hours)
    scheduler.max_array_size()  # fails where there is no SLURM
    given = set[str]()
    while True:
        configs = {run.hash: run.config for run in asker.open_runs(workers)}
        with launch_lock(asker.root):
            new = {hash: config for hash, config in configs.items() if hash not in given}
            taken = cluster.launch(asker.root, new, TO_TRAIN, profile)
        given |= configs.keys()
        if not taken or set(find_states(asker.root, configs).values()) <= TO_TRAIN:
            return not asker.left()  # all have ended, or the rest can't go on
        time.sleep(BETWEEN_LOOKS)
