"""What each operation in the graph of `torch.jit.trace` costs: the rules behind `cost`, as handles for fvcore.

A handle takes the inputs and outputs of a node and gives multiply-adds ("macs"), elements written by convolutions,
linear layers and matrix products ("activations"), and elements read and written ("moved").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from fvcore.nn.jit_handles import conv_flop_jit

Handle = Callable[[list[Any], list[Any]], Counter[str]]


def _named(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


# No multiply-adds, but numbers are read and written: those of convolutions and matrix products are below.
_COMPUTED = _named(
    # one number in, one out
    "add add_ sub sub_ rsub div div_ floor_divide remainder neg pow pow_ square sqrt rsqrt reciprocal abs exp expm1 "
    "log log1p erf sign sin cos tan atan floor round maximum minimum clamp clamp_ clamp_min clamp_max where lerp "
    "addcdiv masked_fill masked_fill_ bitwise_not eq ne ge gt le lt "
    "gelu gelu_ relu relu_ relu6 relu6_ hardtanh hardtanh_ silu silu_ sigmoid sigmoid_ tanh tanh_ softplus elu elu_ "
    "selu celu leaky_relu leaky_relu_ prelu mish mish_ hardswish hardswish_ hardsigmoid hardsigmoid_ glu log_sigmoid "
    "softsign "
    # a sum, an extreme or a normalisation over some axes
    "sum mean cumsum prod max min amax amin argmax argmin topk sort logsumexp norm linalg_vector_norm var std var_mean "
    "std_mean softmax log_softmax batch_norm layer_norm group_norm instance_norm rms_norm avg_pool2d max_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d col2im "
    # the same numbers elsewhere
    "pad constant_pad_nd im2col cat stack roll flip gather index index_put_ index_select repeat repeat_interleave tile "
    "pixel_shuffle pixel_unshuffle channel_shuffle clone copy_ upsample_nearest2d upsample_bilinear2d "
    "upsample_bicubic2d"
)
# Nothing is moved: views, constants, what does nothing in eval mode, and what reads a shape.
_FREE = _named(
    "expand expand_as split split_with_sizes chunk unbind slice select narrow unfold contiguous detach dropout "
    "feature_dropout view view_as reshape reshape_as flatten unflatten squeeze unsqueeze unsqueeze_ permute transpose "
    "t movedim to type_as ones_like zeros_like full_like zeros ones full empty arange new_zeros new_ones new_empty "
    "new_full eye size Int ScalarImplicit __and__"
)

# In the graphs of torch.jit.trace: what hands numbers on unchanged, and what sums them.
_MOVES = _named("reshape view flatten unflatten squeeze unsqueeze permute transpose stack cat to contiguous clone")
_MOVES |= {"prim::ListConstruct"}
_SUMS = _named("sum mean col2im")
_ADDS = _named("add add_ sub sub_")
_PRODUCTS = _named("mul mul_")
_ADDCMUL = "aten::addcmul"  # adds a product by itself: what it adds to is its first input, the factors are the next two


def handles() -> dict[str, Handle]:
    """A handle by the name of each operation that is counted or known to be free."""
    found = dict.fromkeys(_FREE, _counts(lambda inputs, outputs: 0, moves=False))
    found |= dict.fromkeys(_COMPUTED, _counts(lambda inputs, outputs: 0))
    found |= dict.fromkeys(_PRODUCTS, _counts(_product))
    found |= dict.fromkeys(_named("matmul mm bmm mv dot linear"), _counts(_contraction(0), activates=True))
    found |= dict.fromkeys(_named("addmm baddbmm"), _counts(_contraction(1), activates=True))
    found["aten::_convolution"] = _counts(lambda i, o: int(conv_flop_jit(i, o)["conv"]), activates=True)
    found["aten::einsum"] = _counts(_einsum, activates=True)
    found[_ADDCMUL] = _counts(_added_product)
    found["aten::scaled_dot_product_attention"] = _attention
    return found


def _counts(macs: Callable[[list[Any], list[Any]], int], moves: bool = True, activates: bool = False) -> Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter(
            macs=macs(inputs, outputs),
            activations=sum(map(_elements, outputs)) if activates else 0,
            moved=_moved(inputs, outputs) if moves else 0,
        )

    return handle


def _moved(inputs: Iterable[Any], outputs: Iterable[Any]) -> int:
    """Elements of all tensors that a node reads, weights among them, and writes; each once."""
    read = {value.debugName(): value for value in _tensors(inputs)}
    return sum(map(_size, read.values())) + sum(map(_size, _tensors(outputs)))


def _tensors(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if value.isCompleteTensor():
            yield value
        elif value.node().kind() == "prim::ListConstruct":
            yield from _tensors(value.node().inputs())


def _size(tensor: Any) -> int:
    shape = tensor.type().sizes()
    return prod(shape) if shape else 0  # a number in the code, not a tensor in memory


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """The fused kernel: b·h·n_q·n_k·(d_q + d_v), scores and their sum over the values, as two matrix products.

    Its scores count as activations, as without fusion, but are never moved.
    """
    q, k, v = (tensor.type().sizes() for tensor in inputs[:3])
    scores = prod(q[:-1]) * k[-2]
    activations = scores + _elements(outputs[0])
    return Counter(macs=scores * (q[-1] + v[-1]), activations=activations, moved=_moved(inputs, outputs))


def _contraction(first: int) -> Callable[[list[Any], list[Any]], int]:
    """Each number of the result sums over the last axis of the left matrix, which is argument `first`."""
    return lambda inputs, outputs: _elements(outputs[0]) * inputs[first].type().sizes()[-1]


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


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    """The same of `addcmul`, which is `a + b * c`."""
    node = outputs[0].node()
    return _elements(outputs[0]) if _adds_product(node) and _sums_products(node, inputs[0]) else 0


def _elements(value: Any) -> int:
    return prod(value.type().sizes()) if value.isCompleteTensor() else 1


def _multiplies(node: Any) -> bool:
    """Whether a node multiplies two different tensors; a scaling or a square does not."""
    return node.kind() in _PRODUCTS and _differ(*node.inputs())


def _adds_product(node: Any) -> bool:
    """Whether a node adds such a product to its first input."""
    return node.kind() == _ADDCMUL and _differ(*list(node.inputs())[1:3])


def _differ(a: Any, b: Any) -> bool:
    return a.debugName() != b.debugName() and _elements(a) > 1 and _elements(b) > 1


def _summed(value: Any) -> bool:
    """Whether a product is summed: by a `sum` or `mean`, or as one of several that are added up."""
    for use in value.uses():
        node = use.user
        if node.kind() in _SUMS:
            return True
        if node.kind() in _MOVES and any(_summed(output) for output in node.outputs()):
            return True
        if node.kind() in _ADDS and _sums_products(node, list(node.inputs())[1 - use.offset]):
            return True
        if node.kind() == _ADDCMUL and use.offset == 0 and (_adds_product(node) or _sums_products(node)):
            return True
    return False


def _sums_products(node: Any, other: Any = None) -> bool:
    """Whether a node that adds a product to `other` thereby sums several, there or where its own sum is added."""
    if other is not None and _partial_sum(other):
        return True
    uses = node.output().uses()
    if len(uses) != 1:  # not for the sake of another sum alone
        return False
    user, own = uses[0].user, node.output()
    if user.kind() == _ADDCMUL:
        return uses[0].offset == 0 and _adds_product(user)
    return user.kind() in _ADDS and any(_partial_sum(value, but=own) for value in list(user.inputs())[:2])


def _partial_sum(value: Any, but: Any = None) -> bool:
    """Whether a value is a product, or a product has been added to it for the sake of this sum alone.

    A value that is used elsewhere too is no partial sum but a residual stream.
    """
    if but is not None and value.debugName() == but.debugName():
        return False
    node = _origin(value)
    if _multiplies(node):
        return True
    if node.kind() not in (*_ADDS, _ADDCMUL) or len(value.uses()) > 1:
        return False
    summands = list(node.inputs())[: 1 if node.kind() == _ADDCMUL else 2]
    return _adds_product(node) or any(_multiplies(_origin(summand)) for summand in summands)


def _origin(value: Any) -> Any:
    """The node that made a value, behind views of it."""
    node = value.node()
    while node.kind() in _MOVES and node.kind() != "prim::ListConstruct":
        node = next(iter(node.inputs())).node()
    return node
