"""The size of residual branches relative to their inputs: it shows where mixers start unequal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone, Block


@torch.no_grad()
def branch_ratios(model: Backbone, inputs: Tensor) -> dict[str, float]:
    """Standard deviation of every branch over that of its input, by the name of its mixer.

    Batch statistics are those of `inputs` (B, C, H, W); the model is left as it was.
    """
    spreads: dict[str, float] = {}
    handles = []

    def see(name: str, of: Callable[[Any, Any], Tensor]) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            spreads[name] = float(of(given, output).double().std())

        return hook

    names = []
    for name, block in model.named_modules():
        if isinstance(block, Block):
            for kind in ("token", "channel"):
                names.append(f"{name}.{kind}_mixer")
                norm, scale = getattr(block, f"{kind}_norm"), getattr(block, f"{kind}_scale")
                handles.append(norm.register_forward_hook(see(f"{names[-1]} in", lambda given, _: given[0])))
                handles.append(scale.register_forward_hook(see(f"{names[-1]} out", lambda _, output: output)))
    training, buffers = model.training, {key: value.clone() for key, value in model.named_buffers()}
    try:
        model.train()(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for key, value in model.named_buffers():
            value.copy_(buffers[key])
        model.train(training)
    return {name: spreads[f"{name} out"] / spreads[f"{name} in"] for name in names}
