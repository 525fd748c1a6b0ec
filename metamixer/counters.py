"""What each operation that runs costs, by itself: the rules behind `cost`.

A dispatch mode sees every operation as torch runs it, with its tensors, whatever Python, TorchScript or a composite
function made it of. So a count depends on the operation alone, never on what is done with its result.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from math import prod
from typing import Any

import timm.layers
import torch
from timm.models import swin_transformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ModuleCost = Callable[..., float]
_MODULES: dict[type[nn.Module], ModuleCost] = {}


def register_cost(module: type[nn.Module], macs: ModuleCost) -> None:
    """Say what a module's forward costs, in place of counting the operations in it.

    Needed for operations that nothing counts, such as a Fourier transform or a kernel of one's own.

    Args:
        module: its class; classes that derive from it cost the same.
        macs: `macs(module, *inputs)` gives the multiply-adds for the inputs of its forward; they are rounded.
    """
    _MODULES[module] = macs


# Norms are free, and scales fold into the layer before them.
for _free in (nn.RMSNorm, timm.layers.RmsNorm, timm.layers.RmsNorm2d, timm.layers.LayerScale, timm.layers.LayerScale2d):
    register_cost(_free, lambda module, x: 0)


def _window_state(x: Tensor, *_: Any, **__: Any) -> int:
    """Keys and values of one window: timm's Swin does not use fused attention, whose state is counted below."""
    return 2 * x[0].numel()


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Without products. Other element-wise functions are known by torch's own tag, and views by their schema.
_COMPUTED = _names(
    "hardswish mish gelu _prelu_kernel log_sigmoid_forward threshold masked_fill floor_divide fill zero uniform normal "
    "bernoulli native_dropout masked_scatter slice_scatter select_scatter diagonal_scatter index_copy put cummax "
    "cummin count_nonzero median nanmean nansum trace searchsorted "
    "sum mean cumsum max min amax amin argmax argmin aminmax topk sort logsumexp norm linalg_vector_norm var std "
    "var_mean std_mean any all _softmax _safe_softmax _log_softmax native_batch_norm native_layer_norm "
    "native_group_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _fused_rms_norm "
    "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool2d adaptive_max_pool3d col2im im2col cat stack roll flip gather index index_put "
    "_unsafe_index index_select index_add index_fill masked_select scatter scatter_add scatter_reduce embedding "
    "repeat repeat_interleave rot90 tril triu diag_embed constant_pad_nd reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
    "copy _to_copy upsample_nearest1d upsample_nearest2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "upsample_linear1d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "bucketize nonzero unfold"
)
# Nothing is read or written: constants, and what is a view in all but its schema.
_FREE = _names(
    "_unsafe_view unsafe_split unsafe_split_with_sizes lift_fresh empty empty_like empty_strided new_empty "
    "new_empty_strided zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full scalar_tensor "
    "arange linspace eye rand randn rand_like randn_like randint randperm _local_scalar_dense _assert_async"
)


def _contraction(left: int) -> Callable[..., int]:
    """Each number of the result sums over the last axis of the matrix that is argument `left`."""
    return lambda output, *inputs, **_: output.numel() * inputs[left].shape[-1]


def _convolution(output: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    transposed = rest[4]
    return (x if transposed else output).numel() * prod(weight.shape[1:])


def _product(output: Tensor, a: Any, b: Any, **_: Any) -> int:
    """One for each element; a factor that is one number scales, and a tensor by itself is its square."""
    return output.numel() if a is not b and _is_many(a) and _is_many(b) else 0


def _is_many(factor: Any) -> bool:
    return isinstance(factor, Tensor) and factor.ndim > 0


def _lstm(output: Any, x: Tensor, of_input: Tensor, of_hidden: Tensor, *rest: Any, **_: Any) -> int:
    """The fused layer of CPUs: two matrices a step, and the products of four gates with three states."""
    steps = x.shape[0] * x.shape[1]
    return steps * (of_input.numel() + of_hidden.numel() + 3 * of_hidden.shape[1])


_MATRICES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(_names("mm bmm mv dot vdot _int_mm"), _contraction(0)),
    **dict.fromkeys(_names("addmm baddbmm addmv addbmm _addmm_activation"), _contraction(1)),
    "linalg_solve_triangular": lambda output, a, *_, **__: output.numel() * a.shape[-1] // 2,
    "convolution": _convolution,
    "mkldnn_rnn_layer": _lstm,
}
_PRODUCTS: dict[str, Callable[..., int]] = {
    "mul": _product,
    "addcmul": lambda output, a, b, c, **_: _product(output, b, c),
    "lerp": lambda output, a, b, weight, **_: _product(output, b, weight),
    "glu": lambda output, *_: output.numel(),
    "grid_sampler_2d": lambda output, *_: 4 * output.numel(),  # of four neighbours
    **dict.fromkeys(_names("prod cumprod"), lambda output, x, *_, **__: x.numel()),
}


