"""ExecuTorch programs (.pte): a delegate for what it covers, portable kernels for the rest.

The delegates are XNNPACK (CPUs, Apple's too) and Core ML (Apple's devices, fp16). A program for Core ML can be written
anywhere; it runs only where ExecuTorch was built with that delegate, on Apple's systems.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError
from .common import exported, not_convertible, quiet, require

# by name: as people write it, and as ExecuTorch's runtime calls it
DELEGATES = {"xnnpack": ("XNNPACK", "XnnpackBackend"), "coreml": ("Core ML", "CoreMLBackend")}


def convert(model: nn.Module, image: Tensor, delegate: str = "xnnpack") -> tuple[bytes, Counter[str]]:
    """`model` as an ExecuTorch program for inputs of the shape of `image`, fp32; Core ML computes in fp16 inside.

    Args:
        delegate: xnnpack or coreml.

    Returns:
        The content of a .pte file, and the operations that the delegate leaves to portable kernels, with their number.

    Raises:
        ConfigError: no such delegate; executorch, or coremltools for Core ML, is missing.
        NotConvertible: an operation that it does not take.
    """
    if delegate not in DELEGATES:
        raise ConfigError(f"delegate {delegate!r}: one of {', '.join(DELEGATES)}")
    require(["executorch"], "executorch")
    if delegate == "coreml":
        require(["coremltools"], "deploy")
    with quiet():
        from executorch.exir import to_edge_transform_and_lower

        program = exported(model, (image,), "ExecuTorch")
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[_partitioner(delegate)])
            rest = _portable(lowered.exported_program().graph)
            return lowered.to_executorch().buffer, rest
        except Exception as error:  # exir raises many kinds
            raise not_convertible("ExecuTorch", program, error) from None


def _partitioner(delegate: str) -> Any:
    if delegate == "coreml":
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        return CoreMLPartitioner()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def runs_here(delegate: str) -> bool:
    """Whether this machine's ExecuTorch has the delegate."""
    with quiet():
        from executorch.runtime import Runtime

        return DELEGATES[delegate][1] in Runtime.get().backend_registry.registered_backend_names


def run(path: Path, image: Tensor) -> Tensor:
    """The first output of a written program."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return method.execute([image.contiguous()])[0].clone()


def _portable(graph: torch.fx.Graph) -> Counter[str]:
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    plain = (name.rpartition("aten.")[2] for name in names if "aten." in name)
    return Counter(name.rstrip("'>").partition(".")[0] for name in plain)
