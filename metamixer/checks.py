"""The contract of a mixer: what holds for every one that ships, checked on any other.

`check` takes the name of a preset, a baseline or an operation (with parameters: a dict), or the four slots, and gives a
row for each promise; what fails is a row too, with the reason in one line. `checks_table` prints the rows.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import ConfigError
from .cost import Cost, count, readable
from .deploy import coreml
from .fold import CONVOLUTIONS, NORMS, fold
from .initialise import LAYERS, Construction, initialise
from .mixer import MetaMixer, MetaMixerConfig, accepts, build_mixer, makes, resolve_mixer
from .operation import REGISTRY, SLOTS, Layout, OperationConfig, Site, Slot, operation_class, resolve
from .plugins import place
from .presets import BASELINES, PRESETS

SIZE = (8, 8)
SIZES = (SIZE, (7, 5), (14, 14), (3, 2))
COST_SIZE = (28, 28)
# an operation without a mixer of its own is checked in the first of these that it fits
_HOSTS = ("ffnified_attention", *PRESETS)

Mixer = MetaMixerConfig | OperationConfig


@dataclass(frozen=True)
class Check:
    """A promise, whether it holds (None: there is nothing to check), and a line about it."""

    name: str
    passed: bool | None
    detail: str


class _Broken(Exception):
    """A promise that does not hold."""


class _NotApplicable(Exception):
    """A promise that says nothing about this mixer."""


@dataclass(frozen=True)
class Subject:
    """The mixer that is checked, and what to call it."""

    config: Mixer
    dim: int
    label: str
    slot: Slot | None = None  # of the operation that was asked for, if it was one

    @property
    def fixed_size(self) -> bool:
        return any(operation_class(slot, config).fixed_size for slot, config in _operations(self.config))

    def build(self, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> nn.Module:
        """In eval mode, with values moved from their start, so that nothing is zero or one by luck."""
        mixer = build_mixer(self.config, Site(self.dim, *size)).to(dtype).eval()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            for module in mixer.modules():
                if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        return mixer

    def input(self, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(3, self.dim, *size, dtype=dtype)


def find(value: Any, dim: int = 64) -> Subject:
    """What a name, an operation's name with parameters (as a dict), or four slots stand for.

    An operation that is in no preset stands in one whose slot it can take. Where several slots have an operation of
    the name, `SLOT.NAME` says which, e.g. `query_key.linear`.

    Raises:
        ConfigError: nothing of that name, parameters that it does not take, or an operation that fits no preset.
    """
    parameters = dict[str, Any]()
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        parameters = {key: each for key, each in value.items() if key != "name"}
        value = value["name"]
    if not isinstance(value, str):
        return Subject(resolve_mixer(value), dim, "the mixer")
    wanted, dot, name = value.rpartition(".")
    slots = [slot for slot in REGISTRY if name in REGISTRY[slot] and (not dot or slot == wanted)]
    if len(slots) > 1 or (slots and value in PRESETS):
        choices = " or ".join(f"{slot}.{name}" for slot in slots)
        kind = "a preset and an operation" if value in PRESETS else "an operation of several slots"
        raise ConfigError(f"{value!r} is {kind}: ask for {choices}")
    if value in PRESETS and parameters:
        raise ConfigError(f"preset {value!r} takes no parameters: give an operation some, or the four slots")
    if (value in PRESETS or value in BASELINES) and not parameters:
        return Subject(resolve_mixer(value), dim, f"{'preset' if value in PRESETS else 'baseline'} {value!r}")
    if not slots:
        known = [*PRESETS, *BASELINES, *(name for slot in REGISTRY.values() for name in slot)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else "one of your own needs @register, in a file that --module names"
        )
        raise ConfigError(f"no mixer or operation {value!r}; {hint}")
    slot, operation = slots[0], {"name": name, **parameters}
    label = f"{slot} operation {name!r}"
    if slot == "baseline":
        return Subject(resolve_mixer(operation), dim, label)
    hosts = [preset for preset in PRESETS if _holds(preset, slot, name)]
    if hosts and not parameters:
        return Subject(resolve_mixer(hosts[0]), dim, f"{label} in the mixer {hosts[0]!r}", slot)
    resolve(slot, operation)  # parameters that it does not take, or lacks, are an error that no host mends
    for host in (*hosts, *_HOSTS):
        try:
            mixer = resolve_mixer(PRESETS[host] | {slot: operation})
            subject = Subject(mixer, dim, f"{label} in the mixer {host!r}", slot)
            build_mixer(subject.config, Site(dim, *SIZE))
            return subject
        except ValueError as error:
            refusal = error
    raise ConfigError(f"{label} fits no preset; check a dict of the four slots (the last one: {refusal})")


def check(value: Any, dim: int = 64, coreml: bool = True) -> list[Check]:
    """The contract of a mixer at width `dim`: a row for each promise; nothing raises.

    Args:
        value: what `find` takes.
        coreml: whether to convert it, which takes seconds.
    """
    with quiet():
        try:
            subject = find(value, dim)
            subject.build()
        except Exception as error:
            return [Check("builds", False, _line(error))]
        rows = [Check("builds", True, subject.label)]
        for name, promise in PROMISES.items():
            if (name == "layouts" and subject.slot != "activation") or (name == "Core ML" and not coreml):
                continue
            torch.manual_seed(0)
            try:
                rows.append(Check(name, True, promise(subject)))
            except _NotApplicable as reason:
                rows.append(Check(name, None, str(reason)))
            except Exception as error:
                rows.append(Check(name, False, _line(error)))
    return rows


# ---- promises: a line if they hold, an exception if not


def _shapes(subject: Subject) -> str:
    mixer = subject.build()
    for size in SIZES:
        if subject.fixed_size:
            mixer = subject.build(size)
        x = subject.input(size)
        with _at(size), torch.no_grad():
            if isinstance(mixer, MetaMixer):
                _as_declared(mixer, x)
            y = _unchanged("it", mixer, x)
            _demand(y.shape == x.shape, f"input {_by(x.shape)} gives {_by(y.shape)}")
            _demand(bool(y.isfinite().all()), "not finite")
    sizes = ", ".join(_by(size) for size in SIZES)
    return sizes + ("; built for each, as its parameters are tied to the map" if subject.fixed_size else "")


def _as_declared(mixer: MetaMixer, x: Tensor) -> None:
    """Demand that queries and scores have the sizes that the next slots were built for, and that no slot changes them.

    What a slot is given may be the mixer's own input, by an identity query, which the residual sum still needs.
    """
    batch, _, height, width = x.shape
    q, key = _unchanged(f"query {mixer.query.name!r}", mixer.query, x), mixer.query_key
    _demand(
        q.shape == (batch, mixer.query.out_dim, height, width),
        f"query {mixer.query.name!r} gives {_by(q.shape)}, and says out_dim {mixer.query.out_dim}",
    )
    made, tokens = key.coefficients, height * width
    _demand(
        made.layout == key.makes,
        f"query_key {key.name!r} makes {key.makes}, and its coefficients say {made.layout}",
    )
    per_head = made.channels // made.heads
    sides = {
        Layout.MAP: (made.channels, height, width),
        Layout.PAIRS: (made.heads, tokens, tokens),
        Layout.NEIGHBOURHOOD: (made.heads, made.kernel_size**2, height, width),
        Layout.CHANNELS: (made.heads, per_head, per_head),
    }
    scores, expected = _unchanged(f"query_key {key.name!r}", key, q, x), (batch, *sides[made.layout])
    _demand(
        scores.shape == expected,
        f"query_key {key.name!r} gives scores {_by(scores.shape)}, and its coefficients say {_by(expected)}",
    )
    activation, value = mixer.activation, mixer.coefficient_value
    coefficients = _unchanged(f"activation {activation.name!r}", activation, scores)
    _unchanged(f"coefficient_value {value.name!r}", value, coefficients, x, q)


def _unchanged(what: str, module: nn.Module, *inputs: Tensor) -> Tensor:
    """What a module makes of its inputs, which it must leave as they are."""
    before = [tensor.nan_to_num() for tensor in inputs]
    output: Tensor = module(*inputs)
    same = all(torch.equal(tensor.nan_to_num(), old) for tensor, old in zip(inputs, before, strict=True))
    _demand(same, f"{what} changes its input in place, which others still read")
    return output


def _start(subject: Subject) -> str:
    first, own = _started(subject, 0)
    again, other = _started(subject, 0)[0], _started(subject, 1)[0]
    differ = [name for name, tensor in first.items() if not torch.equal(tensor, again[name])]
    _demand(not differ, f"two of one seed differ in {', '.join(differ)}: draw with torch, in the constructor")
    drawn = sum(not torch.equal(tensor, other[name]) for name, tensor in first.items())
    return f"{drawn} tensors follow from the seed" + (f"; set by its operations: {', '.join(own)}" if own else "")


def _started(subject: Subject, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    """Initial values of the mixer in a network of this seed, and which of its layers' an operation set itself."""
    with Construction() as construction:
        mixer = build_mixer(subject.config, Site(subject.dim, *SIZE, "mixer", seed))
    layers = [(name, layer) for name, layer in mixer.named_modules() if isinstance(layer, LAYERS)]
    named = [(f"{name}.{key}", value) for name, layer in layers for key, value in layer.named_parameters(recurse=False)]
    own = [name for name, value in named if not construction.left_to_torch(value)]
    initialise(mixer, construction, seed)
    return mixer.state_dict(), own


