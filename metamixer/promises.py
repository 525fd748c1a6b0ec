"""What every mixer that ships promises, one function each: a line if it holds, an exception if not."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from .cost import Cost, count
from .deploy import coreml
from .errors import in_one_line
from .fold import NORMS, fold
from .initialise import LAYERS, Construction, Init, initialise
from .metric import readable
from .mixer import build_mixer, resolve_mixer
from .operation import SLOTS, OperationConfig, Site, Slot, operation_class
from .presets import PRESETS
from .slots import MetaMixer, MetaMixerConfig, accepts, makes

SIZE = (8, 8)
SIZES = (SIZE, (7, 5), (14, 14), (3, 2))
COST_SIZE = (28, 28)
# an operation without a mixer of its own is checked in the first of these that it fits
HOSTS = ("ffnified_attention", *PRESETS)

Mixer = MetaMixerConfig | OperationConfig


class NotApplicable(Exception):
    """A promise that says nothing about this mixer."""


@dataclass(frozen=True)
class Candidate:
    """The mixer that is checked, and what to call it."""

    config: Mixer
    dim: int
    label: str
    slot: Slot | None = None  # of the operation that was asked for, if it was one

    @property
    def fixed_size(self) -> bool:
        if isinstance(self.config, MetaMixerConfig):
            return any(operation_class(slot, getattr(self.config, slot)).fixed_size for slot in SLOTS)
        return operation_class("baseline", self.config).fixed_size

    def build(self, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.double) -> tuple[nn.Module, Tensor]:
        """In eval mode, with values moved from their start, so that nothing is zero or one by luck; and an input."""
        mixer = build_mixer(self.config, Site(self.dim, *size)).to(dtype).eval()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            for module in mixer.modules():
                if isinstance(module, NORMS) and module.running_mean is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        return mixer, torch.randn(3, self.dim, *size, dtype=dtype)


def cost_of(config: Mixer, dim: int, size: tuple[int, int] = COST_SIZE) -> Cost:
    """Cost of one mixer of `dim` channels on a map of `size`."""
    return count(build_mixer(config, Site(dim, *size)), (dim, *size))


def _shapes(candidate: Candidate) -> str:
    first, _ = candidate.build()
    for size in SIZES:
        built, x = candidate.build(size)
        with _at(_by(size)):
            _takes(built, x)
        with _at(f"{_by(size)}, built for {_by(SIZE)} (a mixer tied to its size declares fixed_size = True)"):
            if not candidate.fixed_size:
                _takes(first, x)
    sizes = ", ".join(_by(size) for size in SIZES)
    return sizes + ("; built for each, as its parameters are tied to the map" if candidate.fixed_size else "")


def _takes(mixer: nn.Module, x: Tensor) -> None:
    """Demand that a map comes out as large as it went in, and finite."""
    with torch.no_grad():
        if isinstance(mixer, MetaMixer):
            _as_declared(mixer, x)
        y = _unchanged("it", mixer, x)
    assert y.shape == x.shape, f"input {_by(x.shape)} gives {_by(y.shape)}"
    assert bool(y.isfinite().all()), "not finite"


def _as_declared(mixer: MetaMixer, x: Tensor) -> None:
    """Demand that queries and scores have the sizes that the next slots were built for, and that no slot changes them.

    What a slot is given may be the mixer's own input, by an identity query, which the residual sum still needs.
    """
    query, key, activation, value = (getattr(mixer, slot) for slot in SLOTS)
    what = {op: f"{op.slot} {op.name!r}" for op in (query, key, activation, value)}
    batch, _, height, width = x.shape
    q = _unchanged(what[query], query, x)
    made = q.shape == (batch, query.out_dim, height, width)
    assert made, f"{what[query]} gives {_by(q.shape)}, and says out_dim {query.out_dim}"
    says = key.coefficients
    assert says.layout == key.makes, f"{what[key]} makes {key.makes}, and its coefficients say {says.layout}"
    expected = says.shape(batch, height, width)
    scores = _unchanged(what[key], key, q, x)
    fits = scores.shape == expected
    assert fits, f"{what[key]} gives scores {_by(scores.shape)}, and its coefficients say {_by(expected)}"
    coefficients = _unchanged(what[activation], activation, scores)
    _unchanged(what[value], value, coefficients, x, q)


def _unchanged(what: str, module: nn.Module, *inputs: Tensor) -> Tensor:
    """What a module makes of its inputs, which it must leave as they are."""
    before = [tensor.nan_to_num() for tensor in inputs]
    output: Tensor = module(*inputs)
    same = all(torch.equal(tensor.nan_to_num(), old) for tensor, old in zip(inputs, before, strict=True))
    assert same, f"{what} changes its input in place, which others still read"
    return output


def _layouts(candidate: Candidate) -> str:
    if candidate.slot != "activation":
        raise NotApplicable("for activations")
    assert isinstance(candidate.config, MetaMixerConfig)
    activation = candidate.config.activation
    hosts = [host for host in map(resolve_mixer, HOSTS) if isinstance(host, MetaMixerConfig)]
    layouts = sorted(accepts(activation))
    for layout in layouts:
        host = next(host for host in hosts if makes(host.query_key) == layout)
        config = resolve_mixer({**dict(host), "activation": activation})
        mixer, x = Candidate(config, candidate.dim, "").build()
        with _at(layout):
            assert isinstance(mixer, MetaMixer)
            trace = mixer.trace(x)
            expected = mixer.activation.coefficients.shape(3, *SIZE)
            shapes = _by(trace.scores.shape), _by(trace.coefficients.shape)
            assert shapes[1] == _by(expected), f"scores {shapes[0]} become {shapes[1]}, and it says {_by(expected)}"
            assert bool(trace.coefficients.isfinite().all()), "not finite"
    return ", ".join(layouts)


def _start(candidate: Candidate) -> str:
    mixer, own = _started(candidate)
    first = mixer.state_dict()
    again, other = _started(candidate)[0].state_dict(), _started(candidate, seed=1)[0].state_dict()
    differ = [name for name, tensor in first.items() if not torch.equal(tensor, again[name])]
    assert not differ, f"two of one seed differ in {', '.join(differ)}: draw with torch, in the constructor"
    drawn = sum(not torch.equal(tensor, other[name]) for name, tensor in first.items())
    return f"{drawn} tensors follow from the seed" + (f"; set by its operations: {', '.join(own)}" if own else "")


def _started(candidate: Candidate, seed: int = 0, init: Init = "ffnet") -> tuple[nn.Module, list[str]]:
    """The mixer at its start in a network of this seed, and which of its layers' values an operation set itself."""
    with Construction() as construction:
        mixer = build_mixer(candidate.config, Site(candidate.dim, *SIZE, "mixer", seed))
    layers = [(name, layer) for name, layer in mixer.named_modules() if isinstance(layer, LAYERS)]
    named = [(name, layer, key) for name, layer in layers for key, _ in layer.named_parameters(recurse=False)]
    own = [f"{name}.{key}" for name, layer, key in named if not construction.left_to_torch(layer, key)]
    initialise(mixer, construction, seed, init)
    return mixer, own


