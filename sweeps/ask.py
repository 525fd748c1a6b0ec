"""A search's loop: Optuna proposes a configuration, an ordinary launch trains it, its validation top-1 is the answer.

A proposal is a row in `trials.jsonl`, written under the launch lock before its run begins. Nothing else has to survive
a kill: the study is made anew from those rows and the runs' folders each time.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import FixedTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metamixer import jsonl
from metamixer.config import SCHEMA_VERSION, ConfigError, differences, digest, override, parse
from metamixer.cost import readable
from metamixer.latency.bench import time_runs
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig

from . import cluster, scheduler
from .grid import PlannedRun, Variant
from .iso_cost import cost
from .local import Outcome
from .profiles import Profile
from .search import About, Definition
from .space import parameters_of
from .states import State, find_standings, find_states
from .submissions import launch_lock
from .terminal import show_training
from .trials import ENDED, FILE, OPEN, make_study, search_folder, too_costly, trials_with_ends

PROPOSALS = 300  # of one trial, until the space counts as exhausted
BY_SAMPLER = 50  # of these; the rest is drawn at random
TOO_COSTLY = 200  # trials in a row above a limit, until the limits count as out of reach
BEFORE_STOPPING = 5  # trials that are done before one is stopped early
BETWEEN_LOOKS = 2.0  # seconds, at how the runs go
INTERRUPTED = 2  # runs of one launch, until it proposes no more: something around them is broken


def print_search(definition: Definition) -> None:
    """Print a search's question, dimensions, objectives and limits. Writes nothing.

    Raises:
        ConfigError: see `Definition.dimensions`.
    """
    search, base = definition.search, definition.base
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=140, highlight=False)
    dimensions = definition.dimensions()
    console.print(f"[bold]{definition.name}[/bold] on {definition.setting}: {definition.question}")
    table = Table("dimension", "range", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, each in dimensions.items():
        if isinstance(each, CategoricalDistribution):
            span = " · ".join(map(str, each.choices))
        else:
            span = f"{each.low:g} to {each.high:g}{', logarithmic' if each.log else ''}"  # type: ignore[attr-defined]
        table.add_row(escape(name.removeprefix("model.stages.")), escape(span))
    console.print(table)
    on = f"; latency on {search.runtime}" if search.runtime else ""
    console.print(f"sought: {', '.join(search.objectives)}{on}")
    for name, limit in search.constraints.items():
        console.print(f"{name} at most {readable(limit)}")
    spent = cost(base)
    costs = f"{readable(spent.macs)} macs, {readable(spent.parameters)} params"
    console.print(f"the base costs {costs}; {base.recipe.total_epochs} epochs")


class Asker:
    """Proposes the trials of a search until `wanted` of them were launched; all that it decides is in its folder."""

    def __init__(self, root: Path, definition: Definition, wanted: int) -> None:
        """Make the search's folder or find it.

        Raises:
            ConfigError: the folder can't be written, or holds a search that differs in more than its question.
        """
        self.root, self.definition, self.wanted = root, definition, wanted
        self.folder = search_folder(root, definition.label)
        there, runtime = RunFolder(self.folder), definition.search.runtime
        known = there.read("search.json")
        # before there is a folder: it would hold on to a runtime that can't be used here
        latency = time_runs(runtime, [definition.base])[0] if runtime and known is None else None
        with launch_lock(root):
            known = there.read("search.json")
            self.about = definition.about(known.get("base_latency") if known else latency)
            if known is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                there.write("search.json", self.about.to_dict())
            elif known.get("schema_version") != SCHEMA_VERSION:
                raise ConfigError(f"{self.folder}: search of another version of this project: put it aside")
            elif found := differences(parse(About, {**known, "question": self.about.question}), self.about):
                lines = "; ".join(f"{key}: {before} → {now}" for key, (before, now) in found.items())
                raise ConfigError(
                    f"{self.folder.name} was begun with another search: {lines}. Give the changed search a name of its "
                    f"own (another file), or put {self.folder} aside"
                )

    def open_runs(self, at_least: int = 0) -> list[PlannedRun]:
        """The runs of trials that have not ended, of which proposals make `at_least` as long as more are wanted.

        Raises:
            ConfigError: hundreds of proposals in a row make no run or cost too much.
        """
        with launch_lock(self.root):
            rows = self.trials()
            waiting = [row for row in rows if row["outcome"] == OPEN]
            launched = sum(not too_costly(row) for row in rows)
            while len(waiting) < at_least and launched < self.wanted:
                row = self._propose(rows)
                if row is None:
                    break
                jsonl.append(self.folder / FILE, row)
                rows.append(row)
                if not too_costly(row):
                    waiting.append(row)
                    launched += 1
                elif len(rows) > TOO_COSTLY and all(map(too_costly, rows[-TOO_COSTLY:])):
                    limits = ", ".join(f"{name} ≤ {limit:g}" for name, limit in self.about.constraints.items())
                    raise ConfigError(f"{TOO_COSTLY} proposals in a row cost more than {limits}: allow more")
        return [self._run(row) for row in waiting]

    def next_run(self, given: set[str]) -> PlannedRun | None:
        """The next run to train on this machine, of an open trial or of a new one; None if there is none.

        Args:
            given: hashes of runs that this launch has begun.
        """
        for at_least in (0, len(self.open_runs()) + 1):
            runs = [run for run in self.open_runs(at_least) if run.hash not in given]
            states = find_states(self.root, [run.hash for run in runs])
            for run in runs:
                if states[run.hash] in (State.NEW, State.INTERRUPTED):
                    return run
        return None

    def _run(self, row: dict[str, Any]) -> PlannedRun:
        config = self.definition.config(FixedTrial(row["parameters"]))
        if digest(config) != row["hash"]:  # the user's code was edited; the run goes on with its own copy
            config = RunFolder(self.root / row["hash"]).config()
        return PlannedRun(f"trial {row['trial']}", config.seed, config, Variant(), row["hash"])

    def _propose(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The row of a configuration that was not tried yet; None if the space has no other.

        Raises:
            ConfigError: nothing that was proposed makes a run.
        """
        search, base = self.definition.search, self.definition.base
        tried = {row["hash"] for row in rows}
        for name, changes in search.known.items():
            config = override(base, changes)
            if digest(config) not in tried:
                return self._row(len(rows), config, parameters_of(search.space, base, config), name)
        rng = random.Random(f"{search.sampler_seed} {len(rows)}")
        sampler = optuna.samplers.TPESampler(seed=rng.getrandbits(32), n_startup_trials=search.startup)
        study = make_study(self.root, self.folder, self.about.to_dict(), sampler)
        problem, repeated = "", False
        for attempt in range(PROPOSALS):
            if attempt == BY_SAMPLER:  # it insists on what was tried
                study.sampler = optuna.samplers.RandomSampler(seed=rng.getrandbits(32))
            trial = study.ask()
            try:
                config = self.definition.config(trial)
                if digest(config) not in tried:
                    return self._row(len(rows), config, trial.params, "sampler")
                repeated = True
            except ValueError as error:  # sizes that do not fit each other
                problem = str(error)
            study.tell(trial, state=TrialState.FAIL)
        if not repeated:
            raise ConfigError(f"none of {PROPOSALS} proposals makes a run: {problem}")
        return None

    def _row(self, number: int, config: RunConfig, parameters: dict[str, Any], source: str) -> dict[str, Any]:
        """What is recorded of a proposal; latency only where nothing else is above its limit.

        Raises:
            ValueError: its sizes do not fit each other.
        """
        counted, limits = cost(config), self.about.constraints
        costs: dict[str, float] = {"macs": counted.macs, "params": counted.parameters}
        if self.about.runtime and all(costs[name] <= limits.get(name, costs[name]) for name in costs):
            # beside the base, whose milliseconds are the scale: the machine's pace drops out
            base, own = time_runs(self.about.runtime, [self.definition.base, config])
            costs["latency"] = (self.about.base_latency or base) * own / base
        trial = FixedTrial(parameters)
        self.definition.config(trial)
        return {
            "trial": number,
            "hash": digest(config),
            "seed": config.seed,
            "source": source,
            "parameters": parameters,
            "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
            "costs": costs,
            "excess": {name: costs[name] / limit - 1 for name, limit in limits.items() if name in costs},
        }

    def trials(self) -> list[dict[str, Any]]:
        return trials_with_ends(self.root, self.folder)

    def ended(self) -> int:
        """Trials that were trained to their end, failed or were stopped early."""
        return sum(trial["outcome"] in ENDED for trial in self.trials())

    def unpromising(self, running: list[PlannedRun]) -> list[PlannedRun]:
        """Runs below the median of the trials that are done, at the same epoch.

        They are recorded as stopped early and as failed, so that no launch goes on with them.
        """
        trials = {trial["hash"]: trial for trial in self.trials()}
        done = [trial["curve"] for trial in trials.values() if trial["outcome"] == "done"]
        found = []
        for run in running:
            curve = trials[run.hash]["curve"]
            epoch = max(curve, default=0)
            others = [each[epoch] for each in done if epoch in each]
            if (
                trials[run.hash]["outcome"] == OPEN
                and 0 < epoch < run.config.recipe.total_epochs
                and len(others) >= BEFORE_STOPPING
                and curve[epoch] < statistics.median(others)
            ):
                jsonl.append(self.folder / FILE, {"trial": trials[run.hash]["trial"], "stopped": epoch})
                line = f"stopped early by search {self.definition.label}, below the median after epoch {epoch}"
                RunFolder(self.root / run.hash).fail(line, epoch)
                found.append(run)
        return found

    def describe(self, outcome: Outcome) -> str:
        """A line on how a trial's run ended; its top-1 is that of the validation images."""
        trial = next(each for each in self.trials() if each["hash"] == outcome.run.hash)
        known = f" ({trial['source']})" if trial["source"] != "sampler" else ""
        units = {"latency": "ms"}
        costs = ", ".join(f"{readable(value)} {units.get(name, name)}" for name, value in trial["costs"].items())
        last = trial["curve"].get(max(trial["curve"], default=0), float("nan"))
        words = {
            "done": f"val top-1 {last:.2f} %, {costs}",
            "stopped": f"stopped early after epoch {trial.get('stopped')}, val top-1 {last:.2f} %",
            "failed": f"failed, {trial['error']}",
        }
        return f"trial {trial['trial']}{known}: {words.get(trial['outcome'], f'{outcome.state}, {outcome.message}')}"

    def print_counts(self) -> bool:
        """Print the number of trials by outcome; returns whether all wanted trials have ended."""
        counts = Counter(trial["outcome"] for trial in self.trials())
        words = ", ".join(f"{number} {name}" for name, number in counts.items())
        Console(highlight=False).print(f"{counts.total()} trials: {words}")
        return sum(counts[name] for name in ENDED) >= self.wanted


