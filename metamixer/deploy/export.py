"""A whole network to a file: folded, its normalisation built in, checked against eager PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from ..config import ConfigError
from ..latency.runtimes import find_runtime
from ..networks import Network
from . import coreml, executorch, onnx
from .common import Deployed

SUFFIXES = {"coreml": ".mlpackage", "executorch": ".pte", "onnx": ".onnx"}
_RUN_BY = {"executorch": "executorch", "onnx": "onnxruntime"}
IMAGES = 8


@dataclass(frozen=True)
class Export:
    """What was written, its size in bytes, and a line for each thing that was checked."""

    path: Path
    size: int
    checks: tuple[str, ...]


def export(network: Network, format: str, out: Path | None = None) -> Export:
    """Write `network` for a runtime, and check what was written as far as this machine can.

    The input `images` is (1, C, H, W) in 0-1, the output what the network gives. Core ML's classifiers of grey or
    colour images take an image, and give the classes' probabilities and the label of the largest.

    Args:
        format: coreml (an ML program at fp16), executorch or onnx (fp32).
        out: the file; `NAME.mlpackage`, `.pte` or `.onnx` if None.

    Raises ConfigError: no such format, a missing package, or an operation that can't be converted.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"format {format!r}: one of {', '.join(SUFFIXES)}")
    if network.is_mixer:
        raise ConfigError(f"{network.name!r} is a mixer: export a network, or see docs/deployment.md")
    path = out or Path(Path(network.name).name + SUFFIXES[format])
    if path.suffix != SUFFIXES[format]:
        raise ConfigError(f"{path}: a file for {format} ends in {SUFFIXES[format]}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder {path.parent}")
    if format != "coreml" and path.is_dir():
        raise ConfigError(f"{path}: this is a folder, give a file's name")
    images = _images(network)
    with torch.no_grad():
        classifies = network.model(images[:1]).ndim == 2 and images.shape[1] in (1, 3)
    model = Deployed(network.model, network.mean, network.std, softmax=format == "coreml" and classifies).eval()
    if format == "coreml":
        names = class_labels(network) if classifies else []
        program = (
            coreml.convert_classifier(model, images[:1], names) if classifies else coreml.convert(model, images[:1])
        )
        shutil.rmtree(path, ignore_errors=True)  # a package is a folder
        program.save(str(path))
        checks = [*_described(program), "not run: Xcode or a phone runs it"]
    else:
        runtime, notes = find_runtime(_RUN_BY[format]), []
        if format == "executorch":
            content, rest = executorch.convert(model, images[:1])
            portable = ", ".join(f"{name} ({times}×)" for name, times in sorted(rest.items()))
            notes = [f"outside XNNPACK, on portable kernels: {portable or 'nothing'}"]
        else:
            content = onnx.convert(model, images[:1])
        path.write_bytes(content)
        checks = [_compared(network, model, images, lambda x: runtime.run(path, x)), *notes]
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Export(path, sum(file.stat().st_size for file in files), tuple(checks))


def class_labels(network: Network) -> list[str]:
    """A name for each class: the run's, ImageNet's for 1000 classes, or numbers."""
    classes: int = network.model.num_classes  # type: ignore[assignment]
    if network.classes:
        return network.classes
    if classes == 1000:
        info = ImageNetInfo("imagenet-1k")
        # some names occur twice (crane, maillot), and Core ML wants them different
        return [f"{info.index_to_label_name(i)} {info.index_to_description(i)}" for i in range(classes)]
    return [str(i) for i in range(classes)]


def _images(network: Network) -> Tensor:
    """Noise of several scales in 0-1, (N, C, H, W)."""
    channels, height, width = network.input_size
    draws = torch.Generator().manual_seed(0)
    noise = torch.zeros(IMAGES, channels, height, width)
    for scale in (2, 4, 8):
        coarse = torch.rand(IMAGES, channels, scale, scale, generator=draws)
        noise += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") / 3
    return noise


def _compared(network: Network, deployed: Deployed, images: Tensor, run: Callable[[Tensor], Tensor]) -> str:
    mean, std = deployed.mean, deployed.std
    with torch.no_grad():
        eager = torch.cat([network.model((image[None] - mean) / std) for image in images])  # not folded
        eager = deployed.ending(eager)
        other = torch.cat([run(image[None]) for image in images])
    agree = f"top-1 agrees on {int((eager.argmax(1) == other.argmax(1)).sum())}, " if eager.ndim == 2 else ""
    largest = float((eager - other).abs().max())
    return (
        f"against eager, not folded, on {len(images)} images: {agree}outputs differ by at most {largest:.1e} (the "
        f"largest is {float(eager.abs().max()):.2g})"
    )


def _described(program: Any) -> list[str]:
    description = program.get_spec().description
    (given,) = description.input
    kind = given.type.imageType
    shape = f"image of {kind.width}×{kind.height}" if kind.width else "numbers"
    outputs = ", ".join(output.name for output in description.output)
    ops = ", ".join(f"{name} ({times}×)" for name, times in coreml.operations(program).most_common())
    return [f"input {given.name!r}: {shape}; outputs {outputs}", f"operations: {ops}"]
