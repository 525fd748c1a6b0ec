"""A launch on a cluster compares what should exist with what does, and submits the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metamixer.config import ConfigError, override
from metamixer.training.folder import RunFolder

from . import follow, scheduler, slurm
from .profiles import Profile
from .states import State, find_standings
from .submissions import launch_lock

if TYPE_CHECKING:
    from metamixer.training.run_config import RunConfig

    from .plan import Plan

RETRIED = {State.FAILED, State.INTERRUPTED}


def check_budget(parts: Sequence[tuple[Profile, int]], limit: float | None) -> None:
    """Refuse a launch of so many runs of each profile that may take more than `limit` GPU-hours in all."""
    worst = sum(profile.worst_hours(runs) for profile, runs in parts)
    if limit is not None and worst > limit:
        each = " or ".join(dict.fromkeys(f"{profile.worst_hours():g}" for profile, _ in parts))
        raise ConfigError(
            f"{sum(runs for _, runs in parts)} runs may take {worst:,.0f} GPU-hours ({each} for each job), "
            f"more than --max-gpu-hours {limit:,.0f}"
        )


def launch(root: Path, configs: dict[str, RunConfig], wanted: set[State], profile: Profile) -> bool:
    """Submit those of `configs` (by hash) that are in a wanted state, and return whether SLURM took all of them.

    The launch lock is held, so that launches at the same time submit each run once. A ConfigError says that SLURM can't
    be asked what it already has, or that the profile's processes can't share a run's passes.
    """
    now = find_standings(root, configs.keys())
    if now.problem:
        raise ConfigError(f"{now.problem}; what is queued can't be told, so nothing was submitted")
    todo = [hash for hash in configs if now.runs[hash].state in wanted]
    for hash in todo:
        configs[hash].recipe.share(profile.processes)  # refused here, not on the node
    for hash in todo:
        RunFolder(root / hash).create(configs[hash])
    return slurm.submit(root, todo, profile) if todo else True


def show_hours(plan: Plan, profile: Profile) -> None:
    """Print what the runs that a launch would submit cost at worst, and by the mean time of the runs done so far."""
    todo = len(plan.missing())
    done = [hash for hash, state in plan.states.items() if state == State.DONE][:1000]
    seconds = [(RunFolder(plan.root / hash).result() or {}).get("seconds", 0.0) for hash in done]
    estimate = "no estimate before a run is done"
    if seconds:
        hours = todo * profile.gpus / profile.runs_per_gpu * sum(seconds) / len(seconds) / 3600
        estimate = f"about {hours:,.1f} by the runs done so far"
    sharing = f", {profile.runs_per_gpu} runs on each" if profile.runs_per_gpu > 1 else ""
    Console(highlight=False, soft_wrap=True).print(
        f"the {todo} missing runs take {profile.worst_hours(todo):,.0f} GPU-hours at worst "
        f"(GPUs {profile.gpus}{sharing}, {1 + profile.continuations} × {profile.minutes} min each); {estimate}"
    )


def launch_plans(plans: Sequence[Plan], profile: Profile, retry: bool, max_gpu_hours: float | None) -> bool:
    """Submit the missing runs of plans, and print these and those left alone; returns whether SLURM took all."""
    from .terminal import say_left_alone  # loads torch, which `retry` does not need

    check_budget([(profile, sum(len(plan.missing(retry)) for plan in plans))], max_gpu_hours)
    scheduler.max_array_size()  # fails where there is no SLURM, before anything is written
    wanted = {State.NEW, State.INTERRUPTED} | ({State.FAILED} if retry else set())
    complete = True
    for plan in plans:
        if not plan.missing(retry):
            Console().print("nothing to submit")
        with launch_lock(plan.root):  # the manifest of one launch may not drop what another is about to submit
            plan.write_manifest()
            plan.put_aside()
            complete &= launch(plan.root, {run.hash: run.config for run in plan.runs}, wanted, profile)
        say_left_alone(plan.count(), retry)
    return complete


def retry(
    root: Path,
    targets: Sequence[str],
    data: str | None,
    profile: Profile | None,
    changes: dict[str, Any],
    max_gpu_hours: float | None,
) -> bool:
    """Submit failed and interrupted runs again, each with the profile that it had last unless one is given.

    Returns whether SLURM took all of them.
    """
    console = Console(highlight=False, soft_wrap=True)
    entries = follow.select(root, targets, data)
    now = follow.standings(root, entries)
    groups = defaultdict[str, list[str]](list)
    for entry in entries:
        standing = now.runs[entry.hash]
        last = profile or (standing.submission.profile if standing.submission else None)
        if standing.state in RETRIED and last is not None:
            groups[override(last, changes).model_dump_json()].append(entry.hash)
        elif standing.state in RETRIED:
            line = f"{entry.name}: {standing.state}, was never submitted: --profile submits it"
            console.print(line, style="yellow")
    if not groups:
        console.print("nothing to retry: none of them was submitted and failed or was interrupted")
    parts = [(Profile.model_validate_json(key), hashes) for key, hashes in groups.items()]
    check_budget([(each, len(hashes)) for each, hashes in parts], max_gpu_hours)
    complete = True
    with launch_lock(root):
        for each, hashes in parts:
            configs = {hash: RunFolder(root / hash).config() for hash in hashes}
            complete &= launch(root, configs, RETRIED, each)
    return complete
