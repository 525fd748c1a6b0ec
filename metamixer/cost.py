"""What a network costs: parameters and multiply-adds of its folded form, for one image.

"FLOPs" in the literature's tables are multiply-adds; here they are called MACs. The rule: a product that is summed
with others counts, one by one. That is every convolution, linear layer and matrix product, attention by the
fused kernel too, and elementwise products whose sum is the interaction: `(q * k).sum(2)`, or a loop of
`y = y + c * v` (neighbourhoods, Hydra). Free are products that stand alone (gates, scales), activations, norms,
pools and moved data, as in the tables. What is in neither list is an error, so that nothing is cheap by oversight.

Counts are those of what is computed: where a fast path has the arithmetic of the slots (softmax attention), they
agree; where it multiplies in another order (linear and Hydra attention), it is truly cheaper, and counted so.
The counter is fvcore's, which by itself leaves out the fused kernel and elementwise products with a warning at
most, and adds norms and pools; without those, the sums are those of `torch.utils.flop_counter`.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn

COUNTED_AS_ZERO = frozenset(
    f"aten::{name}"
    for name in (
        # one number in, one out
        "add add_ sub sub_ rsub div div_ neg pow pow_ square sqrt rsqrt reciprocal abs exp expm1 log log1p erf sign "
        "sin cos tan atan floor round maximum minimum clamp clamp_ clamp_min clamp_max where lerp addcdiv "
        "gelu gelu_ relu relu_ relu6 relu6_ hardtanh hardtanh_ silu silu_ sigmoid sigmoid_ tanh tanh_ softplus elu "
        "elu_ selu celu leaky_relu leaky_relu_ prelu mish mish_ hardswish hardswish_ hardsigmoid hardsigmoid_ glu "
        "log_sigmoid softsign dropout feature_dropout "
        # a sum, an extreme or a normalisation over some axes
        "sum mean cumsum prod max min amax amin argmax argmin topk sort logsumexp norm linalg_vector_norm var std "
        "var_mean std_mean softmax log_softmax batch_norm layer_norm group_norm instance_norm rms_norm "
        "avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        # the same numbers elsewhere
        "pad constant_pad_nd im2col cat stack roll flip gather index index_select repeat repeat_interleave tile "
        "expand expand_as split split_with_sizes chunk unbind slice select narrow unfold pixel_shuffle "
        "pixel_unshuffle channel_shuffle upsample_nearest2d ones_like zeros_like zeros ones full arange new_zeros "
        "new_ones eye clone contiguous detach"
    ).split()
)

# In the graphs of torch.jit.trace: what hands numbers on unchanged, and what sums them.
_MOVES = {f"aten::{n}" for n in "reshape view flatten unflatten squeeze unsqueeze permute transpose stack cat".split()}
_MOVES |= {"prim::ListConstruct", "aten::to", "aten::contiguous", "aten::clone"}
_SUMS = {"aten::sum", "aten::mean"}
_ADDS = {"aten::add", "aten::add_", "aten::sub", "aten::sub_"}
_PRODUCTS = {"aten::mul", "aten::mul_"}


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds for one image."""

    parameters: int
    macs: int


