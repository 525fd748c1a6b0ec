"""Following runs from nothing but their folder: by grid, by hash or by variant name. Reading writes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

from . import scheduler
from .states import Standing, Standings, State, find_standings
from .submissions import jobs_folder
from .trials import launched

ROWS = 60  # more runs than this are shown by variant
NOTES = 10  # different ones, the most frequent first
STYLES = {State.DONE: "green", State.FAILED: "red", State.INTERRUPTED: "yellow", State.RUNNING: "cyan"}


@dataclass(frozen=True)
class Entry:
    """A run as a manifest lists it, among the grid's or the others of launches before that still wait or run.

    The trial of a search is one too; `grid` is then the search. Test images have no part in it.
    """

    hash: str
    variant: str
    seed: int
    grid: str
    data: str
    is_trial: bool = False

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"


def select(root: Path, targets: Sequence[str], data: str | None = None) -> list[Entry]:
    """The runs that the targets name, each once; every grid's and search's runs without targets.

    Args:
        targets: names of grids or searches, beginnings of hashes (8 digits or more) or names of variants.
        data: a key of the grid's bases; all that were launched if None.

    Raises:
        ConfigError: nothing of this name was launched.
    """
    entries = []
    for path in sorted((root / "grids").glob("*.json")):
        manifest = RunFolder(path.parent).read(path.name) or {}
        if data is None or manifest.get("data") == data:
            head = str(manifest.get("grid")), str(manifest.get("data"))
            listed = (*manifest.get("runs", ()), *manifest.get("others", ()))
            entries += [Entry(run["hash"], run["variant"], run["seed"], *head) for run in listed]
    for search, setting, row in launched(root, data=data):
        entries.append(Entry(row["hash"], f"trial {row['trial']}", row["seed"], search, setting, is_trial=True))
    chosen = dict[str, Entry]()
    for target in targets or [""]:
        name = Path(target).stem if target.endswith(".py") else target
        found = [
            entry
            for entry in entries
            if name in ("", entry.grid, entry.variant) or (len(name) >= 8 and entry.hash.startswith(name))
        ]
        if not found:
            there = ", ".join(sorted({f"{entry.grid}@{entry.data}" for entry in entries})) or "none"
            what = f"grid, run or variant {name!r}" if name else "grid"
            raise ConfigError(f"no {what}{f' on {data}' if data else ''} was launched in {root}; grids there: {there}")
        for entry in found:
            chosen.setdefault(entry.hash, entry)
    return list(chosen.values())


def is_search(root: Path, name: str, data: str | None = None) -> bool:
    """Whether a search of this name was begun, on some data."""
    return bool(name) and any((root / "searches").glob(f"{name}@{data or '*'}/search.json"))


def standings(root: Path, entries: Sequence[Entry]) -> Standings:
    return find_standings(root, [entry.hash for entry in entries])


def show_status(root: Path, targets: Sequence[str], data: str | None, every: bool, watch: float | None) -> None:
    """Print the table of the runs; with `watch`, again and again, that many seconds apart, until all have ended."""
    console = Console()
    entries = select(root, targets, data)
    if watch is None:
        console.print(Group(*_status(root, entries, standings(root, entries), every)))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                now = standings(root, entries)
                *lines, counts = _status(root, entries, now, every)
                live.update(Group(counts, *lines), refresh=True)  # a terminal cuts off the end of what it can't hold
                if not {State.QUEUED, State.RUNNING} & {each.state for each in now.runs.values()}:
                    return
                time.sleep(watch)
        except KeyboardInterrupt:
            return


def _status(root: Path, entries: Sequence[Entry], now: Standings, every: bool) -> list[RenderableType]:
    """A table by run, or of many runs by variant; notes about them; and the counts."""
    by_run = every or len(entries) <= ROWS
    table, more = (_by_run(root, entries, now), 0) if by_run else _by_variant(entries, now)
    lines: list[RenderableType] = [table]
    if more:
        lines.append(Text(f"and {more} more variants; --all shows every run"))
    notes = dict[str, list[str]]()
    for entry in entries:
        standing = now.runs[entry.hash]
        failure = (standing.result or {}).get("error") if standing.state == State.FAILED else None
        if note := failure or standing.note:
            notes.setdefault(note, []).append(entry.name)
    frequent = sorted(notes.items(), key=lambda item: -len(item[1]))
    for note, names in frequent[:NOTES]:
        lines.append(Text(f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: {note}", "yellow"))
    if len(frequent) > NOTES:
        lines.append(
            Text(f"and {len(frequent) - NOTES} other notes; `launch.py status RUN` shows a run's own", "yellow")
        )
    if now.problem:
        lines.append(Text(f"{now.problem}; states are from the runs' own files", "yellow"))
    lines.append(Text(f"logs: {root}/HASH/log.txt, or `launch.py logs`"))
    return [*lines, Text(f"{len(entries)} runs: {_counts(entries, now)}")]


def _counts(entries: Sequence[Entry], now: Standings) -> str:
    counts = Counter(now.runs[entry.hash].state for entry in entries)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _table(entries: Sequence[Entry], *headings: str) -> Table:
    several = len({(entry.grid, entry.data) for entry in entries}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("grid", *headings) if several else headings:
        right = heading in ("seed", "epoch", "score", "time")
        # only names give way where the terminal is narrow: a figure or a state that is cut says something else
        gives_way = heading in ("grid", "variant", "runs")
        table.add_column(heading, justify="right" if right else "left", no_wrap=not gives_way, overflow="fold")
    return table


def _by_run(root: Path, entries: Sequence[Entry], now: Standings) -> Table:
    table = _table(entries, "variant", "seed", "state", "epoch", "score", "node", "time", "hash")
    for entry in entries:
        standing = now.runs[entry.hash]
        progress = RunFolder(root / entry.hash).read("progress.json") or {}
        table.add_row(
            *([f"{entry.grid}@{entry.data}"] if table.columns[0].header == "grid" else []),
            entry.variant,
            str(entry.seed),
            Text(standing.state, STYLES.get(standing.state, "")),
            f"{progress.get('epoch', 0)}/{progress['epochs']}" if "epochs" in progress else "",
            _score(standing, progress, entry.is_trial),
            _node(standing, progress),
            _time(standing, progress),
            entry.hash,
        )
    return table


def _by_variant(entries: Sequence[Entry], now: Standings) -> tuple[Table, int]:
    """A row for each variant, of more than `ROWS` for those that need a look first, and how many are left out."""
    groups = dict[tuple[str, str], list[Entry]]()
    for entry in entries:
        groups.setdefault((f"{entry.grid}@{entry.data}", entry.variant), []).append(entry)
    calm = {State.DONE, State.NEW, State.QUEUED}
    table = _table(entries, "variant", "seeds", "runs")
    needs_no_look = {key: {now.runs[e.hash].state for e in group} <= calm for key, group in groups.items()}
    shown = sorted(groups, key=needs_no_look.__getitem__) if len(groups) > ROWS else list(groups)
    for grid, variant in shown[:ROWS]:
        group = groups[grid, variant]
        head = [grid] if table.columns[0].header == "grid" else []
        table.add_row(*head, variant, _ranges({entry.seed for entry in group}), _counts(group, now))
    return table, max(0, len(groups) - ROWS)


def _ranges(numbers: set[int]) -> str:
    """0-4, 7."""
    ranges = list[list[int]]()
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _score(standing: Standing, progress: dict[str, Any], is_trial: bool) -> str:
    """Of the test split once it is done, before that of the held-out images; of a trial those alone."""
    tested = standing.state == State.DONE and not is_trial
    result = standing.result or {}
    score = result.get(result.get("metric", "top1")) if tested else progress.get("score")
    return f"{score:.2f}" if score is not None else ""


def _node(standing: Standing, progress: dict[str, Any]) -> str:
    if standing.job is not None and standing.state in (State.RUNNING, State.QUEUED):
        return standing.job.node if standing.state == State.RUNNING else ""
    return str(progress.get("host", "")) if standing.state != State.QUEUED else ""


def _time(standing: Standing, progress: dict[str, Any]) -> str:
    if standing.state == State.RUNNING and standing.job is not None:
        return standing.job.elapsed.removeprefix("00:")
    seconds = (standing.result or {}).get("seconds")
    return _clock(seconds) if seconds is not None else ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def show_logs(root: Path, targets: Sequence[str], data: str | None, lines: int) -> None:
    """Print the end of each run's log; if a run has no log yet, print the output of its SLURM job."""
    console = Console(highlight=False, markup=False)
    entries = select(root, targets, data)
    now = standings(root, entries)
    for entry in entries:
        path = _log(root, entry.hash, now.runs[entry.hash])
        console.print(f"{entry.variant} seed {entry.seed}, {now.runs[entry.hash].state}: {path or 'no log yet'}",
                      style="bold", soft_wrap=True)  # fmt: skip
        if path:
            for line in path.read_text(errors="replace").splitlines()[-lines:]:
                console.print(line, soft_wrap=True)