def _branch(candidate: Candidate) -> str:
    x = torch.randn(32, candidate.dim, *SIZE)
    with torch.no_grad():
        spread = {init: float(_started(candidate, init=init)[0](x).std()) for init in get_args(Init)}
    return "starts with " + ", ".join(f"{spread[init]:.2g} ({init})" for init in spread) + " of its input's spread"


def _gradients(candidate: Candidate) -> str:
    mixer, x = candidate.build()
    y = mixer.train()(x.requires_grad_())
    (y * torch.randn_like(y)).sum().backward()
    gradients = {name: p.grad for name, p in mixer.named_parameters() if p.requires_grad} | {"the input": x.grad}
    missing = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not missing, f"none reaches {', '.join(missing)}"
    infinite = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not infinite, f"not finite at {', '.join(infinite)}"
    return f"finite at all {len(gradients) - 1} parameters and the input"


def _folding(candidate: Candidate) -> str:
    mixer, x = candidate.build()
    hooks = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(isinstance(m, NORMS) or any(hasattr(m, hook) for hook in hooks) for m in mixer.modules()):
        raise NotApplicable("nothing to fold")
    with torch.no_grad():
        folded = fold(mixer)
        difference = _same(folded(x), mixer(x), 1e-6, "the folded form differs")
    left = sum(isinstance(module, NORMS) for module in folded.modules())
    return difference + (f"; {left} BatchNorms stay" if left else "")


def _fast_path(candidate: Candidate) -> str:
    mixer, x = candidate.build()
    if not isinstance(mixer, MetaMixer) or type(mixer) is MetaMixer:
        raise NotApplicable("none: it goes slot by slot" if isinstance(mixer, MetaMixer) else "no slots")
    with torch.no_grad():
        name = type(mixer).__name__
        return f"{name}: " + _same(mixer(x), mixer.trace(x).output, 1e-6, f"{name} differs from the slots")