def _state_size(name: str, args: Any) -> int:
    """Numbers of other places that one place of the output is made of; 0 for windows that do not overlap."""
    if name.startswith("_scaled_dot_product"):
        return args[1][0].numel() + args[2][0].numel()  # keys and values; of one window, if it is a batch of them
    if name == "convolution":
        window, stride = args[1].shape[2:], args[3]
    elif name in ("avg_pool2d", "max_pool2d_with_indices"):
        window, stride = args[1], args[2] or args[1]
    else:
        return 0
    overlaps = any(size > step for size, step in zip(window, stride, strict=True))
    return prod(window) * args[0].shape[1] if overlaps else 0


class Tally(TorchDispatchMode):
    """While it is active: what each module of `model` costs by its own operations, by the module's name.

    Attributes:
        costs: "macs", "activations", "moved", "largest" and "state_size" of each module.
        unknown: how often each operation ran that nothing counts.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.costs: dict[str, Counter[str]] = defaultdict(Counter)
        self.unknown: Counter[str] = Counter()
        self._inside: list[str] = []  # names of the modules that run, the innermost last
        self._declared = 0  # how many of them say themselves what they cost
        self._hooks = [
            handle
            for name, module in model.named_modules()
            for handle in (
                module.register_forward_pre_hook(self._entering(name), with_kwargs=True),
                module.register_forward_hook(self._leaving),
            )
        ]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._hooks:
            handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def enter(module: nn.Module, inputs: Any, named: Any) -> None:
            self._inside.append(name)
            window = _window_state if isinstance(module, swin_transformer.WindowAttention) else None
            if callable(size := getattr(module, "state_size", window)):
                self.costs[name]["state_size"] += round(size(*inputs, **named))
            macs = _declared(module)
            if macs is not None:
                self.costs[name]["macs"] += 0 if self._declared else round(macs(module, *inputs, **named))
                self._declared += 1

        return enter

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside.pop()
        self._declared -= _declared(module) is not None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_")  # in place or not
        if func.is_view or torch.Tag.inplace_view in func.tags or name in _FREE:
            return output
        inputs = {id(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = next((each.numel() for each in tree_leaves(output) if isinstance(each, Tensor)), 0)
        cost = self.costs[self._inside[-1] if self._inside else ""]
        cost["moved"] += sum(each.numel() for each in inputs.values()) + result
        cost["largest"] = max(cost["largest"], result)
        macs = 0
        cost["state_size"] += _state_size(name, args)
        if name in _MATRICES:
            macs = _MATRICES[name](output, *args, **kwargs)
            cost["activations"] += result
        elif name.startswith("_scaled_dot_product"):  # the fused kernels; their scores are written, but never moved
            q, k, v = args[:3]
            scores = prod(q.shape[:-1]) * k.shape[-2]
            macs = scores * (q.shape[-1] + v.shape[-1])
            cost["activations"] += scores + result
        elif name in _PRODUCTS:
            macs = _PRODUCTS[name](output, *args, **kwargs)
        elif not (name in _COMPUTED or torch.Tag.pointwise in func.tags or self._declared):
            self.unknown[func._schema.name] += 1
        if not self._declared:
            cost["macs"] += macs
        return output


def _declared(module: nn.Module) -> ModuleCost | None:
    return next((_MODULES[cls] for cls in type(module).__mro__ if cls in _MODULES), None)
