"""What fills a slot: operations, the layouts of coefficients they exchange, and their registry.

A new sub-operation is one class that derives from `Query`, `QueryKey`, `Activation` or `CoefficientValue`
(or `Baseline`), carries a `name` and a `Config`, and is decorated with `@register`.

Letters in shapes: B batch, C channels of the block, N = H·W tokens, k kernel size, d channels of a head.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import ValidationError
from torch import Tensor, nn

from .config import Config, ConfigError, explain, unknown
from .plugins import add


class Layout(StrEnum):
    """How coefficients lie in memory; what decides which operations fit together (`Coefficients`)."""

    MAP = "map"  # (B, C', H, W): one number per position and channel
    PAIRS = "token pairs"  # (B, heads, N, N): query token × key token (or pooled keys: `Coefficients.pool`)
    NEIGHBOURHOOD = "neighbourhood"  # (B, heads, k², H, W): the k×k keys around each position
    CHANNELS = "channel pairs"  # (B, heads, d, d): query channel × key channel


ALL_LAYOUTS = frozenset(Layout)
KEYED_LAYOUTS = ALL_LAYOUTS - {Layout.MAP}  # those with an axis that runs over keys


@dataclass(frozen=True)
class Coefficients:
    """Shape of the scores that a query-key interaction returns. `channels` counts C' for a map, else heads·d.

    With `pool` the keys of token pairs are not the N tokens, but those of a map pooled to pool×pool.
    """

    layout: Layout
    channels: int
    heads: int = 1
    kernel_size: int = 1
    pool: int = 0

    @property
    def key_axis(self) -> int:
        """The axis that runs over keys (channels, for a map)."""
        return {Layout.MAP: 1, Layout.NEIGHBOURHOOD: 2}.get(self.layout, -1)

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Of the tensor, for maps of this size."""
        tokens, channels = height * width, self.channels // self.heads
        return {
            Layout.MAP: (batch, self.channels, height, width),
            Layout.PAIRS: (batch, self.heads, tokens, self.pool**2 or tokens),
            Layout.NEIGHBOURHOOD: (batch, self.heads, self.kernel_size**2, height, width),
            Layout.CHANNELS: (batch, self.heads, channels, channels),
        }[self.layout]


class Site(NamedTuple):
    """Where in a network a mixer stands: its channels, and the size of its map at the training resolution.

    `place` is its name in the network, e.g. `stages.0.blocks.1.token_mixer`. Its initial values follow from that and
    the seed (`initialise.py`).
    """

    dim: int
    height: int
    width: int
    place: str = ""
    seed: int | None = None

    def within(self, part: str) -> "Site":
        """The same site, for a part of the operation there."""
        return self._replace(place=f"{self.place}.{part}".lstrip("."))


class OperationConfig(Config):
    """Parameters of an operation; `name` says which."""

    name: str


Slot = Literal["query", "query_key", "activation", "coefficient_value", "baseline"]
SLOTS: tuple[Slot, ...] = ("query", "query_key", "activation", "coefficient_value")


class Operation(nn.Module):
    """Base of all operations: an `nn.Module` that has a name, a `Config` and a slot."""

    slot: ClassVar[Slot]
    name: ClassVar[str]
    # whether keys or values are computed from the input or learned; None where there are none
    source: ClassVar[Literal["dynamic", "static"] | None] = None
    # whether its parameters are tied to the number of tokens of its site, so that no other map size fits
    fixed_size: ClassVar[bool] = False
    # its parameters that count channels: they grow with the width where a grid matches costs
    channel_counts: ClassVar[tuple[str, ...]] = ()

    # a class of its own where there are parameters
    Config: ClassVar[type[OperationConfig]] = OperationConfig

    def no_weight_decay(self) -> set[str]:
        """Names of its parameters that weight decay spares, besides vectors and scalars, which it always spares."""
        return set()

    def state_size(self, *inputs: Any, **named: Any) -> int:
        """Numbers of the other tokens that it must hold to answer for one more; `inputs` are those of its forward.

        Convolutions, pools and fused attention in it are counted without this. The rest that mixes tokens is 0 unless
        a class says otherwise.
        """
        return 0


