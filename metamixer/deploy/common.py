"""What the formats share: the folded network with its normalisation, and errors that name operation and layer."""

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..errors import in_one_line
from ..fold import fold

# an operation in an error; where it was decomposed, that is one of prims
_OPERATION = re.compile(r"\b(aten|prims)(?:\.|::)(\w+)")


class NotConvertible(ConfigError):
    """An operation that a format does not take, and the layer it is in."""

    def __init__(self, format: str, operation: str, layer: str, reason: str = "") -> None:
        where = f" in layer {layer!r}" if layer else ""
        super().__init__(f"{format} does not take {operation!r}{where}" + (f": {reason}" if reason else ""))
        self.operation, self.layer = operation, layer


class Deployed(nn.Module):
    """Images (B, C, H, W) in 0-1 → class scores (B, classes), or their softmax: normalisation and folded network."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], softmax: bool = False
    ) -> None:
        super().__init__()
        self.network = fold(model).requires_grad_(False)
        self.ending = nn.Softmax(-1) if softmax else nn.Identity()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.ending(self.network((images - self.mean) / self.std))


def require(packages: Iterable[str], extra: str) -> None:
    """Refuse to go on without a package.

    Raises ConfigError: the line names the first that is missing, and the extra to install.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed: uv pip install -e '.[{extra}]'")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No chatter of tracers and converters."""
    nowhere = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # loggers keep the stream that they began with
    with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def exported(model: nn.Module, inputs: tuple[Tensor, ...], format: str) -> torch.export.ExportedProgram:
    """The graph of `torch.export`. Raises NotConvertible: the network can't be captured; the line says why."""
    try:
        with torch.no_grad():
            return torch.export.export(model, inputs)
    except Exception as error:  # torch raises many kinds
        raise NotConvertible(format, "torch.export", "", in_one_line(error)) from None


def not_convertible(format: str, program: torch.export.ExportedProgram, error: BaseException) -> NotConvertible:
    """What a converter's error says about an exported network: the operation and its layer where it names one."""
    while error.__cause__ is not None:  # the innermost one says what was wrong, the others where to ask for help
        error = error.__cause__
    named = _OPERATION.search(str(error))
    layer = _layer_of(program, named[2]) if named else ""
    return NotConvertible(format, named[0].replace("::", ".") if named else "the network", layer, in_one_line(error))


def _layer_of(program: torch.export.ExportedProgram, operation: str) -> str:
    """The module in which an exported graph calls `operation` first, e.g. `stages.0.blocks.0`; "" if nowhere."""
    for graph in (program.graph, program.run_decompositions({}).graph):
        for node in graph.nodes:
            if node.op == "call_function" and operation in str(node.target):
                stack = list((node.meta.get("nn_module_stack") or {}).values())
                return stack[-1][0] if stack else ""
    return ""
