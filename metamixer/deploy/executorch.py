"""ExecuTorch programs (.pte): XNNPACK's kernels for what it covers, portable ones for the rest."""

from collections import Counter

import torch
from torch import Tensor, nn

from .common import exported, not_convertible, quiet


def convert(model: nn.Module, image: Tensor) -> tuple[bytes, Counter[str]]:
    """`model` as an ExecuTorch program for inputs of the shape of `image`, fp32.

    Returns:
        The content of a .pte file, and the operations that XNNPACK leaves to portable kernels, with their number.

    Raises NotConvertible: an operation that it does not take.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = exported(model, (image,), "ExecuTorch")
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            rest = _portable(lowered.exported_program().graph)
            return lowered.to_executorch().buffer, rest
        except Exception as error:  # exir raises many kinds
            raise not_convertible("ExecuTorch", program, error) from None


def _portable(graph: torch.fx.Graph) -> Counter[str]:
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    plain = (name.rpartition("aten.")[2] for name in names if "aten." in name)
    return Counter(name.rstrip("'>").partition(".")[0] for name in plain)