def search_here(asker: Asker, workers: int, device: str, stop_early: bool) -> bool:
    """Train the trials on this machine, each proposed when a worker is free; returns whether all have ended."""
    given, outcomes, problems, looked = set[str](), list[Outcome](), list[Exception](), 0.0

    def trials() -> Iterator[PlannedRun]:
        """The next run to train, each time that a worker is free."""
        try:
            while (run := asker.next_run(given)) is not None:
                given.add(run.hash)
                yield run
                lost = {each.run.hash for each in outcomes if each.state == State.INTERRUPTED}
                if sum(trial["hash"] in lost and trial["outcome"] == OPEN for trial in asker.trials()) >= INTERRUPTED:
                    return
        except (ConfigError, OSError) as error:  # raised once the runs that are being trained have ended
            problems.append(error)

    def watch(active: list[PlannedRun], so_far: list[Outcome]) -> list[PlannedRun]:
        nonlocal looked
        outcomes[:] = so_far
        if not stop_early or time.monotonic() < looked + BETWEEN_LOOKS:
            return []
        looked = time.monotonic()
        return asker.unpromising(active)

    left = asker.wanted - asker.ended()
    _, stopped = show_training(trials(), left, asker.root, workers, device, asker.describe, watch)
    for problem in problems:
        raise problem
    if stopped:
        Console().print("stopped; the same command goes on from here", style="yellow")
    return asker.print_counts()


