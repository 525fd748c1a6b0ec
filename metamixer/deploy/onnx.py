"""ONNX models (.onnx), by torch's exporter, checked by onnx."""

import torch
from torch import Tensor, nn

from .common import exported, not_convertible, quiet


def convert(model: nn.Module, image: Tensor) -> bytes:
    """`model` as a serialised ONNX model for inputs of the shape of `image`, fp32; input `images`, output `scores`.

    Raises NotConvertible: an operation that ONNX does not have.
    """
    program = exported(model, (image,), "ONNX")
    with quiet():
        import onnx

        try:
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=["scores"]
            )
            assert made is not None
            onnx.checker.check_model(made.model_proto)
            return made.model_proto.SerializeToString()
        except Exception as error:  # torch.onnx raises many kinds
            raise not_convertible("ONNX", program, error) from None
