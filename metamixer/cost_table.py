"""What a network costs as a table for the terminal: by stage, by slot, and by layer."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from torch import nn

from .cost import Cost, by_layer, total
from .metric import readable
from .mixer import MetaMixer
from .networks import Network
from .operation import SLOTS
from .timm_models import TOKEN_MIXERS

BITS = 16
# what a mixer computes outside its slots
AT_ONCE = "slots at once"
_BLOCK = re.compile(r"(?:[\w.]+\.)?blocks\.\d+")
# this project's, timm's, and those in the place of another module of timm's
_WHICH = rf"(?:(token|channel)_mixer|{'|'.join(TOKEN_MIXERS)}|\w+(?=\.mixer\b))(?:\.mixer)?"
_MIXER = re.compile(rf"(?:{_BLOCK.pattern}\.)?{_WHICH}(?:\.({'|'.join(SLOTS)}))?(?:\.|$)")


def by_stage(costs: dict[str, Cost], model: nn.Module) -> dict[str, Cost]:
    """Costs by stage: of FFNet's kind stem, downsampling, stages, head; of others their modules of the first level.

    A container of the first level gives a row for each of its children, e.g. `blocks.3`.
    """
    containers = {name for name, child in model.named_children() if isinstance(child, nn.Sequential | nn.ModuleList)}

    def stage(name: str) -> str:
        if re.match(r"stages\.\d+\.downsample(\.|$)", name):
            return "downsampling"
        first, _, rest = name.partition(".")
        if first not in containers or not rest or first == "stem":
            return first or "between"
        return f"{first}.{rest.partition('.')[0]}"

    return _grouped(costs, stage)


def by_slot(costs: dict[str, Cost]) -> dict[str, Cost]:
    """Costs of a network with MetaMixers by what a part is for, over all stages; names are those of `by_layer`.

    What a fast path computes for several slots in one operation is a row of its own, for it can't be divided. So is
    a mixer without slots. The rest of a block is its residual sums, scales and norms.
    """
    return _grouped(costs, _part)


def _part(name: str) -> str:
    found = _MIXER.match(name)
    if found:
        kind, slot = found.groups()
        return f"{kind or 'token'}: {slot.replace('_', '-') if slot else AT_ONCE}"
    if block := _BLOCK.match(name):
        return "channel: mlp" if name.startswith(f"{block[0]}.mlp.") else "residuals, scales, norms"
    if ".downsample." in name:
        return "downsampling"
    return name.removeprefix("backbone.").partition(".")[0] or "between"


def _grouped(costs: dict[str, Cost], key: Callable[[str], str]) -> dict[str, Cost]:
    groups: dict[str, list[Cost]] = {}
    for name, cost in costs.items():
        groups.setdefault(key(name), []).append(cost)
    return {name: total(members) for name, members in groups.items()}


def print_costs(network: Network, layers: bool = False, console: Console | None = None) -> None:
    """Print what one image costs: by stage, by slot where there are slots, with `layers` by module.

    Raises ValueError: an operation that nothing counts.
    """
    console = console or Console()
    costs = by_layer(network.model, network.input_size)
    if network.is_mixer:
        costs = {f"token_mixer.{name}".rstrip("."): cost for name, cost in costs.items()}
    whole = total(costs.values())
    size = "×".join(map(str, network.input_size))
    console.print(f"{network.name} at {size}, folded", highlight=False)
    if not network.is_mixer:
        console.print(_table("stage", by_stage(costs, network.model), whole))
    if network.is_mixer or any(isinstance(module, MetaMixer) for module in network.model.modules()):
        console.print(_table("part", by_slot(costs), whole))
    if layers:
        console.print(_table("layer", costs, whole))
    console.print(f"largest tensor: {readable(whole.largest)} numbers for each image", highlight=False)
    console.print(
        "Activations: elements written by convolutions, linear layers and matrix products. MB: what each operation "
        f"alone reads and writes, weights included, at {BITS} bits a number; a runtime that fuses them moves less. "
        "State: numbers held of the other tokens to answer for one more.",
        style="dim",
        highlight=False,
    )


def _table(heading: str, rows: dict[str, Cost], whole: Cost) -> Table:
    table = Table(heading, box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for name in ("params", "MACs", "MACs %", "activations", "MB", "state"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, cost in (*rows.items(), ("total", whole)):
        table.add_row(
            name or "between",
            readable(cost.parameters, 4),
            readable(cost.macs, 4),
            f"{100 * cost.macs / max(whole.macs, 1):.1f}",
            readable(cost.activations, 4),
            f"{cost.bytes(BITS) / 1e6:.2f}",
            readable(cost.state_size, 4),
            style="bold" if cost is whole else "",
        )
    return table
