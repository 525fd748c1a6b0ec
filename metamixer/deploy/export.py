"""A whole network to a file: folded, its normalisation built in, checked against eager PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from ..config import ConfigError
from ..networks import Network
from . import coreml, executorch, onnx
from .common import Deployed

SUFFIXES = {"coreml": ".mlpackage", "executorch": ".pte", "onnx": ".onnx"}
IMAGES = 8


@dataclass(frozen=True)
class Export:
    """What was written, its size in bytes, and a line for each thing that was checked."""

    path: Path
    size: int
    checks: tuple[str, ...]


def export(
    network: Network,
    format: str,
    out: Path | None = None,
    quantize: str | None = None,
    labels: Path | None = None,
    delegate: str | None = None,
) -> Export:
    """Write `network` for a runtime, and check what was written as far as this machine can.

    The input `images` is (1, C, H, W) in 0-1, for Core ML an image. The output is the classes' scores, for Core ML
    their probabilities and the label of the largest.

    Args:
        format: coreml (an ML program at fp16), executorch or onnx (fp32).
        out: the file; `NAME.mlpackage`, `.pte` or `.onnx` if None.
        quantize: compression of Core ML's weights: int8, palette4, palette6 or palette8.
        labels: a file of the classes' names, for Core ML; if None the run's, ImageNet's for 1000, or numbers.
        delegate: ExecuTorch's, xnnpack (fp32) if None, or coreml (fp16).

    Raises:
        ConfigError: no such format, a missing package, an operation that can't be converted, labels that don't fit.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"format {format!r}: one of {', '.join(SUFFIXES)}")
    if format != "coreml" and (quantize is not None or labels is not None):
        raise ConfigError(f"{'labels' if quantize is None else 'quantize'}: only for coreml, not for {format}")
    if format != "executorch" and delegate is not None:
        raise ConfigError(f"delegate: only for executorch, not for {format}")
    if not hasattr(network.model, "num_classes"):
        raise ConfigError(f"{network.name!r} is a mixer: export a network, or see docs/deployment.md")
    path = out or Path(Path(network.name).name + SUFFIXES[format])
    if path.suffix != SUFFIXES[format]:
        raise ConfigError(f"{path}: a file for {format} ends in {SUFFIXES[format]}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder {path.parent}")
    if format != "coreml" and path.is_dir():
        raise ConfigError(f"{path}: this is a folder, give a file's name")
    model = Deployed(network.model, network.mean, network.std, softmax=format == "coreml").eval()
    images = _images(network)
    if format == "coreml":
        names = class_labels(network, labels)
        program = coreml.convert_classifier(model, images[:1], names)
        if quantize is not None:
            program = coreml.compress(program, quantize)
        shutil.rmtree(path, ignore_errors=True)  # a package is a folder
        program.save(str(path))
        checks = _check_coreml(path, network, model, images, names)
    elif format == "executorch":
        chosen = "xnnpack" if delegate is None else delegate
        content, rest = executorch.convert(model, images[:1], chosen)
        path.write_bytes(content)
        portable = ", ".join(f"{name} ({times}×)" for name, times in sorted(rest.items()))
        title = executorch.DELEGATES[chosen][0]
        checks = [f"not run: this machine's ExecuTorch has no {title}; Apple's devices have it"]
        if executorch.runs_here(chosen):
            checks = [_compare(network, model, images, lambda x: executorch.run(path, x))]
        checks.append(f"outside {title}, on portable kernels: {portable or 'nothing'}")
    else:
        path.write_bytes(onnx.convert(model, images[:1]))
        checks = [_compare(network, model, images, lambda x: onnx.run(path, x))]
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Export(path, sum(file.stat().st_size for file in files), tuple(checks))


def class_labels(network: Network, file: Path | None) -> list[str]:
    """A name for each class: the lines of a file, else those of the run, ImageNet's for 1000 classes, or numbers.

    Raises:
        ConfigError: the file can't be read, or has not a name of its own for each class.
    """
    classes: int = network.model.num_classes  # type: ignore[assignment]
    if file is None and network.classes:
        return network.classes
    if file is None and classes == 1000:
        info = ImageNetInfo("imagenet-1k")
        # some names occur twice (crane, maillot), and Core ML wants them different
        return [f"{info.index_to_label_name(i)} {info.index_to_description(i)}" for i in range(classes)]
    if file is None:
        return [str(i) for i in range(classes)]
    try:
        labels = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if len(labels) != classes or len(set(labels)) < classes:
        raise ConfigError(
            f"labels {file}: {len(labels)} lines, {len(set(labels))} of them different, for {classes} classes: "
            "give each class a line with its own name"
        )
    return labels


def _images(network: Network) -> Tensor:
    """Noise of several scales in 0-1, (N, C, H, W)."""
    channels, height, width = network.input_size
    draws = torch.Generator().manual_seed(0)
    noise = torch.zeros(IMAGES, channels, height, width)
    for scale in (2, 4, 8):
        coarse = torch.rand(IMAGES, channels, scale, scale, generator=draws)
        noise += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") / 3
    return noise


def _compare(
    network: Network, deployed: Deployed, images: Tensor, run: Callable[[Tensor], Tensor], what: str = "scores"
) -> str:
    mean, std = deployed.mean, deployed.std
    with torch.no_grad():
        eager = torch.cat([network.model((image[None] - mean) / std) for image in images])  # not folded
        eager = deployed.ending(eager)
        other = torch.cat([run(image[None]) for image in images])
    agree = int((eager.argmax(1) == other.argmax(1)).sum())
    largest = float((eager - other).abs().max())
    return (
        f"against eager, not folded, on {len(images)} images: top-1 agrees on {agree}, {what} differ by at most "
        f"{largest:.1e} (the largest is {float(eager.abs().max()):.2g})"
    )


def _check_coreml(path: Path, network: Network, model: Deployed, images: Tensor, labels: list[str]) -> list[str]:
    program = coreml.read(path)
    description = program.get_spec().description
    (pixels,) = description.input
    kind = pixels.type.imageType
    outputs = ", ".join(output.name for output in description.output)
    ops = ", ".join(f"{name} ({times}×)" for name, times in coreml.operations(program).most_common())
    compared_run = "not run: only macOS runs Core ML"
    if coreml.runs_here():
        pixels_only = (images * 255).round() / 255  # as an image holds them
        compared_run = _compare(network, model, pixels_only, lambda x: coreml.run(path, x, labels), "probabilities")
    return [
        f"input {pixels.name!r}: image of {kind.width}×{kind.height}; outputs {outputs}; {len(labels)} classes",
        f"operations: {ops}",
        compared_run,
    ]
