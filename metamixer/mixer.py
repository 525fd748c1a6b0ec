"""MetaMixer: query projection → query-key interaction → activation → coefficient-value interaction.

Source: arXiv 2406.02021, section 3. Each slot is filled by a registered operation (`operation.py`, `ops/`).
"""

from collections.abc import Callable, Collection
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import BeforeValidator, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# importing `ops` registers the operations that ship with the project
from .config import Config, ConfigError, parse
from .initialise import seeded
from .operation import (
    REGISTRY,
    SLOTS,
    Activation,
    CoefficientValue,
    Layout,
    OperationConfig,
    Query,
    QueryKey,
    Site,
    Slot,
    operation_class,
    resolve,
)
from .ops.activation import Elementwise, Identity, L1Norm, Softmax
from .ops.coefficient_value import Matmul
from .ops.query_key import ScaledDot
from .presets import PRESETS, preset


def _slot(slot: Any) -> Any:
    return BeforeValidator(lambda value: resolve(slot, value))


class MetaMixerConfig(Config):
    """Four operations, each a name or a dict of its name and parameters; refused if they do not fit."""

    query: Annotated[SerializeAsAny[OperationConfig], _slot("query")]
    query_key: Annotated[SerializeAsAny[OperationConfig], _slot("query_key")]
    activation: Annotated[SerializeAsAny[OperationConfig], _slot("activation")]
    coefficient_value: Annotated[SerializeAsAny[OperationConfig], _slot("coefficient_value")]

    @model_validator(mode="after")
    def _slots_fit(self) -> "MetaMixerConfig":
        made, accepted, taken = makes(self.query_key), accepts(self.activation), takes(self.coefficient_value)
        if made not in accepted:
            fitting = [name for name in REGISTRY["activation"] if made in _accepts_unless_told(name)]
            raise self._misfit("activation", f"accepts {', '.join(sorted(accepted))}", accepted, fitting)
        if made != taken:
            fitting = [name for name, cls in REGISTRY["coefficient_value"].items() if cls.takes == made]  # type: ignore[attr-defined]
            raise self._misfit("coefficient_value", f"takes {taken}", {taken}, fitting)
        return self

    def _misfit(self, slot: Slot, does: str, layouts: Collection[Layout], fitting: list[str]) -> ConfigError:
        """The error of a slot that does something else than the key's layout, with what would fit each of the two."""
        key, other = f"query_key {self.query_key.name!r}", f"{slot} {getattr(self, slot).name!r}"
        keys = [name for name, cls in REGISTRY["query_key"].items() if cls.makes in layouts]  # type: ignore[attr-defined]
        return ConfigError(
            f"{key} makes coefficients as {makes(self.query_key)}, {other} with these parameters {does}; with {key} "
            f"goes {' or '.join(fitting) or 'nothing'}, with {other} goes {' or '.join(keys) or 'nothing'}"
        )


def makes(query_key: OperationConfig) -> Layout:
    """Layout of the coefficients that a query-key interaction makes."""
    return operation_class("query_key", query_key).makes  # type: ignore[attr-defined]


def accepts(activation: OperationConfig) -> frozenset[Layout]:
    """Layouts that an activation works on."""
    return operation_class("activation", activation).accepts(activation)  # type: ignore[attr-defined]


def _accepts_unless_told(name: str) -> frozenset[Layout]:
    """What an activation accepts with its defaults; nothing if it has to be told more."""
    try:
        return accepts(resolve("activation", name))
    except ConfigError:
        return frozenset()


def takes(coefficient_value: OperationConfig) -> Layout:
    """Layout of the coefficients that a coefficient-value interaction takes."""
    return operation_class("coefficient_value", coefficient_value).takes  # type: ignore[attr-defined]


