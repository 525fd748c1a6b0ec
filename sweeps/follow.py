"""Following runs from nothing but their folder: by grid, by hash or by variant name. Reading writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

from . import scheduler
from .states import Standing, Standings, State, find_standings, find_states, in_words
from .submissions import jobs_folder
from .trials import launched

ROWS = 60  # more runs than this are shown by variant
NAMES = ("grid", "variant", "runs")  # they alone give way where the terminal is narrow
NOTES = 10  # different ones, the most frequent first
STYLES = {State.DONE: "green", State.FAILED: "red", State.INTERRUPTED: "yellow", State.RUNNING: "cyan"}


@dataclass(frozen=True)
class Entry:
    """A run as a manifest lists it, among the grid's or the others of launches before that still wait or run.

    The trial of a search is one too; `grid` is then the search.
    """

    hash: str
    variant: str
    seed: int
    grid: str
    data: str

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

    @property
    def whole(self) -> str:
        """The grid's name with its data."""
        return f"{self.grid}@{self.data}"


def select(root: Path, targets: Sequence[str], data: str | None = None) -> list[Entry]:
    """The runs that the targets name, each once; every grid's and search's runs without targets.

    Args:
        targets: names of grids or searches, beginnings of hashes (8 digits or more) or names of variants.
        data: a key of the grid's bases; all that were launched if None.

    Raises ConfigError: nothing of this name was launched.
    """
    entries = []
    for path in sorted((root / "grids").glob("*.json")):
        manifest = RunFolder(path.parent).read(path.name) or {}
        if data is None or manifest.get("data") == data:
            head = str(manifest.get("grid")), str(manifest.get("data"))
            listed = (*manifest.get("runs", ()), *manifest.get("others", ()))
            entries += [Entry(run["hash"], run["variant"], run["seed"], *head) for run in listed]
    for search, key, row in launched(root):
        if data in (None, key):
            entries.append(Entry(row["hash"], f"trial {row['trial']}", row["seed"], search, key))
    chosen = dict[str, Entry]()
    for target in targets or [""]:
        name = Path(target).stem if target.endswith(".py") else target
        found = [
            entry
            for entry in entries
            if name in ("", entry.grid, entry.variant) or (len(name) >= 8 and entry.hash.startswith(name))
        ]
        if not found:
            there = ", ".join(sorted({entry.whole for entry in entries})) or "none"
            what = f"grid, run or variant {name!r}" if name else "grid"
            raise ConfigError(f"no {what}{f' on {data}' if data else ''} was launched in {root}; grids there: {there}")
        for entry in found:
            chosen.setdefault(entry.hash, entry)
    return list(chosen.values())


def standings(root: Path, entries: Sequence[Entry]) -> Standings:
    return find_standings(root, [entry.hash for entry in entries])


def show_status(root: Path, targets: Sequence[str], data: str | None, every: bool) -> None:
    """Print a table by run, or of many runs by variant; notes about them; and the counts."""
    entries = select(root, targets, data)
    now = standings(root, entries)
    by_run = every or len(entries) <= ROWS
    rows = [_of_run(root, entry, now.runs[entry.hash]) for entry in entries] if by_run else _by_variant(entries, now)
    if len({entry.whole for entry in entries}) == 1:
        rows = [{heading: cell for heading, cell in row.items() if heading != "grid"} for row in rows]
    # a figure or a state that is cut says something else
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in rows[0]:
        table.add_column(heading, no_wrap=heading not in NAMES, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    lines: list[RenderableType] = [table]
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
        lines.append(Text(f"and {len(frequent) - NOTES} other notes; `launch.py status RUN` shows a run's own"))
    if now.problem:
        lines.append(Text(f"{now.problem}; states are from the runs' own files", "yellow"))
    lines.append(Text(f"logs: {root}/HASH/log.txt, or `launch.py logs`"))
    Console().print(Group(*lines, Text(f"{len(entries)} runs: {_counts(entries, now)}")))


def _counts(entries: Sequence[Entry], now: Standings) -> str:
    return in_words(Counter(now.runs[entry.hash].state for entry in entries))


Row = dict[str, str | Text]


def _of_run(root: Path, entry: Entry, standing: Standing) -> Row:
    progress, result = RunFolder(root / entry.hash).read("progress.json") or {}, standing.result or {}
    # on the validation samples; where a run has none, on the test samples once it is done
    score = progress.get("score")
    score = result.get(result.get("metric", "top1")) if score is None else score
    return {
        "grid": entry.whole,
        "variant": entry.variant,
        "seed": str(entry.seed),
        "state": Text(standing.state, STYLES.get(standing.state, "")),
        "epoch": f"{progress.get('epoch', 0)}/{progress['epochs']}" if "epochs" in progress else "",
        "score": f"{score:.2f}" if score is not None else "",
        "node": "" if standing.state == State.QUEUED else str(progress.get("host", "")),
        "time": str(timedelta(seconds=round(result["seconds"]))) if "seconds" in result else "",
        "hash": entry.hash,
    }


def _by_variant(entries: Sequence[Entry], now: Standings) -> list[Row]:
    """A row for each variant."""
    groups = dict[tuple[str, str], list[Entry]]()
    for entry in entries:
        groups.setdefault((entry.whole, entry.variant), []).append(entry)
    return [{"grid": key[0], "variant": key[1], "runs": _counts(group, now)} for key, group in groups.items()]


def show_logs(root: Path, targets: Sequence[str], data: str | None, lines: int) -> None:
    """Print the end of each run's log; if a run has no log yet, print the output of its SLURM job."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    entries = select(root, targets, data)
    now = standings(root, entries)
    for entry in entries:
        standing = now.runs[entry.hash]
        path = root / entry.hash / "log.txt"
        if not path.exists() and standing.submission is not None:
            path = jobs_folder(root) / standing.submission.id / f"{standing.number}_0_log.out"
        there = path.exists()
        console.print(f"{entry.name}, {standing.state}: {path if there else 'no log yet'}", style="bold")
        for line in path.read_text(errors="replace").splitlines()[-lines:] if there else ():
            console.print(line)


def cancel(root: Path, targets: Sequence[str], data: str | None) -> list[str]:
    """Cancel the jobs of those runs that wait or run, and return lines about it."""
    entries = select(root, targets, data)
    now = standings(root, entries)
    if now.problem:
        raise ConfigError(f"{now.problem}; nothing was cancelled")
    waits_or_runs = (State.QUEUED, State.RUNNING)
    active = [each for each in now.runs.values() if each.state in waits_or_runs]
    # one whose job has ended may be trained again outside SLURM
    in_jobs = [each for each in active if each.job is not None and (each.job.waiting or each.job.alive)]
    jobs = {each.number: each.submission for each in in_jobs if each.number and each.submission}
    sharing = {hash for number, submission in jobs.items() for hash in submission.runs_of(number)} - now.runs.keys()
    others = [state for state in find_states(root, sharing).values() if state in waits_or_runs]
    scheduler.cancel(list(jobs))
    lines = [f"cancelled {len(jobs)} jobs"]
    if others:
        lines.append(f"{len(others)} other runs that shared these jobs are cancelled too")
    if len(active) > len(in_jobs):
        lines.append(f"{len(active) - len(in_jobs)} runs are trained outside SLURM; stop their launch where it runs")
    return lines
