"""What a network costs: parameters, multiply-adds, activations and traffic of its folded form, for one image.

"FLOPs" in the literature's tables are multiply-adds; here they are called MACs. The rule: **each product counts that a
convolution, a matrix product or an element-wise product of two tensors makes**. Fused attention, einsum and recurrent
layers are matrix products. Free are a tensor times one number, norms, scales that fold into the layer before them,
activations, sums, pools and moved data. An operation that is neither counted nor known to be free is an error, so
nothing is cheap by oversight. `counters.register_cost` says what a module costs where torch's operations do not tell.

Activations are the elements that convolutions, linear layers and matrix products write (fvcore's definition, after
arXiv 2003.13678); the fused kernel counts as its two matrix products. Traffic is what every operation would read
(inputs and weights) and write if it ran alone. It is an upper bound: a runtime that fuses operations moves less. Views
move nothing, and the fused kernel's scores stay where they are. The largest tensor is what a layer needs memory for.

Counts are those of what is computed. A fast path with the arithmetic of the slots (softmax attention) costs what they
cost; one that multiplies in another order (linear and Hydra attention) is truly cheaper, and counted so.

The state size is how many numbers a network must hold of the other tokens to answer for one more token: the keys and
values of attention, a matrix of linear attention, the k² neighbours of a convolution. Windows that overlap and fused
attention are counted where torch runs them; an operation that mixes tokens in another way declares its own
(`Operation.state_size`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .counters import Tally
from .fold import fold


@dataclass(frozen=True)
class Cost:
    """What one image costs, in numbers: `moved` are read and written, `largest` are those of the largest tensor."""

    parameters: int = 0
    macs: int = 0
    activations: int = 0
    moved: int = 0
    largest: int = 0
    state_size: int = 0

    def bytes(self, bits: int = 16) -> int:
        """Traffic in bytes, all numbers of `bits` bits."""
        return self.moved * bits // 8


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs; of their largest tensors, the largest."""
    whole = Cost()
    for cost in costs:
        whole = Cost(
            whole.parameters + cost.parameters,
            whole.macs + cost.macs,
            whole.activations + cost.activations,
            whole.moved + cost.moved,
            max(whole.largest, cost.largest),
            whole.state_size + cost.state_size,
        )
    return whole


def count(model: nn.Module, input_size: tuple[int, int, int], inplace: bool = False) -> Cost:
    """Cost of the folded `model` for one image (or map, for a mixer) of `input_size` (C, H, W).

    Args:
        inplace: fold `model` itself, not a copy; twice as fast.

    Raises ValueError: the network holds an operation that nothing counts; the line names it.
    """
    return total(by_layer(model, input_size, inplace).values())


def sizes(build: Callable[[], nn.Module], input_size: tuple[int, int, int]) -> Cost:
    """Parameters and multiply-adds alone of the network that `build` makes, 4 to 20 times as fast as `count`.

    It is counted on torch's meta device, which has no numbers, and no fused attention: other costs differ there.
    """
    try:
        with torch.device("meta"):
            found = count(build(), input_size, inplace=True)
    except Exception:  # e.g. an operation of the user's own that looks at its weights
        found = count(build(), input_size, inplace=True)
    return Cost(found.parameters, found.macs)


def by_layer(model: nn.Module, input_size: tuple[int, int, int], inplace: bool = False) -> dict[str, Cost]:
    """The same, apart for each module of the folded `model`, by its name: its own operations, not its children's.

    What operations between the children cost (residual sums, a fast path) is the parent's. Modules that cost
    nothing are left out; the network itself is named "".
    """
    folded = fold(model, inplace)
    costs = _own_operations(folded, input_size)
    for name, parameter in folded.named_parameters():
        costs.setdefault(name.rpartition(".")[0], Counter())["parameters"] += parameter.numel()
    return {name: Cost(**found) for name, found in costs.items() if found.total()}


def _own_operations(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Counter[str]]:
    """What each module's own operations cost, by the module's name."""
    some = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_size, device=some.device, dtype=some.dtype)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer, which tells nothing
    try:
        with torch.no_grad(), warnings.catch_warnings(), Tally(model) as tally:
            warnings.simplefilter("ignore")
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if tally.unknown:
        names = ", ".join(f"{name} ({times}×)" for name, times in sorted(tally.unknown.items()))
        raise ValueError(
            f"multiply-adds not counted for {names}: register the cost of the module that computes it, "
            "with metamixer.counters.register_cost(ITS_CLASS, macs)"
        )
    return tally.costs
