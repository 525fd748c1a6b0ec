"""Options that several commands share, and how they are read."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar

import typer

from metamixer.commands import Modules, Runs, changes_of

DataNames = Annotated[
    Optional[str], typer.Option("--data", help="Keys of the grid's bases (a,b), or all; the first if not given.")
]
Overrides = Annotated[Optional[list[str]], typer.Option("--set", help="KEY=VALUE changed in the base.")]
Only = Annotated[Optional[str], typer.Option(help="These variants alone, separated by commas.")]
Match = Annotated[
    Optional[str],
    typer.Option(help="Scale widths to the base's macs, params or latency:RUNTIME; none: leave them alone."),
]
Cluster = Annotated[Literal["local", "slurm"], typer.Option(help="Train here, or as SLURM's jobs.")]
Workers = Annotated[
    Optional[int],
    typer.Option(min=1, help="Runs at a time; if not given, one for each core or GPU (a search on SLURM: 4)."),
]
MaxHours = Annotated[Optional[float], typer.Option(help="Refuse a launch that may take more GPU-hours.")]


@dataclasses.dataclass(frozen=True)
class GridOptions:
    """Which runs of a grid: what `plan`, `run` and `bench` share."""

    grid: Annotated[str, typer.Argument(help="A grid in ablations/, or the path of a grid's file.")]
    data: DataNames = None
    set: Overrides = None
    seeds: Annotated[Optional[str], typer.Option(help="Seeds (a,b); the grid's own if not given.")] = None
    only: Only = None
    runs: Runs = Path("runs")
    match: Match = None
    lrs: Annotated[
        Optional[str], typer.Option("--lrs", help="More learning rates for every variant (a,b); none: only its own.")
    ] = None
    aa: Annotated[bool, typer.Option("--aa", help="Run an A/A test: the base twice, with different seeds.")] = False
    module: Modules = None


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """What a SLURM job asks for."""

    profile: Annotated[Optional[str], typer.Option(help="Profile of the jobs; `default` if not given.")] = None
    profiles: Annotated[Optional[Path], typer.Option(help="File of profiles; slurm.toml if not given.")] = None
    resource: Annotated[Optional[list[str]], typer.Option(help="KEY=VALUE changed in the profile.")] = None
    runs_per_gpu: Annotated[
        Optional[int], typer.Option(min=1, help="Small runs that share one GPU, here or in a SLURM job.")
    ] = None

    @property
    def changes(self) -> dict[str, Any]:
        """Changed keys of the profile."""
        shared = {} if self.runs_per_gpu is None else {"runs_per_gpu": self.runs_per_gpu}
        return changes_of(self.resource) | shared


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take groups of options: typer sees the fields of each, the command receives the group's object."""
    groups: dict[str, Any] = {}
    seen: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            own = inspect.signature(groups[name]).parameters.values()
        else:
            own = [parameter]  # type: ignore[assignment]
        seen += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        return command(**values)

    call.__signature__ = inspect.Signature(seen)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in seen}
    return call


def listed(text: str | None) -> list[str] | None:
    """The parts of `a,b`; None if there are none."""
    return [part.strip() for part in text.split(",")] if text else None


def seeds_of(text: str | None) -> list[int] | None:
    """Seeds of `0,1,2`."""
    return _numbers(int, text, "--seeds", "whole numbers separated by commas, e.g. 0,1,2")


def rates_of(text: str | None) -> list[float] | None:
    """Learning rates of `1e-3,3e-3`; none for `none`."""
    return [] if text == "none" else _numbers(float, text, "--lrs", "numbers separated by commas, or none")


N = TypeVar("N", int, float)


def _numbers(kind: Callable[[str], N], text: str | None, option: str, advice: str) -> list[N] | None:
    from metamixer.config import ConfigError

    try:
        return [kind(part) for part in text.split(",")] if text else None
    except ValueError:
        raise ConfigError(f"{option} {text!r}: give {advice}") from None


def absolute(modules: list[str] | None) -> list[str]:
    """User modules with absolute paths."""
    return [str(Path(module).expanduser().resolve()) for module in modules or []]
