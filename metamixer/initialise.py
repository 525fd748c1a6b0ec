"""How a network starts: what its operations set themselves stands; what they leave to torch is drawn here.

Everything random follows from the seed and the place: an operation is built with torch's generator seeded by (seed,
its name), and each convolution and linear layer draws from (seed, its own name). So two networks share the initial
values of all that they have in common, whatever else differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .rng import derive

LAYERS = (nn.Conv2d, nn.Linear)
_RESETS = [layer.reset_parameters for layer in LAYERS]  # a class that derives from them may have another

Init = Literal["ffnet", "fan_in"]


@contextmanager
def seeded(seed: int | None, name: str) -> Iterator[None]:
    """Torch draws on the CPU from (seed, name) inside, and goes on afterwards as before; without a seed as always."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            # to note an absent GPU's seed for later, torch prints the stack: a third of the time that a network takes
            alone = not torch.accelerator.is_available()
            (torch.default_generator.manual_seed if alone else torch.manual_seed)(derive(seed, "init", name))
        yield


class Construction(TorchDispatchMode):
    """While it is active: which tensors hold nothing but what torch's own layers drew when they were made.

    A layer's constructor takes empty memory and fills it once, by `uniform_`. Any other write is somebody's wish.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, str] = {}  # what was done to memory, by its address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not output.is_meta and not func.is_view:
            name, address = func.overloadpacket.__name__, _address(output)
            first = name == "uniform_" and self._last.get(address) == "empty"
            self._last[address] = "default" if first else name
        return output

    def left_to_torch(self, layer: nn.Module, key: str) -> bool:
        """Whether the layer's parameter `key` holds what torch's own class drew."""
        tensor, own = getattr(layer, key), type(layer).reset_parameters not in _RESETS  # type: ignore[attr-defined]
        return tensor is not None and not own and self._last.get(_address(tensor)) == "default"


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def initialise(model: nn.Module, construction: Construction, seed: int | None, init: Init = "ffnet") -> None:
    """Start convolutions and linear layers that are as torch made them.

    Weights are drawn from a truncated normal distribution, biases are 0. Its standard deviation is FFNet's 0.02, or
    for `fan_in` one over the square root of the number of inputs of an output (LeCun, "Efficient BackProp", 1998).
    """
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            if construction.left_to_torch(layer, "weight"):
                with seeded(seed, name):
                    trunc_normal_(layer.weight, std=0.02 if init == "ffnet" else layer.weight[0].numel() ** -0.5)
            if construction.left_to_torch(layer, "bias"):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
