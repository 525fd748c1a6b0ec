"""A search's loop: Optuna proposes a configuration, an ordinary launch trains it, its validation score is the answer.

A proposal is a row in `trials.jsonl`, written under the launch lock before its run begins. Nothing else has to survive
a kill: the study is made anew from those rows and the runs' folders each time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FixedTrial, TrialState
from rich.console import Console
from rich.markup import escape

from metamixer import jsonl
from metamixer.config import ConfigError, digest, override
from metamixer.latency.measure import time_runs
from metamixer.metric import readable
from metamixer.training.folder import RunFolder

from . import cluster, scheduler
from .grid import PlannedRun, Variant
from .iso_cost import LATENCY, cost
from .local import Outcome
from .profiles import Profile
from .search import Definition, Proposing
from .states import State, find_states
from .submissions import launch_lock
from .terminal import show_training
from .trials import FILE, OPEN, proposals, read_trials, study_of, too_costly

DRAWS = 100  # at random, that show what a search's function asks for
PROPOSALS = 300  # of one trial, until the space counts as exhausted
BY_SAMPLER = 50  # of these; the rest is drawn at random
TOO_COSTLY = 200  # trials in a row above a limit, until the limits count as out of reach
BETWEEN_LOOKS = 30.0  # seconds, at what runs on a cluster
INTERRUPTED = 2  # runs of one launch, until it proposes no more: something around them is broken
TO_TRAIN = {State.NEW, State.INTERRUPTED}


def print_search(definition: Definition) -> None:
    """Print a search's question, parameters, aim and limits. Writes nothing.

    Raises ConfigError: no draw makes a run, or a known configuration is none.
    """
    for name in definition.search.known:
        definition.known(name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked, problems = dict[str, Any](), Counter[str]()
    for _ in range(DRAWS):
        trial = study.ask()
        try:
            definition.config(trial)
        except ValueError as error:
            problems[str(error)] += 1
        asked |= trial.distributions
    refused = "".join(f"make no run, e.g. {problem}" for problem, _ in problems.most_common(1))
    if problems.total() == DRAWS:
        raise ConfigError(f"all of {DRAWS} random draws {refused}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{definition.name}[/bold] on {definition.data}: {definition.question}")
    for name, each in asked.items():
        choices = [escape(str(choice)) for choice in getattr(each, "choices", ())]
        console.print(f"  {escape(name)}: {' · '.join(choices) or f'{each.low:g} to {each.high:g}'}")
    if problems:
        console.print(f"note: {problems.total()} of {DRAWS} random draws {refused}", style="yellow")
    limits = [f"{name} at most {readable(limit)}" for name, limit in definition.search.constraints.items()]
    console.print(f"sought: {', '.join([*definition.about()['objectives'], *limits])}")
    spent, epochs = cost(definition.base), definition.base.recipe.total_epochs
    console.print(f"the base: {readable(spent.macs)} macs, {readable(spent.parameters)} params; {epochs} epochs")


class Asker:
    """Proposes the trials of a search until `wanted` of them were launched; all that it decides is in its folder."""

    def __init__(self, root: Path, definition: Definition, wanted: int) -> None:
        """Make the search's folder or find it.

        Raises ConfigError: the folder can't be written, or holds a search that differs in more than its question.
        """
        self.root, self.definition, self.wanted = root, definition, wanted
        self.folder, self.about = root / "searches" / f"{definition.name}@{definition.data}", definition.about()
        there = RunFolder(self.folder)
        with launch_lock(root):
            if (begun := there.read("search.json")) is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                there.write("search.json", self.about)
            elif changed := self._changed(begun):
                raise ConfigError(
                    f"{self.folder.name} was begun with other {changed}: give the changed search a name of its own "
                    f"(another file), or put {self.folder} aside"
                )

    def _changed(self, begun: dict[str, Any]) -> str:
        """What is no longer as it was when the search was begun."""
        found = [key for key, now in self.about.items() if key != "question" and begun.get(key) != now]
        for row in proposals(self.folder):
            try:
                now = self._asked(FixedTrial(row["parameters"]))
            except ValueError:
                now = {"parameters": None}
            differs = [key for key in now if now[key] != row.get(key)]
            found += [f"{key} of trial {row['trial']}" for key in differs]
        return ", ".join(found[:3])

    def _asked(self, trial: Proposing) -> dict[str, Any]:
        """The part of a proposal's row that its trial alone decides."""
        changes = self.definition.changes(trial)
        ranges = {name: distribution_to_json(each) for name, each in trial.distributions.items()}
        return {"parameters": trial.params, "distributions": ranges, "changes": changes}

    def open_runs(self, at_least: int = 0) -> list[PlannedRun]:
        """The runs of trials that have not ended, of which proposals make `at_least` as long as more are wanted.

        Raises ConfigError: hundreds of proposals in a row make no run or cost too much.
        """
        with launch_lock(self.root):
            while True:
                rows = read_trials(self.folder)
                waiting = [row for row in rows if row["ended"]["outcome"] == OPEN]
                begun = sum(not too_costly(row) for row in rows)
                if len(waiting) >= at_least or begun >= self.wanted or (row := self._propose(rows)) is None:
                    return [self._run(row) for row in waiting]
                jsonl.append(self.folder / FILE, row)
                if len(rows) >= TOO_COSTLY and all(map(too_costly, [*rows, row][-TOO_COSTLY:])):
                    limits = ", ".join(f"{name} ≤ {limit:g}" for name, limit in self.about["constraints"].items())
                    raise ConfigError(f"{TOO_COSTLY} proposals in a row cost more than {limits}: allow more")

    def _run(self, row: dict[str, Any]) -> PlannedRun:
        config = override(self.definition.base, row["changes"])
        if digest(config) != row["hash"]:  # the user's code was edited; the run goes on with its own copy
            config = RunFolder(self.root / row["hash"]).config()
        return PlannedRun(f"trial {row['trial']}", config.seed, config, Variant(), row["hash"])

    def _propose(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The row of a configuration that was not tried yet; None if the search's function gives no other.

        Raises ConfigError: nothing that was proposed makes a run.
        """
        search, tried = self.definition.search, {row["hash"] for row in rows}
        for name in search.known:
            if row := self._row(len(rows), self.definition.known(name), name, tried):
                return row
        rng = random.Random(f"{search.sampler_seed} {len(rows)}")
        study = study_of(self.folder, optuna.samplers.TPESampler(seed=rng.getrandbits(32)))
        problem = ""
        for attempt in range(PROPOSALS):
            if attempt == BY_SAMPLER:  # it insists on what was tried
                study.sampler = optuna.samplers.RandomSampler(seed=rng.getrandbits(32))
            trial = study.ask()
            try:
                if row := self._row(len(rows), trial, "sampler", tried):
                    return row
            except ValueError as error:  # sizes that do not fit each other
                problem = str(error)
            study.tell(trial, state=TrialState.FAIL)
        if not rows:
            raise ConfigError(f"none of {PROPOSALS} proposals makes a run: {problem}")
        return None

    def _row(self, number: int, trial: Proposing, source: str, tried: set[str]) -> dict[str, Any] | None:
        """What is recorded of a proposal, latencies only if its other costs are allowed; None if it was tried.

        Raises ValueError: its parameters make no run.
        """
        asked = self._asked(trial)
        config = override(self.definition.base, asked["changes"])
        if digest(config) in tried:
            return None
        counted, limits = cost(config), self.about["constraints"]
        costs: dict[str, float] = {"macs": counted.macs, "params": counted.parameters}
        if all(costs[name] <= limits.get(name, costs[name]) for name in costs):
            for name in dict.fromkeys([*self.about["objectives"], *limits]):
                if name.startswith(LATENCY):
                    base, own = time_runs(name.removeprefix(LATENCY), [self.definition.base, config])
                    costs[name] = own / base  # timed together: the machine's pace drops out
        excess = {name: costs[name] / limit - 1 for name, limit in limits.items() if name in costs}
        about = {"trial": number, "hash": digest(config), "seed": config.seed, "source": source}
        return {**about, **asked, "costs": costs, "excess": excess}

    def left(self) -> int:
        """How many trials have yet to end."""
        ended = sum(row["ended"]["outcome"] in ("done", "failed") for row in read_trials(self.folder))
        return max(self.wanted - ended, 0)

    def describe(self, outcome: Outcome) -> str:
        """A line on how a trial's run ended; its score is that of the validation samples."""
        row = next(each for each in read_trials(self.folder) if each["hash"] == outcome.run.hash)
        metric, name = self.definition.base.metrics[0], f"{outcome.run.variant} ({row['source']})"
        if row["ended"]["outcome"] != "done":
            return f"{name}: {outcome.state}, {outcome.message}"
        return f"{name}: val {metric.text(row['ended'][metric.name])}"


def search_here(asker: Asker, workers: int, device: str) -> bool:
    """Train the trials on this machine, each proposed when a worker is free; returns whether all have ended."""

    def runs() -> Iterator[PlannedRun]:
        given = set[str]()
        while True:
            waiting = asker.open_runs()
            states = find_states(asker.root, {run.hash for run in waiting})
            if sum(states.get(hash) == State.INTERRUPTED for hash in given) >= INTERRUPTED:
                return
            free = [run for run in waiting if run.hash not in given and states[run.hash] in TO_TRAIN]
            free = free or [run for run in asker.open_runs(len(waiting) + 1) if run.hash not in states]
            if not free:
                return
            given.add(free[0].hash)
            yield free[0]

    if show_training(runs(), asker.left(), asker.root, workers, device, asker.describe):
        Console().print("stopped; the same command goes on from here", style="yellow")
    return not asker.left()


def search_on_slurm(
    asker: Asker, workers: int, profile: Profile, max_gpu_hours: float | None, max_attempts: int
) -> bool:
    """Keep `workers` trials queued or running until all have ended or SLURM refuses; returns whether all have ended.

    Jobs run on without this process; a later call goes on with them.

    Raises ConfigError: SLURM can't be asked, or the trials may take more than `max_gpu_hours`.
    """
    cluster.check_budget([(profile, asker.left())], max_gpu_hours)
    size = scheduler.max_array_size()
    name, data = asker.definition.name, asker.definition.data
    while True:
        configs = {run.hash: run.config for run in asker.open_runs(workers)}
        taken = cluster.launch(asker.root, configs, TO_TRAIN, name, data, profile, max_attempts, size)
        states = find_states(asker.root, configs)
        if not taken or set(states.values()) <= TO_TRAIN:
            return not asker.left()  # all have ended, or the rest can't be submitted
        time.sleep(BETWEEN_LOOKS)
