"""What should exist against what does; making a plan writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamixer.config import SCHEMA_VERSION, ConfigError
from metamixer.training.folder import RunFolder

from .grid import LoadedGrid, PlannedRun, setting_label
from .latency import Latencies, Timer
from .match import LATENCY, check_measure, matched
from .states import State, find_states


@dataclass(frozen=True)
class Plan:
    """A grid's runs in one setting, each with its state."""

    loaded: LoadedGrid
    setting: str
    root: Path
    runs: list[PlannedRun]
    states: dict[str, State]  # by hash

    def count(self) -> Counter[State]:
        return Counter(self.states[run.hash] for run in self.runs)

    def missing(self, retry: bool = False) -> list[PlannedRun]:
        """What a launch has to run; failed runs only with `retry`."""
        wanted = {State.NEW, State.INTERRUPTED} | ({State.FAILED} if retry else set())
        # two variants that come to the same configuration are one run
        return list({run.hash: run for run in self.runs if self.states[run.hash] in wanted}.values())

    def folder(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.root / run.hash)

    @property
    def manifest_path(self) -> Path:
        return self.root / "grids" / f"{self.loaded.name}@{self.setting}.json"

    def write_manifest(self) -> None:
        """Record which runs make up the grid, for whoever has only the folder."""
        grid = self.loaded.grid
        manifest = {
            "schema": SCHEMA_VERSION,
            "grid": self.loaded.name,
            "data": self.setting,
            "question": self.loaded.question,
            "base": grid.base,
            "metric": "top1",
            "runs": [
                {
                    "hash": run.hash,
                    "variant": run.variant,
                    "seed": run.seed,
                    "on": run.declared.on,
                    "changes": json.loads(json.dumps(run.declared.changes, default=lambda c: c.to_dict())),
                }
                for run in self.runs
            ],
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
    timer: Timer | None = None,
) -> Plan:
    """Plan of a grid; see `Grid.runs` for the arguments and errors.

    With a `timer`, widths at equal latency that are not recorded yet are measured and recorded in `root`; else they are
    an error.
    """
    measure = match or loaded.grid.match or "none"
    if measure != "none":
        check_measure(measure)
    scale = Latencies(root, timer).matched if measure.startswith(LATENCY) else matched
    runs = loaded.grid.runs(data, overrides, seeds, only, match, scale)
    changed = {**(overrides or {}), **({"match": match} if match and match != (loaded.grid.match or "none") else {})}
    setting = setting_label(data or next(iter(loaded.grid.bases)), changed)
    return Plan(loaded, setting, root, runs, find_states(root, {run.hash for run in runs}))
