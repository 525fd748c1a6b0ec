"""MetaMixer: query projection → query-key interaction → activation → coefficient-value interaction.

Source: arXiv 2406.02021, section 3. Each slot is filled by a registered operation (`operation.py`, `ops/`).
"""

from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, SerializeAsAny, model_validator
from torch import Tensor, nn

from . import ops  # noqa: F401  (registers the operations that ship with the project)
from .config import Config, ConfigError
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
        made = makes(self.query_key)
        if made not in accepts(self.activation):
            raise ConfigError(
                f"query_key {self.query_key.name!r} makes coefficients as {made}, which activation "
                f"{self.activation.name!r} with these parameters does not accept "
                f"(it accepts {', '.join(sorted(accepts(self.activation)))})"
            )
        if made != takes(self.coefficient_value):
            fits_key = [name for name, cls in REGISTRY["coefficient_value"].items() if cls.takes == made]  # type: ignore[attr-defined]
            fits_value = [
                name
                for name, cls in REGISTRY["query_key"].items()
                if cls.makes == takes(self.coefficient_value)  # type: ignore[attr-defined]
            ]
            raise ConfigError(
                f"query_key {self.query_key.name!r} makes coefficients as {made}, coefficient_value "
                f"{self.coefficient_value.name!r} takes {takes(self.coefficient_value)}; "
                f"with query_key {self.query_key.name!r} goes {' or '.join(fits_key) or 'nothing registered'}, "
                f"with coefficient_value {self.coefficient_value.name!r} goes {' or '.join(fits_value)}"
            )
        return self


def makes(query_key: OperationConfig) -> Layout:
    """Layout of the coefficients that a query-key interaction makes."""
    return operation_class("query_key", query_key).makes  # type: ignore[attr-defined]


def accepts(activation: OperationConfig) -> frozenset[Layout]:
    """Layouts that an activation works on."""
    return operation_class("activation", activation).accepts(activation)  # type: ignore[attr-defined]


def takes(coefficient_value: OperationConfig) -> Layout:
    """Layout of the coefficients that a coefficient-value interaction takes."""
    return operation_class("coefficient_value", coefficient_value).takes  # type: ignore[attr-defined]


def resolve_mixer(value: Any) -> MetaMixerConfig | OperationConfig:
    """A mixer from its four slots, or a baseline from its `name` and parameters.

    Raises:
        ConfigError: neither, an unknown operation or parameter, or slots that do not fit.
    """
    if isinstance(value, MetaMixerConfig):
        return value
    if isinstance(value, OperationConfig):
        return resolve("baseline", value)
    if isinstance(value, dict) and "name" in value:
        return resolve("baseline", value)
    if isinstance(value, dict):
        unknown = value.keys() - set(SLOTS)
        if unknown or len(value) < len(SLOTS):
            missing = [slot for slot in SLOTS if slot not in value]
            wrong = f"unknown {', '.join(sorted(unknown))}" if unknown else f"missing {', '.join(missing)}"
            raise ConfigError(f"a mixer has the slots {', '.join(SLOTS)}: {wrong}")
        return MetaMixerConfig(**value)
    raise ConfigError(
        f"a mixer is a dict of its four slots ({', '.join(SLOTS)}) or {{'name': a baseline}} "
        f"({', '.join(sorted(REGISTRY['baseline']))}), got {value!r}"
    )


MixerConfig = Annotated[SerializeAsAny[MetaMixerConfig | OperationConfig], BeforeValidator(resolve_mixer)]


class Trace(NamedTuple):
    """What passes between the slots of a mixer."""

    query: Tensor
    scores: Tensor
    coefficients: Tensor
    output: Tensor


class MetaMixer(nn.Module):
    """X (B, C, H, W) → Y (B, C, H, W) through the four slots."""

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

    def trace(self, x: Tensor) -> Trace:
        """The same, slot by slot, with all that passes between them."""
        q = self.query(x)
        scores = self.query_key(q, x)
        coefficients = self.activation(scores)
        return Trace(q, scores, coefficients, self.coefficient_value(coefficients, x, q))


def build_mixer(config: MetaMixerConfig | OperationConfig, site: Site) -> nn.Module:
    """The module of a mixer: a `MetaMixer`, or a baseline outside the four slots."""
    if isinstance(config, MetaMixerConfig):
        return MetaMixer(config, site)
    return _build("baseline", config, site)


def _build(slot: Any, config: OperationConfig, *args: Any) -> Any:
    return operation_class(slot, config)(config, *args)  # type: ignore[call-arg]
