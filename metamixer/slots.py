"""A mixer of four slots: its configuration, its module, and the fast paths that stand in for the module.

Source: arXiv 2406.02021, section 3. Each slot is filled by a registered operation (`operation.py`, `ops/`).
"""

from collections.abc import Callable, Collection
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, model_validator
from torch import Tensor, nn

from .config import Config, ConfigError
from .initialise import seeded
from .operation import (
    REGISTRY,
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
        self.query: Query = build_operation("query", config.query, site)
        dim = self.query.out_dim
        self.query_key: QueryKey = build_operation("query_key", config.query_key, site, dim)
        coefficients = self.query_key.coefficients
        self.activation: Activation = build_operation("activation", config.activation, site, coefficients)
        self.coefficient_value: CoefficientValue = build_operation(
            "coefficient_value", config.coefficient_value, site, self.activation.coefficients, dim
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

    Raises ConfigError: another class does this already.
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


def build_operation(slot: Slot, config: OperationConfig, site: Site, *args: Any) -> Any:
    """The module of an operation at a site; `args` are what its slot takes besides."""
    if slot != "baseline":
        site = site.within(slot)
    with seeded(site.seed, site.place):
        return operation_class(slot, config)(config, site, *args)  # type: ignore[call-arg]