def search_on_slurm(
    asker: Asker, workers: int, profile: Profile, stop_early: bool, watch: float | None, max_gpu_hours: float | None,
    max_attempts: int,
) -> bool:  # fmt: skip
    """Submit trials until `workers` of them are queued or run; with `watch`, again every so many seconds to the end.

    Returns:
        Whether SLURM took them; with `watch`, whether all trials have ended.

    Raises:
        ConfigError: SLURM can't be asked, or the trials may take more than `max_gpu_hours`.
    """
    left = asker.wanted - asker.ended()
    cluster.check_budget([(profile, left if watch else min(left, workers))], max_gpu_hours)
    size = scheduler.max_array_size()
    name, setting = asker.definition.name, asker.definition.setting
    while True:
        runs = asker.open_runs(workers)
        configs = {run.hash: run.config for run in runs}
        todo = {State.NEW, State.INTERRUPTED}
        launched = cluster.launch(asker.root, configs, todo, name, setting, profile, max_attempts, size)
        taken = cluster.print_launch(launched) if launched.submissions or launched.exhausted or not watch else True
        if not watch:
            return taken
        now = find_standings(asker.root, configs).runs
        if not taken or {now[hash].state for hash in configs} <= {State.NEW, State.INTERRUPTED}:
            return asker.print_counts() and taken  # all have ended, or the rest can't be submitted
        if stop_early:
            running = [run for run in runs if now[run.hash].state == State.RUNNING]
            numbers = [now[run.hash].number for run in asker.unpromising(running)]
            scheduler.cancel([number for number in numbers if number])
        time.sleep(watch)
