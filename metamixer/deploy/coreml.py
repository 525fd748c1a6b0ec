"""Core ML: ML programs (.mlpackage), by torch.jit.trace and coremltools.

coremltools converts anywhere; only macOS can run what it wrote. Elsewhere a package is checked as far as its program
goes: input, outputs, classes, operations, and weights read back.
"""

import contextlib
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config import ConfigError
from .common import NotConvertible, first_line, quiet, require

# bits of a palette's indices, or 8 for linear quantization, by the name of a compression
COMPRESSIONS = {"int8": 8, "palette4": 4, "palette6": 6, "palette8": 8}
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
    seen = _Log()
    with quiet(), seen.attached(), torch.no_grad():
        import coremltools

        options = {"inputs": [coremltools.TensorType(name="images", shape=image.shape)], **options}
        try:
            traced = torch.jit.trace(model, image)
        except Exception as error:  # torch.jit raises many kinds
            raise NotConvertible("Core ML", "torch.jit.trace", "", first_line(error)) from None
        try:
            return coremltools.convert(traced, convert_to="mlprogram", skip_model_load=True, **options)
        except Exception as error:  # so does coremltools
            operation, layer = seen.location()
            raise NotConvertible("Core ML", operation, layer, first_line(error)) from None


def convert_classifier(model: nn.Module, image: Tensor, labels: list[str]) -> Any:
    """The same for a network of normalised images that ends in a softmax: image in, class and probabilities out."""
    require(["coremltools"], "deploy")
    with quiet():
        import coremltools

    layout = coremltools.colorlayout.GRAYSCALE if image.shape[1] == 1 else coremltools.colorlayout.RGB
    # pixels of 0-255 to the 0-1 that the network takes
    pixels = coremltools.ImageType(name="images", shape=image.shape, scale=1 / 255, color_layout=layout)
    return convert(model, image, inputs=[pixels], classifier_config=coremltools.ClassifierConfig(labels))


def compress(program: Any, compression: str) -> Any:
    """A program with its weights at 8 bits (`int8`, a scale for each channel) or as indices into a palette (k-means).

    Raises:
        ConfigError: no such compression.
    """
    if compression not in COMPRESSIONS:
        raise ConfigError(f"compression {compression!r}: one of {', '.join(COMPRESSIONS)}")
    from coremltools.optimize import coreml as optimize

    bits = COMPRESSIONS[compression]
    with quiet():
        if compression == "int8":
            linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
            return optimize.linear_quantize_weights(program, optimize.OptimizationConfig(global_config=linear))
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits)
        return optimize.palettize_weights(program, optimize.OptimizationConfig(global_config=palette))


def read(path: Path) -> Any:
    """A package from the disk, as coremltools' MLModel that can't predict."""
    import coremltools

    return coremltools.models.MLModel(str(path), skip_model_load=True)


def runs_here() -> bool:
    """Whether this machine can run what was written."""
    return sys.platform == "darwin"


def run(path: Path, image: Tensor, labels: list[str]) -> Tensor:
    """Probabilities (1, classes) of a written classifier, in the order of `labels`; macOS only.

    Args:
        image: (1, C, H, W) in 0-1, rounded to 256 levels on the way.
    """
    import coremltools

    program = coremltools.models.MLModel(str(path))
    pixels = (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()  # (H, W, 3) or (H, W)
    found = program.predict({"images": Image.fromarray(pixels)})
    by_label = found[program.get_spec().description.predictedProbabilitiesName]
    return torch.tensor([[float(by_label[label]) for label in labels]])


def operations(program: Any) -> Counter[str]:
    """How many operations of each kind a program holds, constants and decompressed weights apart."""
    main = program.get_spec().mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return Counter(op.type for op in block.operations if op.type != "const" and not op.type.startswith("constexpr"))


def weights(program: Any) -> dict[str, np.ndarray]:
    """A program's weights of 16 numbers or more, as it will use them (decompressed), by their names there."""
    from coremltools.optimize import coreml as optimize

    with quiet():
        plain = optimize.decompress_weights(program)
        return {name: np.asarray(found.val) for name, found in optimize.get_weights_metadata(plain, 16).items()}


def largest_weight_difference(program: Any, model: nn.Module) -> tuple[int, int, float]:
    """How many parameters of `model` (those of two and more axes) a program holds, of how many, and how near.

    Converters may compute with a weight while they convert; such a one is not found. The difference is the largest
    of a found weight's entries, as a share of its largest entry.
    """
    found = {(_stem(name), weight.size): weight for name, weight in weights(program).items()}
    wanted = {name: p.detach().numpy() for name, p in model.named_parameters() if p.ndim > 1 and p.numel() >= 16}
    differences = [0.0]
    for name, value in wanted.items():
        own = found.get((name.replace(".", "_"), value.size))
        if own is not None:
            off = np.abs(own.astype(np.float32).reshape(value.shape) - value).max()
            differences.append(float(off / max(np.abs(value).max(), 1e-12)))
    return len(differences) - 1, len(wanted), max(differences)


def _stem(name: str) -> str:
    """A weight's name without what coremltools adds."""
    return re.sub(r"(_to_fp16|_quantized|_palettized|_decompressed|_promoted)+(_\d+)?$", "", name)


class _Log(logging.Handler):
    """Catches where coremltools stopped, which it only logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        logger = logging.getLogger("coremltools")
        before = logger.handlers, logger.propagate, logger.level
        logger.handlers, logger.propagate = [self], False
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.handlers, logger.propagate, level = before
            logger.setLevel(level)

    def location(self) -> tuple[str, str]:
        """The operation and the layer that the last line names."""
        for line in reversed(self.lines):
            if found := _LOCATION.search(line):
                # behind the layer stands the operation's own number
                return found[1], ".".join(found[2].split("/")[:-1])
        return "the network", ""
