"""What should exist against what does; making a plan writes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from metamixer.config import SCHEMA_VERSION, ConfigError
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import changed_code

from .grid import Grid, LoadedGrid, PlannedRun, as_json, data_label
from .states import State, find_standings, find_states


@dataclass(frozen=True)
class Plan:
    """A grid's runs on one data set or task, each with its state."""

    loaded: LoadedGrid
    data: str  # the key of the grid's bases, with the launch's overrides
    root: Path
    runs: list[PlannedRun]
    states: dict[str, State]  # by hash
    aa: bool = False  # whether its variants are one and the same
    changed: dict[str, list[str]] = field(default_factory=dict)  # of finished runs of other code, the files that differ
    kept: dict[str, str] = field(default_factory=dict)  # origins of variants that stay in the table without a plan
    retrain: bool = False  # whether a launch trains runs of other code again

    def count(self) -> Counter[State]:
        return Counter(self.states.values())

    def missing(self, retry: bool = False) -> list[PlannedRun]:
        """The runs that a launch has to train; failed ones only with `retry`."""
        wanted = {State.NEW, State.INTERRUPTED} | ({State.FAILED} if retry else set())
        again = self.changed if self.retrain else {}
        found = {run.hash: run for run in self.runs if self.states[run.hash] in wanted or run.hash in again}
        return list(found.values())  # two variants that come to the same configuration are one run

    def put_aside(self) -> None:
        """Move finished runs that a launch trains again to `replaced/`; the launch lock is held."""
        for hash in self.changed if self.retrain else ():
            place = self.root / "replaced" / f"{hash}-{time.time_ns()}"
            place.parent.mkdir(exist_ok=True)
            (self.root / hash).rename(place)

    @property
    def manifest_path(self) -> Path:
        return self.root / "grids" / f"{self.loaded.name}@{self.data}.json"

    def write_manifest(self) -> None:
        """Record which runs make up the grid, for readers of the folder alone; the launch lock is held.

        Variants that were launched before, that the grid still has as they were and that this launch leaves out keep
        their runs. Any other run of an earlier launch that still waits or runs is listed beside them: it can be seen
        and cancelled, and is in no table.
        """
        before = RunFolder(self.manifest_path.parent).read(self.manifest_path.name) or {}
        runs = [_row(run) for run in self.runs]
        has_rates = "lr" in runs[0] if runs else False
        runs += [
            row
            for row in before.get("runs", ())
            if self.kept.get(row["variant"], "") == row.get("origin") and ("lr" in row) == has_rates
        ]
        order = {name: number for number, name in enumerate(self.loaded.grid.variants)}
        runs.sort(key=lambda row: order.get(row["variant"], len(order)))
        listed = {row["hash"] for row in runs}
        others = [row for row in (*before.get("runs", ()), *before.get("others", ())) if row["hash"] not in listed]
        now = find_states(self.root, {row["hash"] for row in others})
        manifest = {
            "schema": SCHEMA_VERSION,
            "grid": self.loaded.name,
            "data": self.data,
            "question": self.loaded.question,
            "base": self.loaded.grid.base,
            "metric": asdict(self.runs[0].config.metrics[0]) if self.runs else "top1",
            **({"aa": True} if self.aa else {}),
            "runs": runs,
            "others": [row for row in others if now[row["hash"]] in (State.QUEUED, State.RUNNING)],
        }
        self.manifest_path.parent.mkdir(parents=True, exist_ok=True)
        RunFolder(self.manifest_path.parent).write(self.manifest_path.name, manifest)


def _row(run: PlannedRun) -> dict[str, Any]:
    """A run as a manifest lists it."""
    return {
        "hash": run.hash,
        "variant": run.variant,
        "seed": run.seed,
        "on": run.declared.on,
        "changes": as_json(run.declared.changes),
        "origin": run.origin,
        **({"also": run.declared.also} if run.declared.also else {}),
        **({} if run.lr is None else {"lr": run.lr, "fixed": run.fixed}),
        **({} if run.pair is None else {"pair": run.pair}),
    }


def make_plan(
    loaded: LoadedGrid,
    root: Path,
    data: str | None = None,
    overrides: dict[str, Any] | None = None,
    aa: bool = False,
    measure: bool = False,
    **chosen: Any,
) -> Plan:
    """Plan of a grid.

    Args:
        aa: plan an A/A test in its place, a grid named GRID_aa: the base as two variants that differ by nothing but
            their seeds. The first has the given ones (and so runs that may be done already), the second as many others.
        measure: measure widths at equal latency that are not recorded yet, and record them in `root`; otherwise they
            are an error.
        chosen: seeds, only, match and lrs, as `Grid.runs` takes them.

    Raises ConfigError: see `Grid.runs`.
    """
    from .iso_cost import matched

    grid, match = loaded.grid, chosen.get("match")
    changed = {**(overrides or {}), **({"match": match} if match and match != (grid.match or "none") else {})}
    label = data_label(data or next(iter(grid.bases)), changed)
    kept = {}
    if aa:
        runs = _aa_runs(grid, data, overrides, **chosen)
        loaded = LoadedGrid(f"{loaded.name}_aa", f"A/A: is {grid.base} called different from itself?", grid)
    else:
        runs = grid.runs(data, overrides, scale=partial(matched, root=root, timed=measure), **chosen)
        before = RunFolder(root / "grids").read(f"{loaded.name}@{label}.json") or {}
        listed = {row["variant"] for row in before.get("runs", ())} - {run.variant for run in runs}
        if names := [name for name in grid.variants if name in listed]:
            again = chosen | {"only": names, "seeds": [0], "lrs": []}
            now = grid.runs(data, overrides, scale=lambda config, *_: config, **again)
            kept = {run.variant: run.origin for run in now}
    standings = find_standings(root, {run.hash for run in runs}).runs
    other_code = {
        hash: files
        for hash, each in standings.items()
        if each.state == State.DONE and each.result and (files := changed_code(each.result.get("code") or {}))
    }
    states = {hash: each.state for hash, each in standings.items()}
    return Plan(loaded, label, root, runs, states, aa, other_code, kept)


def _aa_runs(
    grid: Grid, data: str | None, overrides: dict[str, Any] | None, seeds: Sequence[int] | None = None,
    only: Any = None, lrs: Any = None, match: str | None = None,
) -> list[PlannedRun]:  # fmt: skip
    if only or lrs:
        raise ConfigError("--aa runs the base of the grid alone, at its own learning rate: leave out --only and --lrs")
    first = list(dict.fromkeys(grid.seeds if seeds is None else seeds))
    free = (seed for seed in range(2 * len(first)) if seed not in first)
    second = dict(zip((next(free) for _ in first), first, strict=True))
    runs = grid.runs(data, overrides, [*first, *second], [grid.base], lrs=[])
    again = f"{grid.base}_again"
    return [replace(run, variant=again, pair=second[run.seed]) if run.seed in second else run for run in runs]
