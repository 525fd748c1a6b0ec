"""A launch on a cluster is a reconciliation: of what should exist, submit what nobody has, holds or waits for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metamixer.config import ConfigError, override
from metamixer.training.folder import RunFolder

from . import follow, scheduler, slurm, snapshot
from .profiles import Profile
from .states import State, find_standings
from .submissions import Submission, attempts, launch_lock, read_submissions

if TYPE_CHECKING:
    from metamixer.training.run_config import RunConfig

    from .plan import Plan

RETRIED = {State.FAILED, State.INTERRUPTED}


@dataclass
class Launch:
    """What a launch did: the calls of sbatch, the runs it left alone for having had their attempts, SLURM's refusal."""

    submissions: list[Submission] = field(default_factory=list)
    exhausted: list[str] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        return next((each.error for each in self.submissions if each.error), None)


def worst_gpu_hours(profile: Profile, runs: int) -> float:
    return runs * profile.gpus * profile.worst_hours


def check_budget(parts: Sequence[tuple[Profile, int]], limit: float | None) -> None:
    """Refuse a launch of so many runs of each profile that may take more than `limit` GPU-hours in all.

    Raises:
        ConfigError: it may.
    """
    worst = sum(worst_gpu_hours(profile, runs) for profile, runs in parts)
    if limit is not None and worst > limit:
        each = "; ".join(dict.fromkeys(f"{profile.gpus} GPUs, {profile.worst_hours:g} h each" for profile, _ in parts))
        raise ConfigError(
            f"{sum(runs for _, runs in parts)} runs may take {worst:,.0f} GPU-hours ({each}), "
            f"more than --max-gpu-hours {limit:,.0f}"
        )


def launch(
    root: Path,
    configs: dict[str, RunConfig],
    wanted: set[State],
    grid: str,
    setting: str,
    profile: Profile,
    max_attempts: int,
    array_size: int,
) -> Launch:
    """Submit those of `configs` (by hash) that are in a wanted state, and return.

    The decision is taken under a lock from what then is true, so that launches at the same time submit each run once.

    Raises:
        ConfigError: the folder can't be written, or SLURM can't be asked what it already has.
    """
    with launch_lock(root):
        submissions = slurm.settle(root, read_submissions(root))
        standings = find_standings(root, configs.keys(), submissions)
        if standings.problem:
            raise ConfigError(f"{standings.problem}; what is queued can't be told, so nothing was submitted")
        had = attempts(submissions)
        todo = [hash for hash in configs if standings.runs[hash].state in wanted]
        result = Launch(exhausted=[hash for hash in todo if had[hash] >= max_attempts])
        todo = [hash for hash in todo if had[hash] < max_attempts]
        if todo:
            for hash in todo:
                RunFolder(root / hash).create(configs[hash])
            modules = {(module.source, module.digest) for hash in todo for module in configs[hash].modules}
            code = snapshot.take(root, modules)
            result.submissions = slurm.submit(root, todo, grid, setting, profile, code, array_size)
    return result


def estimate_gpu_hours(root: Path, hashes: Sequence[str], todo: int, profile: Profile) -> float | None:
    """GPU-hours of `todo` runs, from the mean time of those of the first 1,000 `hashes` that are done, if any is."""
    results = (RunFolder(root / hash).result() for hash in hashes[:1000])
    seconds = [result["seconds"] for result in results if result and result["state"] == "done"]
    return todo * profile.gpus * sum(seconds) / len(seconds) / 3600 if seconds else None


def show_hours(plan: Plan, profile: Profile) -> None:
    """Print runs by state, and what those that a launch would submit cost at worst and by what is known."""
    counts = plan.count()
    todo = len(plan.missing())
    worst = worst_gpu_hours(profile, todo)
    done = [hash for hash, state in plan.states.items() if state == State.DONE]
    guess = estimate_gpu_hours(plan.root, done, todo, profile)
    estimate = "no estimate before a run is done" if guess is None else f"about {guess:,.1f} by the runs done so far"
    Console(highlight=False, soft_wrap=True).print(
        f"{len(plan.states)} runs: {', '.join(f'{counts[state]} {state}' for state in State if counts[state])}. "
        f"On a cluster the {todo} missing ones take {worst:,.0f} GPU-hours at worst "
        f"(GPUs {profile.gpus}, {1 + profile.continuations} × {profile.minutes} min each); {estimate}"
    )


