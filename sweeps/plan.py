"""What should exist against what does; making a plan writes nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from metamixer.config import SCHEMA_VERSION, ConfigError
from metamixer.training.data_config import TaskData
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import changed_code

from .grid import LoadedGrid, PlannedRun, setting_label
from .iso_cost import check_measure, matched
from .states import State, find_standings, find_states


@dataclass(frozen=True)
class Plan:
    """A grid's runs in one setting, each with its state."""

    loaded: LoadedGrid
    setting: str
    root: Path
    runs: list[PlannedRun]
    states: dict[str, State]  # by hash
    aa: bool = False  # whether its variants are one and the same
    changed: dict[str, list[str]] = field(default_factory=dict)  # of finished runs of other code, the files that differ
    retrain: bool = False  # whether a launch trains those again

    def count(self) -> Counter[State]:
        return Counter(self.states.values())

    def missing(self, retry: bool = False) -> list[PlannedRun]:
        """The runs that a launch has to train; failed ones only with `retry`."""
        wanted = {State.NEW, State.INTERRUPTED} | ({State.FAILED} if retry else set())
        again = self.changed if self.retrain else {}
        # two variants that come to the same configuration are one run
        return list(
            {run.hash: run for run in self.runs if self.states[run.hash] in wanted or run.hash in again}.values()
        )

    def put_aside(self) -> None:
        """Move finished runs that a launch trains again to `replaced/`; the launch lock is held."""
        for hash in self.changed if self.retrain else ():
            place = self.root / "replaced" / f"{hash}-{time.time_ns()}"
            place.parent.mkdir(exist_ok=True)
            (self.root / hash).rename(place)

    def _levels(self) -> dict[str, Any]:
        """Chance and solved of the task's first metric, where the grid runs on a task that has both."""
        data = self.runs[0].config.data if self.runs else None
        metric = data.built.metrics[0] if isinstance(data, TaskData) else None
        if metric is None or metric.chance is None or metric.solved is None:
            return {}
        return {"levels": {"chance": metric.chance, "solved": metric.solved}}

    def folder(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.root / run.hash)

    @property
    def manifest_path(self) -> Path:
        return self.root / "grids" / f"{self.loaded.name}@{self.setting}.json"

    def write_manifest(self) -> None:
        """Record which runs make up the grid, for readers of the folder alone.

        Runs of launches before that are not part of it (others were asked for, or the grid's file was edited) but still
        wait or run are kept beside them: they can be seen and cancelled, and are in no table.
        """
        grid = self.loaded.grid
        before = RunFolder(self.manifest_path.parent).read(self.manifest_path.name) or {}
        listed = (*before.get("runs", ()), *before.get("others", ()))
        others = [row for row in listed if row["hash"] not in self.states]
        now = find_states(self.root, {row["hash"] for row in others})
        manifest = {
            "schema": SCHEMA_VERSION,
            "grid": self.loaded.name,
            "data": self.setting,
            "question": self.loaded.question,
            "base": grid.base,
            "metric": "top1",
            **self._levels(),
            **({"aa": True} if self.aa else {}),
            "runs": [
                {
                    "hash": run.hash,
                    "variant": run.variant,
                    "seed": run.seed,
                    "on": run.declared.on,
                    "changes": json.loads(json.dumps(run.declared.changes, default=lambda c: c.to_dict())),
                    **({} if run.lr is None else {"lr": run.lr, "fixed": run.fixed}),
                    **({} if run.pair is None else {"pair": run.pair}),
                }
                for run in self.runs
            ],
            "others": [row for row in others if now[row["hash"]] in (State.QUEUED, State.RUNNING)],
        }
        try:
            self.manifest_path.parent.mkdir(parents=True, exist_ok=True)
            RunFolder(self.manifest_path.parent).write(self.manifest_path.name, manifest)
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot write here ({error.strerror or error})") from None


def make_plan(
    loaded: LoadedGrid,
    root: Path,
    data: str | None = None,
    overrides: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    match: str | None = None,
    lrs: list[float] | None = None,
    aa: bool = False,
    measure: bool = False,
) -> Plan:
    """Plan of a grid; see `Grid.runs` for the arguments and errors.

    With `aa`, of an A/A test in its place, a grid named GRID_aa: the base as two variants that differ by nothing but
    their seeds. The first has the given ones (and so runs that may be done already), the second as many others.

    With `measure`, widths at equal latency that are not recorded yet are measured and recorded in `root`; else they are
    an error.
    """
    equal = match or loaded.grid.match or "none"
    if equal != "none":
        check_measure(equal)
    if aa:
        runs = _aa_runs(loaded, data, overrides, seeds, only, lrs)
        about = f"A/A: is {loaded.grid.base} called different from itself, at other seeds?"
        loaded = LoadedGrid(f"{loaded.name}_aa", about, loaded.grid)
    else:
        scale = partial(matched, root=root, timed=measure)
        runs = loaded.grid.runs(data, overrides, seeds, only, match, lrs, scale)
    changed = {**(overrides or {}), **({"match": match} if match and match != (loaded.grid.match or "none") else {})}
    setting = setting_label(data or next(iter(loaded.grid.bases)), changed)
    standings = find_standings(root, {run.hash for run in runs}).runs
    other_code = {
        hash: files
        for hash, each in standings.items()
        if each.state == State.DONE and each.result and (files := changed_code(each.result.get("code") or {}))
    }
    return Plan(loaded, setting, root, runs, {hash: each.state for hash, each in standings.items()}, aa, other_code)


def _aa_runs(
    loaded: LoadedGrid,
    data: str | None,
    overrides: dict[str, Any] | None,
    seeds: list[int] | None,
    only: list[str] | None,
    lrs: list[float] | None,
) -> list[PlannedRun]:
    if only or lrs:
        raise ConfigError("--aa runs the base of the grid alone, at its own learning rate: leave out --only and --lrs")
    grid = loaded.grid
    first = list(dict.fromkeys(grid.seeds if seeds is None else seeds))
    free = (seed for seed in range(2 * len(first)) if seed not in first)
    second = dict(zip((next(free) for _ in first), first, strict=True))
    again = f"{grid.base}_again"
    runs = grid.runs(data, overrides, [*first, *second], [grid.base], lrs=[])
    return [replace(run, variant=again, pair=second[run.seed]) if run.seed in second else run for run in runs]