def _gradients(subject: Subject) -> str:
    mixer, x = subject.build(dtype=torch.double).train(), subject.input(dtype=torch.double).requires_grad_()
    y = mixer(x)
    (y * torch.randn_like(y)).sum().backward()
    named = [("the input", x), *((name, p) for name, p in mixer.named_parameters() if p.requires_grad)]
    missing = [name for name, p in named if p.grad is None or not p.grad.any()]
    _demand(not missing, f"none reaches {', '.join(missing)}")
    infinite = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
    _demand(not infinite, f"not finite at {', '.join(infinite)}")
    return f"finite at all {len(named) - 1} parameters and the input"


def _folding(subject: Subject) -> str:
    mixer, x = subject.build(dtype=torch.double), subject.input(dtype=torch.double)
    hooks = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(isinstance(m, NORMS) or any(hasattr(m, hook) for hook in hooks) for m in mixer.modules()):
        raise _NotApplicable("nothing to fold")
    with torch.no_grad():
        folded = fold(mixer)
        difference = _same(folded(x), mixer(x), 1e-6, "the folded form differs")
        behind = _norms_behind_convolutions(folded, x)
    _demand(not behind, f"{', '.join(behind)} stays behind its convolution: torch.fx can't follow the forward there")
    left = sum(isinstance(module, NORMS) for module in folded.modules())
    return difference + (f"; {left} BatchNorms stay" if left else "")


