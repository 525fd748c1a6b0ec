"""What a network costs: parameters and multiply-adds of its folded form, counted by fvcore.

"FLOPs" in the literature's tables are multiply-adds; here they are called MACs. fvcore leaves out what it has
no handle for, with a warning at most, so attention would look cheaper than it is: the handles below count the
fused kernel and `COUNTED_AS_ZERO` says what is deliberately free. Anything else is an error.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn

# One operation or fewer an element, or data movement: what tables of "FLOPs" leave out by convention.
COUNTED_AS_ZERO = frozenset(
    f"aten::{name}"
    for name in (
        "add add_ sub sub_ rsub mul mul_ div div_ neg pow square sqrt rsqrt abs exp log sign sum mean cumsum max min "
        "amax amin maximum minimum clamp clamp_min clamp_max clamp_ norm linalg_vector_norm gelu gelu_ relu relu_ "
        "relu6 relu6_ hardtanh hardtanh_ silu silu_ sigmoid sigmoid_ tanh softplus elu leaky_relu softmax log_softmax "
        "avg_pool2d max_pool2d pad constant_pad_nd im2col cat stack roll flip gather index index_select repeat "
        "repeat_interleave tile expand expand_as split split_with_sizes chunk unbind slice select narrow unfold "
        "dropout feature_dropout ones_like zeros_like zeros ones full arange new_zeros new_ones eye clone contiguous "
        "detach"
    ).split()
)


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds for one image."""

    parameters: int
    macs: int


def count(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Cost of the folded `model` for one image of `input_size` (C, H, W).

    Raises:
        ValueError: the network holds an operation that nothing counts; the line names it.
    """
    folded = reparameterize_model(model).eval()
    parameters = sum(p.numel() for p in folded.parameters())
    image = torch.zeros(1, *input_size, device=next(folded.parameters()).device)
    # fvcore announces what it does not count through this logger; it is checked below instead
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore builds on, is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(folded, image).set_op_handle(**{"aten::scaled_dot_product_attention": _attention})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        macs = int(analysis.total())
        uncounted = _uncounted(analysis.unsupported_ops())
    if uncounted:
        names = ", ".join(f"{name} ({times}×)" for name, times in sorted(uncounted.items()))
        raise ValueError(f"multiply-adds not counted for {names}: add a handle or list it as free in metamixer/cost.py")
    return Cost(parameters, macs)


def _uncounted(unsupported: Counter[str]) -> dict[str, int]:
    return {name: times for name, times in unsupported.items() if name not in COUNTED_AS_ZERO}


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """b·h·n_q·n_k·(d_q + d_v): scores and their sum over the values."""
    q, k, v = (tensor.type().sizes() for tensor in inputs[:3])
    *batch, n_q, d_q = q
    return int(torch.tensor(batch).prod()) * n_q * k[-2] * (d_q + v[-1])