class Query(Operation):
    """X (B, C, H, W) → Q (B, out_dim, H, W); `out_dim` is C unless a constructor says otherwise."""

    slot = "query"

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.out_dim = site.dim

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class QueryKey(Operation):
    """Q and its keys (from X if dynamic) → scores, shaped as `coefficients` says.

    They are those of one head with the query's channels, unless a constructor says otherwise.
    """

    slot = "query_key"
    makes: ClassVar[Layout]
    __jit_ignored_attributes__: ClassVar[list[str]] = ["coefficients"]

    def __init__(self, config: Any, site: Site, query_dim: int) -> None:
        super().__init__()
        self.coefficients = Coefficients(self.makes, query_dim)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Activation(Operation):
    """Scores → coefficients, of the same shape unless a constructor changes `coefficients`."""

    slot = "activation"
    __jit_ignored_attributes__: ClassVar[list[str]] = ["coefficients"]

    def __init__(self, config: Any, site: Site, coefficients: Coefficients) -> None:
        super().__init__()
        self.coefficients = coefficients
        self.key_axis = coefficients.key_axis

    @classmethod
    def accepts(cls, config: Any) -> frozenset[Layout]:
        """The layouts that it works on; all, unless said otherwise."""
        return ALL_LAYOUTS

    def forward(self, scores: Tensor) -> Tensor:
        raise NotImplementedError


class CoefficientValue(Operation):
    """Coefficients and their values (from X if dynamic) → Y (B, C, H, W); Q is there for those that gate it."""

    slot = "coefficient_value"
    takes: ClassVar[Layout]

    def __init__(self, config: Any, site: Site, coefficients: Coefficients, query_dim: int) -> None:
        super().__init__()

    def forward(self, coefficients: Tensor, x: Tensor, q: Tensor) -> Tensor:
        raise NotImplementedError


class Baseline(Operation):
    """X (B, C, H, W) → Y of the same shape, by something that is no MetaMixer."""

    slot = "baseline"

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


REGISTRY: dict[Slot, dict[str, type[Operation]]] = {slot: {} for slot in (*SLOTS, "baseline")}

O = TypeVar("O", bound=type[Operation])  # noqa: E741


def register(cls: O) -> O:
    """Make an operation known by its `name` in its slot.

    Raises ConfigError: the class has no name, no layout, no `Config` of its own kind, a wrong `source` or
    `channel_counts`, or its name is taken.
    """
    where = cls.__qualname__
    if not (isinstance(cls, type) and issubclass(cls, Operation) and hasattr(cls, "slot")):
        raise ConfigError(
            f"{where}: an operation derives from Query, QueryKey, Activation, CoefficientValue or Baseline"
        )
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or "." in name:  # SLOT.NAME is how `check` is asked for one
        raise ConfigError(f'{where}: an operation needs a name without dots: `name = "..."`')
    if not issubclass(cls.Config, OperationConfig):
        raise ConfigError(f"{where}: its Config derives from OperationConfig")
    for base, attribute in ((QueryKey, "makes"), (CoefficientValue, "takes")):
        if issubclass(cls, base) and not isinstance(getattr(cls, attribute, None), Layout):
            layouts = ", ".join(f"Layout.{layout.name}" for layout in Layout)
            raise ConfigError(f"{where}: it declares no layout: set `{attribute}` to one of {layouts}")
    if cls.source not in (None, "dynamic", "static"):
        raise ConfigError(f"{where}: source is dynamic or static, got {cls.source!r}")
    if lacks := set(cls.channel_counts) - set(cls.Config.model_fields):
        raise ConfigError(f"{where}: channel_counts names {', '.join(sorted(lacks))}, which its Config does not have")
    add(REGISTRY[cls.slot], cls)
    return cls


def resolve(slot: Slot, value: Any) -> OperationConfig:
    """The configuration of an operation from a name, a dict with a `name`, or a ready configuration.

    Raises ConfigError: no such operation, or no such parameter; the line names what exists.
    """
    if isinstance(value, OperationConfig):
        value = value.to_dict()
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ConfigError(f"{slot} takes the name of an operation or {{'name': ..., parameters}}, got {value!r}")
    cls = REGISTRY[slot].get(value["name"])
    if cls is None:
        raise unknown(f"{slot} operation", value["name"], sorted(REGISTRY[slot]))
    try:
        return _parsed(cls, json.dumps(value))  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise ConfigError(explain(error, cls.Config, f"{slot} operation {cls.name!r}")) from None


@lru_cache(4096)
def _parsed(cls: type[Operation], values: str) -> OperationConfig:
    """A grid of thousands names the same few operations in each of its networks; configurations are frozen."""
    return cls.Config.model_validate_json(values)


def operation_class(slot: Slot, config: OperationConfig) -> type[Operation]:
    """The class that a resolved configuration belongs to."""
    return REGISTRY[slot][config.name]