def _batch(candidate: Candidate) -> str:
    mixer, x = candidate.build()
    with torch.no_grad():
        alone = torch.cat([mixer(image[None]) for image in x])
        return _same(mixer(x), alone, 1e-6, "in eval, an image's output depends on the others of its batch")


def _as_eager(run: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[Candidate], str]:
    def promise(candidate: Candidate) -> str:
        mixer, x = candidate.build(SIZES[1], torch.float32)
        with torch.no_grad():
            return _same(run(mixer, x), mixer(x), 1e-4, "the result differs from eager")

    return promise


def _autocast(candidate: Candidate) -> str:
    mixer, x = candidate.build(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.train()(x.requires_grad_())
    assert bool(y.isfinite().all()), "the output is not finite"
    y.float().square().mean().backward()
    found = [p.grad for p in (x, *mixer.parameters()) if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in found), "a gradient is not finite"
    return "output and gradients are finite"


def _channels_last(candidate: Candidate) -> str:
    """Training and `bench` keep maps and weights in this memory format."""
    mixer, x = candidate.build()
    with torch.no_grad():
        expected = mixer(x)
    y = mixer.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    y.sum().backward()
    return _same(y.detach(), expected, 1e-6, "the result differs from contiguous maps")


def _meta(candidate: Candidate) -> str:
    with torch.device("meta"):
        mixer = build_mixer(candidate.config, Site(candidate.dim, *SIZE)).eval()
        real = [name for name, tensor in mixer.state_dict().items() if not tensor.is_meta]
        assert not real, f"{', '.join(real)} is allocated"
        y = mixer(torch.randn(3, candidate.dim, *SIZE))
    return f"built without memory, and gives {_by(y.shape)}"


def _cost(candidate: Candidate) -> str:
    """A mixer holds something of the other tokens if, and only if, its output for one depends on others."""
    cost = cost_of(candidate.config, candidate.dim)
    mixer, x = candidate.build()
    mixer(x.requires_grad_().clone())[
        0, :, SIZE[0] // 2, SIZE[1] // 2
    ].sum().backward()  # a raster begins at the corner
    reached = int(x.grad[0].any(0).sum())  # type: ignore[index]
    assert (cost.state_size > 0) == (reached > 1), (
        f"an output depends on {reached} tokens, and {cost.state_size} numbers are held of others: declare state_size"
    )
    return (
        f"{readable(cost.macs)} multiply-adds at {_by(COST_SIZE)}, {readable(cost.parameters)} parameters, "
        f"{readable(cost.state_size)} numbers held of other tokens, folded"
    )


def _coreml(candidate: Candidate) -> str:
    if importlib.util.find_spec("coremltools") is None:
        raise NotApplicable("not checked: install the deploy extra")
    mixer, x = candidate.build(dtype=torch.float32)
    coreml.convert(mixer, x[:1])
    return f"converts to an ML program at {_by(SIZE)}"


PROMISES: dict[str, Callable[[Candidate], str]] = {
    "shapes": _shapes,
    "layouts": _layouts,
    "initial values": _start,
    "branch": _branch,
    "gradients": _gradients,
    "folding": _folding,
    "fast path": _fast_path,
    "batch independence": _batch,
    "channels-last": _channels_last,
    "torch.export": _as_eager(lambda mixer, x: torch.export.export(mixer, (x,)).module()(x)),
    "torch.fx": _as_eager(lambda mixer, x: torch.fx.symbolic_trace(mixer)(x)),
    "autocast bf16": _autocast,
    "meta": _meta,
    "cost": _cost,
    "Core ML": _coreml,
}


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"at {where}: {error}") from None
    except Exception as error:
        raise AssertionError(f"at {where}: {in_one_line(error)}") from None


def _same(ours: Tensor, expected: Tensor, tolerance: float, otherwise: str) -> str:
    assert ours.shape == expected.shape, f"{otherwise}: {_by(ours.shape)} for {_by(expected.shape)}"
    difference = float((ours - expected).norm() / expected.norm().clamp_min(1e-12))
    assert difference <= tolerance, f"{otherwise} by {difference:.1e}"
    return "equal" if difference == 0 else f"equal to {difference:.0e}"


def _by(shape: Any) -> str:
    return "×".join(str(side) for side in shape)
