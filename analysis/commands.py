"""Commands on finished runs: tables, pictures, pages, packs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from metamixer.latency.rows import Row

app = typer.Typer()

DataName = Annotated[Optional[str], typer.Option("--data", help="One key of the grid's bases; all if not given.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]


@app.command()
def report(
    grid: Annotated[str, typer.Argument(help="A grid that was launched.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
    out: Annotated[Optional[Path], typer.Option(help="The page; beside the grid's other files if not given.")] = None,
) -> None:
    """Write one page of HTML on a grid.

    Tables, pictures, configurations, environment and the runs behind them.
    """
    from analysis.report import write_report

    print(write_report(runs, Path(grid).stem, data, out))


@app.command()
def ship(
    grids: Annotated[list[str], typer.Argument(help="Grids that have finished runs, or searches.")],
    data: DataName = None,
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="The folder for the packs.")] = Path("notebooks/results"),
    weights: Annotated[Optional[str], typer.Option(help="Variants whose weights are packed too: a,b.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Without predictions and the times of epochs.")] = False,
) -> None:
    """Pack finished runs for the notebooks, without checkpoints."""
    from analysis.frame import grids as launched
    from analysis.results import of_grid, of_search, write

    wanted = weights.split(",") if weights else []
    packs = []  # all of them before one is written
    for name in grids:
        grid = Path(name).stem
        searches = sorted((runs / "searches").glob(f"{grid}@{data or '*'}"))
        if searches:
            packs += [of_search(runs, grid, folder.name.partition("@")[2]) for folder in searches]
        else:
            found: list[str | None] = [on for _, on in launched(runs, grid) if data in (None, on)]
            packs += [of_grid(runs, grid, on, wanted, small) for on in found or [data]]
    for variant in wanted:
        if not any(variant in pack.weights for pack in packs):
            there = ", ".join(pack.name for pack in packs)
            raise ValueError(f"--weights {variant}: no finished run of this variant in {there}")
    for pack, path in zip(packs, write(out, packs), strict=True):
        along = f", with weights of {', '.join(pack.weights)}" if pack.weights else ""
        print(f"{path}: {path.stat().st_size / 1000:.0f} KB{along}")


def _console() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


@contextmanager
def _keeping(files: str) -> Iterator[None]:
    """Print the names of the written files, or why they can't be written; the table above is shown either way."""
    try:
        yield
        print(files)
    except OSError as error:
        print(f"{files}: not kept, cannot write here ({error.strerror or error})")


def show_grid(root: Path, grid: str, data: str | None) -> None:
    """The tables of a grid's finished runs and their picture, kept as files; of all its data if none are named.

    Of several tasks that can be solved, the profile is shown in place of their tables.
    """
    from analysis.folders import task_of
    from analysis.frame import grids, load
    from analysis.plots import examples as draw_examples
    from analysis.plots import picture, save
    from analysis.rates import at_best
    from analysis.statistics import compare
    from analysis.tables import render, to_csv

    launched: list[str | None] = [on for _, on in grids(root, grid) if data in (None, on)]
    parts = [load(root, grid, on) for on in launched or [data]]
    whole = len(parts) > 1 and all(meta.metric.solvable for _, meta in parts)
    for runs, meta in parts:
        comparison = compare(runs, meta)
        table = render(comparison, meta)
        if not whole:
            _console().print(table)
        stem = root / "grids" / f"{grid}@{meta.data}"
        with _keeping(f"{stem}: .csv .tex .png .pdf"):
            to_csv(comparison, meta, f"{stem}.csv")
            Path(f"{stem}.tex").write_text(table.latex(), encoding="utf-8")
            save(picture(comparison, meta), f"{stem}.png", f"{stem}.pdf")
        if task_of(runs["folder"]) and not meta.metric.solvable:
            from analysis.inside import examples, networks  # loads torch, which other tables do without

            pictures, colours = examples(networks(at_best(runs, meta))[0])  # at the learning rates of the table
            if pictures:
                with _keeping(f"{stem}_examples: .png .pdf"):
                    save(draw_examples(pictures, colours), f"{stem}_examples.png", f"{stem}_examples.pdf")
    if whole:
        show_profile(root, grid)


def show_profile(root: Path, grid: str) -> None:
    """Every variant of a grid on every task that it ran on, and the pictures of it, kept as files."""
    from analysis import profile
    from analysis.plots import dial_curves, profile_map, save

    table, metas = profile.profile(root, grid)
    rendered = profile.render(table, metas)
    _console().print(rendered)
    stem = root / "grids" / f"{grid}_profile"
    with _keeping(f"{stem}: .csv .tex .png .pdf"):
        table.to_csv(f"{stem}.csv", index=False)
        Path(f"{stem}.tex").write_text(rendered.latex(), encoding="utf-8")
        save(profile_map(table, metas), f"{stem}.png", f"{stem}.pdf")
        if table["dial"].notna().any():
            save(dial_curves(table, metas)[0], f"{stem}_dial.png", f"{stem}_dial.pdf")


def show_search(root: Path, name: str, data: str | None, export: Path | None = None) -> None:
    """The trials of a search, kept as CSV, their front and what mattered; exported as SQLite if asked for."""
    from analysis import search
    from analysis.plots import save

    study = search.load_study(root, name, data)
    _console().print(search.render_trials(study))
    folder = root / "searches" / study.study_name
    with _keeping(f"{folder}: trials.csv, front and importances as .png .pdf"):
        search.trials_frame(study).to_csv(folder / "trials.csv", index=False)
        save(search.front_picture(study), folder / "front.png", folder / "front.pdf")
        save(search.importances_picture(study), folder / "importances.png", folder / "importances.pdf")
    if export is not None:
        search.export(study, export)
        print(f"{export}: optuna-dashboard sqlite:///{export}")


def show_latencies(rows: "list[Row]", notes: list[str]) -> None:
    """The table of latencies, and a line for each network that was not timed."""
    from analysis.latency import to_frame
    from analysis.latency_table import render

    console = _console()
    if rows:
        console.print(render(to_frame(rows)))
    for line in notes:
        console.print(line, style="yellow", soft_wrap=True, highlight=False)


def show_visible(root: Path, grid: str, data: str, seeds: int, comparisons: int) -> None:
    """How small a difference so many seeds can see, by the spread of earlier runs."""
    from analysis.power import visible_effect

    for line in visible_effect(root, grid, data, seeds, comparisons):
        print(line)
