"""What one mixer can do: a grid, made in memory, of the mixer beside attention and FFNified attention on probes."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metamixer.commands import Device

from .commands import Launched
from .options import Modules, Runs, Workers, absolute

if TYPE_CHECKING:
    from .questions import LoadedGrid

MIXER = "model.stages.*.token_mixer"


def probe(
    mixer: Annotated[
        str, typer.Argument(help="A preset, a baseline or an operation; as JSON with parameters, or a mixer's slots.")
    ],
    module: Modules = None,
    data: Annotated[str, typer.Option("--data", help="Probes, separated by commas.")] = "recall,parity,shift,majority",
    runs: Runs = Path("runs"),
    workers: Workers = None,
    device: Device = "auto",
) -> Launched:
    """Show what a mixer can do, on small tasks.

    It is trained beside attention and FFNified attention, with three seeds at three learning rates on each probe.
    Finished runs are not trained again.
    """
    from .plan import make_plan
    from .plan_table import print_plan
    from .terminal import parallel_runs, run_with_progress

    loaded = grid_of(mixer, absolute(module), runs)
    plans = [make_plan(loaded, runs, key.strip()) for key in data.split(",")]
    print_plan(plans[0])
    print(f"on {', '.join(plan.data for plan in plans)}")
    complete = run_with_progress(plans, parallel_runs(device, workers=workers), device, retry=False)
    return Launched(runs, loaded.name, None, complete)


def grid_of(mixer: str, modules: list[str], runs: Path) -> "LoadedGrid":
    """The grid that `launch.py probe MIXER` runs: the bases and rates of `ablations/profile.py`, other variants.

    Raises ConfigError: no such mixer or operation, or one that fits no mixer.
    """
    from metamixer.checks import find
    from metamixer.config import from_text

    from .grid import Variant
    from .questions import LoadedGrid, load_grid

    grid = load_grid("profile", modules, runs).grid
    width = next(iter(grid.bases.values())).model.stages[0].width
    own = find(from_text(mixer), width).config
    name = re.sub(r"\W+", "_", mixer).strip("_") if not mixer.lstrip().startswith("{") else "mixer"
    variants = {grid.base: Variant(), "ffnified_attention": Variant(changes={MIXER: "ffnified_attention"})}
    variants.setdefault(name, Variant(changes={MIXER: own.to_dict()}))
    question = f"What can {name} do, beside attention and FFNified attention?"
    return LoadedGrid(f"probe_{name}", question, grid.model_copy(update={"variants": variants}))