def count(model: nn.Module, input_size: tuple[int, int, int], inplace: bool = False) -> Cost:
    """Cost of the folded `model` for one image (or map, for a mixer) of `input_size` (C, H, W).

    Args:
        inplace: fold `model` itself, not a copy; twice as fast.

    Raises:
        ValueError: the network holds an operation that nothing counts; the line names it.
    """
    # in a container, for a model that folds as a whole
    folded = reparameterize_model(nn.Sequential(model), inplace=inplace).eval()
    parameters = sum(p.numel() for p in folded.parameters())
    some = next(folded.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_size, device=some.device, dtype=some.dtype)
    # fvcore announces what it does not count through this logger; it is checked below instead
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which fvcore builds on, is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(folded, image)
        analysis.set_op_handle(**dict.fromkeys(COUNTED_AS_ZERO, _nothing))  # also where fvcore has one of its own
        analysis.set_op_handle(**dict.fromkeys(_PRODUCTS, _product))
        analysis.set_op_handle(**{"aten::scaled_dot_product_attention": _attention, "aten::einsum": _einsum})
        analysis.set_op_handle("aten::addcmul", lambda inputs, outputs: _elements(outputs[0]))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        macs = int(analysis.total())
        unsupported = analysis.unsupported_ops()
    if unsupported:
        names = ", ".join(f"{name} ({times}×)" for name, times in sorted(unsupported.items()))
        raise ValueError(f"multiply-adds not counted for {names}: add a handle or list it as free in metamixer/cost.py")
    return Cost(parameters, macs)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """b·h·n_q·n_k·(d_q + d_v): scores and their sum over the values."""
    q, k, v = (tensor.type().sizes() for tensor in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Operands are multiplied from left to right, each product summed as soon as it can be.

    fvcore's own handle reads the count from numpy's report, which rounds it to four digits.
    """
    terms, arrow, result = inputs[0].toIValue().replace(" ", "").partition("->")
    operands, sizes = [], dict[str, int]()
    for term, tensor in zip(terms.split(","), inputs[1].node().inputs(), strict=True):
        shape = tensor.type().sizes()
        spread = len(shape) - len(term.replace("...", ""))  # "..." stands for that many axes, here α, β, ...
        term = term.replace("...", "".join(chr(ord("α") + spread - i) for i in range(spread)))
        operands.append(set(term))
        sizes |= {axis: max(sizes.get(axis, 1), size) for axis, size in zip(term, shape, strict=True)}
    kept = set(result) if arrow else {axis for axis in sizes if terms.count(axis) < 2}
    kept |= {axis for axis in sizes if axis >= "α"}
    macs, product = 0, operands[0]
    for i, operand in enumerate(operands[1:], 1):
        wanted = kept.union(*operands[i + 1 :])
        product = product | operand
        macs += prod(sizes[axis] for axis in product) if product - wanted else 0
        product = product & wanted
    return macs


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """One for each element, if the product of two tensors is then summed with others."""
    return _elements(outputs[0]) if _multiplies(outputs[0].node()) and _summed(outputs[0]) else 0


def _elements(value: Any) -> int:
    return prod(value.type().sizes()) if value.isCompleteTensor() else 1


def _multiplies(node: Any) -> bool:
    """Whether a node multiplies two different tensors; a scaling or a square does not."""
    if node.kind() not in _PRODUCTS:
        return False
    a, b = node.inputs()
    return a.debugName() != b.debugName() and _elements(a) > 1 and _elements(b) > 1


def _summed(value: Any) -> bool:
    """Whether a product is summed: by a `sum` or `mean`, or as one of several that are added up."""
    for use in value.uses():
        node = use.user
        if node.kind() in _SUMS:
            return True
        if node.kind() in _MOVES and any(_summed(output) for output in node.outputs()):
            return True
        if node.kind() in _ADDS:
            other = list(node.inputs())[1 - use.offset]
            if _partial_sum(other) or any(_partial_sum(v, but=node.output()) for v in _added_to(node.output())):
                return True
    return False


def _partial_sum(value: Any, but: Any = None) -> bool:
    """Whether a value is a product, or a product has been added to it for the sake of this sum alone.

    A value that is used elsewhere too is no partial sum but a residual stream.
    """
    if but is not None and value.debugName() == but.debugName():
        return False
    node = _origin(value)
    if _multiplies(node):
        return True
    if node.kind() not in _ADDS or len(value.uses()) > 1:
        return False
    return any(_multiplies(_origin(summand)) for summand in list(node.inputs())[:2])


def _origin(value: Any) -> Any:
    """The node that made a value, behind views of it."""
    node = value.node()
    while node.kind() in _MOVES and node.kind() != "prim::ListConstruct":
        node = next(iter(node.inputs())).node()
    return node


def _added_to(value: Any) -> list[Any]:
    """What is added to a sum, if that is all that is done with it."""
    uses = value.uses()
    if len(uses) != 1 or uses[0].user.kind() not in _ADDS:
        return []
    return list(uses[0].user.inputs())[:2]