def resolve_mixer(value: Any) -> MetaMixerConfig | OperationConfig:
    """A mixer from the name of a preset or a baseline, its four slots, or a baseline's `name` and parameters.

    Raises:
        ConfigError: none of these, an unknown operation or parameter, or slots that do not fit.
    """
    if isinstance(value, MetaMixerConfig):
        return value
    if isinstance(value, OperationConfig):
        return resolve("baseline", value)
    if isinstance(value, str):
        value = preset(value)
    if isinstance(value, dict) and "name" in value:
        return resolve("baseline", value)
    if isinstance(value, dict):
        unknown = value.keys() - set(SLOTS)
        if unknown or len(value) < len(SLOTS):
            missing = [slot for slot in SLOTS if slot not in value]
            wrong = f"unknown {', '.join(sorted(unknown))}" if unknown else f"missing {', '.join(missing)}"
            raise ConfigError(f"a mixer has the slots {', '.join(SLOTS)}: {wrong}")
        return parse(MetaMixerConfig, value)
    raise ConfigError(
        f"a mixer is a preset's name ({', '.join(PRESETS)}), a baseline's ({', '.join(REGISTRY['baseline'])}), a dict "
        f"of the four slots ({', '.join(SLOTS)}) or {{'name': a baseline, parameters}}, got {value!r}"
    )


class Trace(NamedTuple):
    """What passes between the slots of a mixer."""

    query: Tensor
    scores: Tensor
    coefficients: Tensor
    output: Tensor