def launch_plan(plan: Plan, profile: Profile, retry: bool, max_attempts: int, max_gpu_hours: float | None) -> bool:
    """Submit what a plan misses and say so; returns whether SLURM took all of it."""
    check_budget([(profile, len(plan.missing(retry)))], max_gpu_hours)
    size = scheduler.max_array_size()  # fails where there is no SLURM, before anything is written
    plan.write_manifest()
    wanted = {State.NEW, State.INTERRUPTED} | ({State.FAILED} if retry else set())
    configs = {run.hash: run.config for run in plan.runs}
    return report(launch(plan.root, configs, wanted, plan.loaded.name, plan.setting, profile, max_attempts, size))


def report(launched: Launch) -> bool:
    console = Console(highlight=False, soft_wrap=True)
    for submission in launched.submissions:
        if submission.job:
            console.print(f"job {submission.job}: {len(submission.hashes)} runs of {submission.grid}")
    if not launched.submissions and not launched.exhausted:
        console.print("nothing to submit")
    if launched.exhausted:
        console.print(
            f"{len(launched.exhausted)} runs have had their attempts and are left alone; --max-attempts allows more",
            style="yellow",
        )
    if launched.error:
        console.print(f"sbatch: {launched.error}; the same command submits the rest", style="red", markup=False)
    return launched.error is None


def retry(
    root: Path,
    targets: Sequence[str],
    data: str | None,
    profile: Profile | None,
    changes: dict[str, Any],
    max_attempts: int,
    max_gpu_hours: float | None,
    dry_run: bool,
) -> bool:
    """Submit failed and interrupted runs again, each as it was submitted last unless a profile is given.

    Runs that were never submitted are trained here instead.

    Returns:
        Whether SLURM took, or this machine finished, all of them.
    """
    console = Console(highlight=False, soft_wrap=True)
    entries = follow.select(root, targets, data)
    now = follow.standings(root, entries)
    entries = [entry for entry in entries if now.runs[entry.hash].state in RETRIED]
    if not entries:
        console.print("nothing to retry: none of them failed or was interrupted")
    had = attempts(read_submissions(root))
    groups = defaultdict[tuple[str, str, str], list[follow.Entry]](list)
    for entry in entries:
        last = now.runs[entry.hash].submission
        chosen = profile or (last.profile if last else None)
        groups[entry.grid, entry.setting, override(chosen, changes).model_dump_json() if chosen else ""].append(entry)
        if dry_run:
            left_alone = ", has had its attempts" if had[entry.hash] >= max_attempts else ""
            state = now.runs[entry.hash].state
            console.print(f"{entry.variant} seed {entry.seed} ({entry.hash}): {state}{left_alone}")
        if changes and not chosen:
            raise ConfigError(
                f"--resource: {entry.variant} seed {entry.seed} was never submitted: give --profile to submit it, or "
                "leave --resource out to train it here"
            )
    if dry_run:
        return True
    check_budget([(Profile.model_validate_json(key[2]), len(g)) for key, g in groups.items() if key[2]], max_gpu_hours)
    complete = True
    for (grid, setting, described), group in groups.items():
        configs = {entry.hash: RunFolder(root / entry.hash).config() for entry in group}
        if described:
            chosen = Profile.model_validate_json(described)
            size = scheduler.max_array_size()
            complete &= report(launch(root, configs, RETRIED, grid, setting, chosen, max_attempts, size))
        else:
            from .grid import PlannedRun, Variant
            from .report import train_here

            runs = [PlannedRun(each.variant, each.seed, configs[each.hash], Variant(), each.hash) for each in group]
            complete &= train_here(runs, root, None, "auto")
    return complete
