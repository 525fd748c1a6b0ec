"""What a network costs: parameters, multiply-adds, activations and traffic of its folded form, for one image.

"FLOPs" in the literature's tables are multiply-adds; here they are called MACs. The rule: a product that is summed
with others counts, one by one. That is every convolution, linear layer and matrix product, attention by the
fused kernel too, and elementwise products whose sum is the interaction: `(q * k).sum(2)`, or a loop of
`y = y + c * v` (neighbourhoods, Hydra). Free are products that stand alone (gates, scales), activations, norms,
pools and moved data, as in the tables. What is in neither list is an error, so that nothing is cheap by oversight.

Activations are the elements that convolutions, linear layers and matrix products write (fvcore's definition, after
arXiv 2003.13678); the fused kernel counts as its two matrix products. Traffic is what every operation would read
(inputs and weights) and write if it ran alone: an upper bound, as a runtime that fuses operations moves less. Views
move nothing, and the fused kernel's scores stay where they are.

Counts are those of what is computed: where a fast path has the arithmetic of the slots (softmax attention), they
agree; where it multiplies in another order (linear and Hydra attention), it is truly cheaper, and counted so.
The counter is fvcore's, which by itself leaves out the fused kernel and elementwise products with a warning at
most, and adds norms and pools; without those, the sums are those of `torch.utils.flop_counter`. The rules are in
`counters`.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .fold import fold


@dataclass(frozen=True)
class Cost:
    """What one image costs; `moved` is in elements, read and written."""

    parameters: int = 0
    macs: int = 0
    activations: int = 0
    moved: int = 0

    def bytes(self, bits: int = 16) -> int:
        """Traffic in bytes, all numbers of `bits` bits."""
        return self.moved * bits // 8

    def intensity(self, bits: int = 16) -> float:
        """Arithmetic intensity, multiply-adds for each byte moved; 0 if nothing moves."""
        return self.macs / self.bytes(bits) if self.moved else 0.0


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    rows = [(cost.parameters, cost.macs, cost.activations, cost.moved) for cost in costs]
    return Cost(*map(sum, zip(*rows, strict=True)))


def readable(value: float, digits: int = 3) -> str:
    """A count of so many digits with a unit: `17.8 M`."""
    for scale, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:#.{digits}g}".rstrip(".") + letter
    return f"{value:g}"


def count(model: nn.Module, input_size: tuple[int, int, int], inplace: bool = False) -> Cost:
    """Cost of the folded `model` for one image (or map, for a mixer) of `input_size` (C, H, W).

    Args:
        inplace: fold `model` itself, not a copy; twice as fast.

    Raises:
        ValueError: the network holds an operation that nothing counts; the line names it.
    """
    return total(by_layer(model, input_size, inplace).values())


def by_layer(model: nn.Module, input_size: tuple[int, int, int], inplace: bool = False) -> dict[str, Cost]:
    """The same, apart for each module of the folded `model`, by its name: its own operations, not its children's.

    What operations between the children cost (residual sums, a fast path) is the parent's. Modules that cost
    nothing are left out; the network itself is named "".
    """
    folded = nn.Sequential(fold(model, inplace))  # in a container, so that the network itself has a name
    some = next(folded.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_size, device=some.device, dtype=some.dtype)
    costs = _own_operations(folded, image)
    for name, parameter in folded.named_parameters():
        costs.setdefault(name.rpartition(".")[0], Counter())["parameters"] += parameter.numel()
    # the container is no part of the model
    return {name[2:]: Cost(**{k: int(v) for k, v in found.items()}) for name, found in costs.items() if found.total()}


def _own_operations(model: nn.Module, image: torch.Tensor) -> dict[str, Counter[str]]:
    """What each module's own operations cost, by the module's name."""
    # fvcore announces what it does not count through this logger; it is checked below instead
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore builds on, is deprecated
        from fvcore.nn.jit_analysis import JitModelAnalysis

        from .counters import handles

        analysis = JitModelAnalysis(model, image).set_op_handle(**handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        sums = analysis.by_module_and_operator()  # each with all that is below it
        unsupported = analysis.unsupported_ops()
    if unsupported:
        names = ", ".join(f"{name} ({times}×)" for name, times in sorted(unsupported.items()))
        raise ValueError(
            f"multiply-adds not counted for {names}: add a handle or list it as free in metamixer/counters.py"
        )
    own = {name: Counter(found) for name, found in sums.items()}
    for name, found in sums.items():
        if name:
            own[name.rpartition(".")[0]].subtract(found)
    return own