class MetaMixer(nn.Module):
    """X (B, C, H, W) → Y (B, C, H, W) through the four slots."""

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        """Whether it stands in for `config` at this site; for a fast path that needs more than its three classes."""
        return True

    def __init__(self, config: MetaMixerConfig, site: Site) -> None:
        super().__init__()
        self.query: Query = _build("query", config.query, site)
        dim = self.query.out_dim
        self.query_key: QueryKey = _build("query_key", config.query_key, site, dim)
        coefficients = self.query_key.coefficients
        self.activation: Activation = _build("activation", config.activation, site, coefficients)
        self.coefficient_value: CoefficientValue = _build(
            "coefficient_value", config.coefficient_value, site, coefficients, dim
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        scores = self.query_key(q, x)
        return self.coefficient_value(self.activation(scores), x, q)

    def state_size(self, x: Tensor) -> int:
        """As for an operation; of what its slots do not do by themselves, for a fast path."""
        return 0

    def trace(self, x: Tensor) -> Trace:
        """The same, slot by slot, with all that passes between them."""
        q = self.query(x)
        scores = self.query_key(q, x)
        coefficients = self.activation(scores)
        return Trace(q, scores, coefficients, self.coefficient_value(coefficients, x, q))


M = TypeVar("M", bound=type[MetaMixer])

FAST_PATHS: dict[tuple[type[QueryKey], type[Activation], type[CoefficientValue]], type[MetaMixer]] = {}


def fast_path(
    query_key: type[QueryKey], activation: type[Activation], coefficient_value: type[CoefficientValue]
) -> Callable[[M], M]:
    """Decorate a `MetaMixer` whose `forward` computes these three operations at once, equal but cheaper.

    `build_mixer` then uses it for exactly these classes. It shares parameters and their names with the slots,
    and `trace` still goes slot by slot.

    Raises:
        ConfigError: another class does this already.
    """

    def add(cls: M) -> M:
        triple = (query_key, activation, coefficient_value)
        known = FAST_PATHS.get(triple, cls)
        if known.__qualname__ != cls.__qualname__:  # else the same file once more
            names = ", ".join(operation.name for operation in triple)
            raise ConfigError(f"{names} already have the fast path {known.__module__}.{known.__qualname__}")
        FAST_PATHS[triple] = cls
        return cls

    return add


# coefficients of an image that are held at once, if heads had one channel: those of 64 channels on a map 32 wide
LARGEST = 2**26


class _DotProduct(MetaMixer):
    """What the fast paths of query-key dot products share."""

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, (B, heads, d, N) each."""
        q, k = self.query_key.operands(self.query(x), x)  # type: ignore[operator]
        return q, k, self.coefficient_value.operand(x)  # type: ignore[operator]

    def merge(self, y: Tensor, x: Tensor) -> Tensor:
        return self.coefficient_value.merge(y, x)  # type: ignore[operator]


@fast_path(ScaledDot, Softmax, Matmul)
class SoftmaxAttention(_DotProduct):
    """softmax(QKᵀ)V by the fused kernel, which never holds the coefficients."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        # (B, heads, N, d); fused kernels want the channels of a head next to each other in memory
        q, k = q.transpose(-2, -1).contiguous(), k.transpose(-2, -1).contiguous()
        v = v.transpose(-2, -1).contiguous()
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.merge(y.transpose(-2, -1), x)


@fast_path(ScaledDot, Identity, Matmul)
class LinearAttention(_DotProduct):
    """(QKᵀ)V as Q(KᵀV): linear in N. With heads of one channel, Q ⊙ Σ(K ⊙ V)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        if self.query_key.head_dim == 1:
            return self.merge((k * v).sum(-1, keepdim=True) * q, x)
        return self.merge((v @ k.transpose(-2, -1)) @ q, x)

    def state_size(self, x: Tensor) -> int:
        return self.query.out_dim * self.query_key.head_dim  # type: ignore[operator, return-value]  # a matrix for each head


@fast_path(ScaledDot, L1Norm, Matmul)
class NormalizedLinearAttention(_DotProduct):
    """The same with each token's coefficients divided by their sum, Q Σ K, where none is negative."""

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        # a ReLU and no LayerNorm behind it, on both sides
        return all(
            getattr(op, "activation", "") == "relu" and getattr(op, "normalize", "") != "layer"
            for op in (config.query, config.query_key)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        total = k.sum(-1, keepdim=True).transpose(-2, -1) @ q  # (B, heads, 1, N)
        eps: float = self.activation.eps  # type: ignore[assignment]
        return self.merge((v @ k.transpose(-2, -1)) @ q / (total + eps), x)

    def state_size(self, x: Tensor) -> int:
        return self.query.out_dim * (self.query_key.head_dim + 1)  # type: ignore[operator, return-value]  # and the sum of the keys


class ChunkedAttention(_DotProduct):
    """f(QKᵀ)V for a function of each score alone, some queries at a time, where all coefficients would need gigabytes.

    In training a chunk's coefficients are computed again in the backward pass, so that none are kept.
    """

    def __init__(self, config: MetaMixerConfig, site: Site) -> None:
        super().__init__(config, site)
        self.chunks = -(-_coefficients(site) // LARGEST)

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        return _coefficients(site) > LARGEST

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        parts = torch.tensor_split(q, self.chunks, dim=-1)
        return self.merge(torch.cat([self.chunk(parts[i], k, v) for i in range(self.chunks)], -1), x)

    def chunk(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():
            return checkpoint(self.rows, q, k, v, use_reentrant=False)
        return self.rows(q, k, v)

    def rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, heads, d, n), keys and values (B, heads, d, N) → sums of values (B, heads, d, n)."""
        return v @ self.activation(q.transpose(-2, -1) @ k).transpose(-2, -1)

    def state_size(self, x: Tensor) -> int:
        return 2 * self.query.out_dim * x.shape[2] * x.shape[3]


def _coefficients(site: Site) -> int:
    return site.dim * (site.height * site.width) ** 2


for _activation in REGISTRY["activation"].values():
    if issubclass(_activation, Elementwise):
        fast_path(ScaledDot, _activation, Matmul)(ChunkedAttention)


def build_mixer(config: MetaMixerConfig | OperationConfig, site: Site) -> nn.Module:
    """The module of a mixer: a `MetaMixer`, by its fast path where it has one, or a baseline."""
    if not isinstance(config, MetaMixerConfig):
        return _build("baseline", config, site)
    operations = [operation_class(slot, getattr(config, slot)) for slot in SLOTS[1:]]
    cls = FAST_PATHS.get(tuple(operations), MetaMixer)  # type: ignore[arg-type]
    return (cls if cls.applies(config, site) else MetaMixer)(config, site)


def _build(slot: Slot, config: OperationConfig, site: Site, *args: Any) -> Any:
    if slot != "baseline":
        site = site.within(slot)
    with seeded(site.seed, site.place):
        return operation_class(slot, config)(config, site, *args)  # type: ignore[call-arg]