def _norms_behind_convolutions(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the BatchNorms that take what a convolution has just made."""
    made: list[Tensor] = []
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda norm, inputs: found.extend(name for tensor in made if tensor is inputs[0])

    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            module.register_forward_hook(lambda conv, inputs, output: made.append(output))
        elif isinstance(module, NORMS):
            module.register_forward_pre_hook(look(name))
    model(x)
    return found


def _fast_path(subject: Subject) -> str:
    mixer, x = subject.build(dtype=torch.double), subject.input(dtype=torch.double)
    if not isinstance(mixer, MetaMixer) or type(mixer) is MetaMixer:
        raise _NotApplicable("none: it goes slot by slot" if isinstance(mixer, MetaMixer) else "no slots")
    with torch.no_grad():
        name = type(mixer).__name__
        return f"{name}: " + _same(mixer(x), mixer.trace(x).output, 1e-6, f"{name} differs from the slots")


def _batch(subject: Subject) -> str:
    mixer, x = subject.build(dtype=torch.double), subject.input(dtype=torch.double)
    with torch.no_grad():
        alone = torch.cat([mixer(image[None]) for image in x])
        return _same(mixer(x), alone, 1e-6, "in eval, an image's output depends on the others of its batch")


def _script(subject: Subject) -> str:
    return _equal_eager(subject, lambda mixer, x: torch.jit.script(mixer)(x))


def _export(subject: Subject) -> str:
    return _equal_eager(subject, lambda mixer, x: torch.export.export(mixer, (x,)).module()(x))


def _fx(subject: Subject) -> str:
    return _equal_eager(subject, lambda mixer, x: torch.fx.symbolic_trace(mixer)(x))


def _equal_eager(subject: Subject, run: Callable[[nn.Module, Tensor], Tensor]) -> str:
    mixer, x = subject.build(SIZES[1]), subject.input(SIZES[1])
    with torch.no_grad():
        return _same(run(mixer, x), mixer(x), 1e-4, "the result differs from eager")


def _autocast(subject: Subject) -> str:
    mixer, x = subject.build().train(), subject.input().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    _demand(bool(y.isfinite().all()), "the output is not finite")
    y.float().square().mean().backward()
    found = [p.grad for p in (x, *mixer.parameters()) if p.grad is not None]
    _demand(all(bool(gradient.isfinite().all()) for gradient in found), "a gradient is not finite")
    return "output and gradients are finite"


def _meta(subject: Subject) -> str:
    with torch.device("meta"):
        mixer = build_mixer(subject.config, Site(subject.dim, *SIZE)).eval()
        real = [name for name, tensor in mixer.state_dict().items() if not tensor.is_meta]
        _demand(not real, f"{', '.join(real)} is allocated")
        y = mixer(subject.input())
    return f"built without memory, and gives {_by(y.shape)}"


def _macs(subject: Subject) -> str:
    cost = cost_of(subject.config, subject.dim)
    return f"{readable(cost.macs)} at {_by(COST_SIZE)}, {readable(cost.parameters)} parameters, folded"


def cost_of(config: Mixer, dim: int = 64, size: tuple[int, int] = COST_SIZE) -> Cost:
    """Parameters and multiply-adds of one mixer on maps of `size`."""
    return count(build_mixer(config, Site(dim, *size)), (dim, *size))


def _layouts(subject: Subject) -> str:
    assert isinstance(subject.config, MetaMixerConfig)
    activation, tried = subject.config.activation, []
    for layout in sorted(accepts(activation)):
        hosts = (resolve_mixer(PRESETS[name]) for name in _HOSTS)
        host = next(h for h in hosts if isinstance(h, MetaMixerConfig) and makes(h.query_key) == layout)
        mixer = Subject(resolve_mixer({**dict(host), "activation": activation}), subject.dim, "").build()
        assert isinstance(mixer, MetaMixer)
        x = subject.input()
        try:
            trace = mixer.trace(x)
        except Exception as error:
            raise _Broken(f"{layout}: {_line(error)}") from None
        _demand(
            trace.coefficients.shape == trace.scores.shape,
            f"{layout}: scores {_by(trace.scores.shape)} become {_by(trace.coefficients.shape)}",
        )
        _demand(bool(trace.coefficients.isfinite().all()), f"{layout}: not finite")
        tried.append(str(layout))
    return ", ".join(tried)


def _coreml(subject: Subject) -> str:
    if importlib.util.find_spec("coremltools") is None:
        raise _NotApplicable("not checked: install the deploy extra")
    coreml.convert(subject.build(), subject.input()[:1])
    return f"converts to an ML program at {_by(SIZE)}"


PROMISES: dict[str, Callable[[Subject], str]] = {
    "shapes": _shapes,
    "layouts": _layouts,
    "initial values": _start,
    "gradients": _gradients,
    "folding": _folding,
    "fast path": _fast_path,
    "batch independence": _batch,
    "torch.jit.script": _script,
    "torch.export": _export,
    "torch.fx": _fx,
    "autocast bf16": _autocast,
    "meta": _meta,
    "multiply-adds": _macs,
    "Core ML": _coreml,
}


# ---- helpers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Draws of its own, and no chatter of tracers and converters."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _at(size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Broken(f"at {_by(size)}: {_line(error)}") from None


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


def _same(ours: Tensor, expected: Tensor, tolerance: float, otherwise: str) -> str:
    _demand(ours.shape == expected.shape, f"{otherwise}: {_by(ours.shape)} for {_by(expected.shape)}")
    difference = float((ours - expected).norm() / expected.norm().clamp_min(1e-12))
    _demand(difference <= tolerance, f"{otherwise} by {difference:.1e}")
    return "equal" if difference == 0 else f"equal to {difference:.0e}"


def _line(error: Exception) -> str:
    """An error in one line, with its place in the user's code; TorchScript and export say what is wrong first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    known = isinstance(error, _Broken | ValueError | AssertionError)
    text = text if known and lines else f"{place(error)}{type(error).__name__}: {text}"
    return text if len(text) <= 300 else text[:299] + "…"


def _operations(config: Mixer) -> list[tuple[Slot, OperationConfig]]:
    if isinstance(config, MetaMixerConfig):
        return [(slot, getattr(config, slot)) for slot in SLOTS]
    return [("baseline", config)]


def _holds(preset: str, slot: Slot, name: str) -> bool:
    operation = PRESETS[preset][slot]
    return (operation if isinstance(operation, str) else operation["name"]) == name


def _by(shape: Any) -> str:
    return "×".join(str(side) for side in shape)
