"""ONNX models (.onnx), by torch's exporter, checked by onnx and run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .common import exported, not_convertible, quiet, require


def convert(model: nn.Module, image: Tensor) -> bytes:
    """`model` as a serialised ONNX model for inputs of the shape of `image`, fp32; input `images`, output `scores`.

    Raises:
        ConfigError: onnx or onnxscript is missing.
        NotConvertible: an operation that ONNX does not have.
    """
    require(["onnx", "onnxscript"], "onnx")
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


def session(path: Path, threads: int = 0) -> Any:
    """A written model, loaded by ONNX Runtime for its CPU kernels; as many threads as cores if 0.

    Raises ConfigError: onnxruntime is missing.
    """
    require(["onnxruntime"], "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, image: Tensor) -> Tensor:
    """The first output of a written model."""
    loaded = session(path)
    return torch.from_numpy(loaded.run(None, {loaded.get_inputs()[0].name: image.numpy()})[0])
