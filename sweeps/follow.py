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
from .submissions import jobs_folder, read_submissions

ROWS = 60  # a longer table shows what needs a look, and counts the rest
BESIDE = 8  # lines that a live table leaves to its heading, notes and counts
STYLES = {State.DONE: "green", State.FAILED: "red", State.INTERRUPTED: "yellow", State.RUNNING: "cyan"}


@dataclass(frozen=True)
class Entry:
    """A run as a manifest lists it, among the grid's or the others of launches before that still wait or run."""

    hash: str
    variant: str
    seed: int
    grid: str
    setting: str


def select(root: Path, targets: Sequence[str], data: str | None = None, trials: bool = False) -> list[Entry]:
    """The runs that the targets name, each once; every grid's runs without targets.

    Args:
        targets: names of grids, beginnings of hashes (8 digits or more) or names of variants.
        data: one of a grid's settings; all that were launched if None.
        trials: a target may be a search, too, whose trials are runs as well.

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
    chosen = dict[str, Entry]()
    for target in targets or [""]:
        name = Path(target).stem if target.endswith(".py") else target
        found = [
            entry
            for entry in entries
            if name in ("", entry.grid, entry.variant) or (len(name) >= 8 and entry.hash.startswith(name))
        ]
        if not found and trials and is_search(root, name):
            from .search.launch import entries_of  # loads torch and Optuna

            found = entries_of(root, name, data)
        if not found:
            there = ", ".join(sorted({f"{entry.grid}@{entry.setting}" for entry in entries})) or "none"
            what = f"grid, run or variant {name!r}" if name else "grid"
            raise ConfigError(f"no {what}{f' on {data}' if data else ''} was launched in {root}; grids there: {there}")
        for entry in found:
            chosen.setdefault(entry.hash, entry)
    return list(chosen.values())


def is_search(root: Path, name: str, data: str | None = None) -> bool:
    """Whether a search of this name was begun, in one of its settings."""
    return bool(name) and any((root / "searches").glob(f"{name}@{data or '*'}/search.json"))


def standings(root: Path, entries: Sequence[Entry]) -> Standings:
    return find_standings(root, [entry.hash for entry in entries])


def show_status(root: Path, targets: Sequence[str], data: str | None, every: bool, watch: float | None) -> None:
    """Print the table of the runs; with `watch`, again and again, that many seconds apart, until all have ended."""
    console = Console()
    entries = select(root, targets, data, trials=True)
    if watch is None:
        console.print(_status(root, entries, standings(root, entries), every, ROWS))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                now = standings(root, entries)
                # what a terminal can't hold is cut at its end, where the counts are
                rows = max(1, min(ROWS, console.height - BESIDE))
                live.update(_status(root, entries, now, every, rows), refresh=True)
                if not {State.QUEUED, State.RUNNING} & {each.state for each in now.runs.values()}:
                    return
                time.sleep(watch)
        except KeyboardInterrupt:
            return


def _status(root: Path, entries: Sequence[Entry], now: Standings, every: bool, rows: int) -> RenderableType:
    counts = Counter(now.runs[entry.hash].state for entry in entries)
    lines: list[RenderableType] = []
    shown = list(entries)
    if not every and len(entries) > rows:
        urgent = (State.RUNNING, State.FAILED, State.INTERRUPTED)
        shown = [entry for entry in entries if now.runs[entry.hash].state in urgent][:rows]
    several = len({(entry.grid, entry.setting) for entry in entries}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = ("variant", "seed", "state", "epoch", "top-1", "node", "time", "log")
    for heading in ("grid", *headings) if several else headings:
        right = heading in ("seed", "epoch", "top-1", "time")
        # only names give way where the terminal is narrow: a figure or a state that is cut says something else
        gives_way = heading in ("grid", "variant")
        table.add_column(heading, justify="right" if right else "left", no_wrap=not gives_way, overflow="fold")
    notes = []
    for entry in shown:
        standing = now.runs[entry.hash]
        folder = RunFolder(root / entry.hash)
        progress = folder.read("progress.json") or {}
        epoch = f"{progress.get('epoch', 0)}/{progress['epochs']}" if "epochs" in progress else ""
        cells = [f"{entry.grid}@{entry.setting}"] if several else []
        cells += [entry.variant, str(entry.seed)]
        table.add_row(
            *cells,
            Text(standing.state, STYLES.get(standing.state, "")),
            epoch,
            _top1(standing, progress),
            _node(standing, progress),
            _time(standing, progress),
            entry.hash,
        )
        note = (standing.result or {}).get("error") if standing.state == State.FAILED else standing.note
        note = note or standing.note
        if note:
            notes.append((f"{entry.variant} seed {entry.seed}", note))
    lines.append(table)
    for note, number in Counter(note for _, note in notes).items():
        first = next(who for who, each in notes if each == note)
        lines.append(Text(f"{first}{f' (and {number - 1} more)' if number > 1 else ''}: {note}", "yellow"))
    if len(shown) < len(entries):
        lines.append(Text(f"{len(entries) - len(shown)} more runs are in the counts only; --all shows them"))
    if now.problem:
        lines.append(Text(f"{now.problem}; states are from the runs' own files", "yellow"))
    if shown:
        lines.append(Text(f"logs: {root}/LOG/log.txt, or `launch.py logs`"))
    by_state = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    lines.append(Text(f"{len(entries)} runs: {by_state}"))
    return Group(*lines)


def _top1(standing: Standing, progress: dict[str, Any]) -> str:
    """Of the test split once it is done, before that of the held-out images."""
    top1 = (standing.result or {}).get("top1") if standing.state == State.DONE else progress.get("top1")
    return f"{top1:.2f}" if top1 is not None else ""


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
    """Print the end of each run's log; of a run that never got so far, what SLURM caught of its job."""
    console = Console(highlight=False, markup=False)
    entries = select(root, targets, data, trials=True)
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
    """Cancel the jobs of those runs that wait or run, or of a search's workers, and return lines about it.

    Raises:
        ConfigError: SLURM can't be asked, or refuses.
    """
    searches = [name for name in targets if is_search(root, name)]
    others = [name for name in targets if name not in searches]
    workers = _workers(root, searches, data)
    entries = select(root, others, data) if others else []
    now = standings(root, entries)
    if now.problem:
        raise ConfigError(f"{now.problem}; nothing was cancelled")
    active = [entry for entry in entries if now.runs[entry.hash].state in (State.QUEUED, State.RUNNING)]
    # one whose job has ended may be trained again outside SLURM
    jobs = [(now.runs[entry.hash].number, now.runs[entry.hash].job) for entry in active]
    numbers = [number for number, job in jobs if number and job is not None and (job.waiting or job.alive)]
    scheduler.cancel([*numbers, *workers])
    lines = [f"cancelled {len(numbers) + len(workers)} jobs"]
    if len(active) > len(numbers):
        lines.append(f"{len(active) - len(numbers)} runs are trained outside SLURM; stop their launch where it runs")
    return lines


def _workers(root: Path, searches: Sequence[str], data: str | None) -> list[str]:
    """Numbers of the jobs in which searches of these names have workers, or will."""
    numbers = []
    for each in read_submissions(root) if searches else ():
        name, _, setting = each.grid.removeprefix("search ").partition("@")
        if each.grid.startswith("search ") and name in searches and data in (None, setting):
            numbers += [number for index in range(len(each.hashes)) if (number := each.job_of(index))]
    if not numbers:
        return []
    answer = scheduler.ask(numbers)
    if answer.problem:
        raise ConfigError(f"{answer.problem}; nothing was cancelled")
    return [n for n in numbers if (job := answer.jobs.get(n)) is not None and (job.waiting or job.alive)]
