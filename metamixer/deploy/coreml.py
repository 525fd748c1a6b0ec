"""Core ML: ML programs (.mlpackage), by torch.jit.trace and coremltools. Apple's systems run what it wrote."""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import in_one_line
from .common import NotConvertible, quiet, require

_LOCATION = re.compile(r"converting '(.*?)' op \(located at: '(.*?)'\)")


def convert(model: nn.Module, image: Tensor, **options: Any) -> Any:
    """`model` as a coremltools MLModel, an ML program for inputs of the shape of `image`, at fp16 unless said.

    Args:
        options: to `coremltools.convert`.

    Raises:
        ConfigError: coremltools is missing.
        NotConvertible: an operation that it does not take; the line names it and its layer.
    """
    require(["coremltools"], "deploy")
    with quiet(), _logged() as lines, torch.no_grad():
        import coremltools

        options = {"inputs": [coremltools.TensorType(name="images", shape=image.shape)], **options}
        try:
            traced = torch.jit.trace(model, image)
        except Exception as error:  # torch.jit raises many kinds
            raise NotConvertible("Core ML", "torch.jit.trace", "", in_one_line(error)) from None
        try:
            return coremltools.convert(traced, convert_to="mlprogram", skip_model_load=True, **options)
        except Exception as error:  # so does coremltools
            raise NotConvertible("Core ML", *_location(lines), in_one_line(error)) from None


def convert_classifier(model: nn.Module, image: Tensor, labels: list[str]) -> Any:
    """The same for a network of normalised images that ends in a softmax: image in, class and probabilities out."""
    require(["coremltools"], "deploy")
    with quiet():
        import coremltools

    layout = coremltools.colorlayout.GRAYSCALE if image.shape[1] == 1 else coremltools.colorlayout.RGB
    # pixels of 0-255 to the 0-1 that the network takes
    pixels = coremltools.ImageType(name="images", shape=image.shape, scale=1 / 255, color_layout=layout)
    return convert(model, image, inputs=[pixels], classifier_config=coremltools.ClassifierConfig(labels))


def operations(program: Any) -> Counter[str]:
    """How many operations of each kind a program holds, constants and decompressed weights apart."""
    main = program.get_spec().mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return Counter(op.type for op in block.operations if op.type != "const" and not op.type.startswith("constexpr"))


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What coremltools logs meanwhile, in place of its showing it: it says only there where it stopped."""
    lines: list[str] = []
    logger = logging.getLogger("coremltools")

    def keep(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield lines
    finally:
        logger.removeFilter(keep)


def _location(lines: list[str]) -> tuple[str, str]:
    """The operation and the layer that the last of such lines names."""
    for line in reversed(lines):
        if found := _LOCATION.search(line):
            # behind the layer stands the operation's own number
            return found[1], ".".join(found[2].split("/")[:-1])
    return "the network", ""