def _log(root: Path, hash: str, standing: Standing) -> Path | None:
    path = root / hash / "log.txt"
    if not path.exists() and standing.submission is not None:
        path = jobs_folder(root) / standing.submission.id / f"{standing.number}_0_log.out"
    return path if path.exists() else None


def cancel(root: Path, targets: Sequence[str], data: str | None) -> list[str]:
    """Cancel the jobs of those runs that wait or run, and return lines about it.

    Raises:
        ConfigError: SLURM can't be asked, or refuses.
    """
    entries = select(root, targets, data)
    now = standings(root, entries)
    if now.problem:
        raise ConfigError(f"{now.problem}; nothing was cancelled")
    active = [entry for entry in entries if now.runs[entry.hash].state in (State.QUEUED, State.RUNNING)]
    # one whose job has ended may be trained again outside SLURM
    jobs = [(now.runs[entry.hash].number, now.runs[entry.hash].job) for entry in active]
    numbers = [number for number, job in jobs if number and job is not None and (job.waiting or job.alive)]
    scheduler.cancel(numbers)
    lines = [f"cancelled {len(numbers)} jobs"]
    if len(active) > len(numbers):
        lines.append(f"{len(active) - len(numbers)} runs are trained outside SLURM; stop their launch where it runs")
    return lines
