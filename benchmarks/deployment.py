"""The table of docs/deployment.md: every mixer of the catalogue in every format, or why it does not convert.

python benchmarks/deployment.py                  # writes it between the page's marks; 3 minutes on 2 cores
python benchmarks/deployment.py --out page.md
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from metamixer.config import ConfigError
from metamixer.deploy import coreml, executorch, onnx
from metamixer.fold import fold
from metamixer.latency.runtimes import find_runtime
from metamixer.mixer import build_mixer, resolve_mixer
from metamixer.operation import Site
from metamixer.presets import BASELINES, PRESETS

DIM, SIZE = 64, 8
BEGIN, END = "<!-- catalogue -->", "<!-- end -->"
INTRODUCTION = f"""## The catalogue

Each mixer is converted alone, folded, with {DIM} channels on a map of {SIZE}×{SIZE}. ExecuTorch and ONNX Runtime
run it. The difference to eager PyTorch is relative (of L2 norms). Operations that XNNPACK does not support run on
portable kernels, which are slow. `python benchmarks/deployment.py` makes this table.
"""


def row(name: str) -> list[str]:
    """A mixer's cells: its name, then for each format what came of its conversion."""
    torch.manual_seed(0)
    mixer = fold(build_mixer(resolve_mixer(name), Site(DIM, SIZE, SIZE))).requires_grad_(False)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # nothing is zero or one by luck
        image = torch.randn(1, DIM, SIZE, SIZE)
        expected = mixer(image)
    cells = [f"`{name}`"]
    for convert in (_coreml, _executorch, _onnx):
        try:
            cells.append(convert(mixer, image, expected))
        except ConfigError as error:
            cells.append(str(error).replace("|", "\\|"))
    return cells


def _coreml(mixer: nn.Module, image: Tensor, expected: Tensor) -> str:
    converted = coreml.operations(coreml.convert(mixer, image))
    return f"converts, {sum(converted.values())} operations"


def _executorch(mixer: nn.Module, image: Tensor, expected: Tensor) -> str:
    content, rest = executorch.convert(mixer, image)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixer.pte"
        path.write_bytes(content)
        difference = _relative(find_runtime("executorch").run(path, image), expected)
    left = ", ".join(sorted(rest))
    return f"runs, off by {difference:.0e}" + (f"; not XNNPACK's: {left}" if left else "")


def _onnx(mixer: nn.Module, image: Tensor, expected: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixer.onnx"
        path.write_bytes(onnx.convert(mixer, image))
        return f"runs, off by {_relative(find_runtime('onnxruntime').run(path, image), expected):.0e}"


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def table(names: list[str]) -> str:
    """The rows of `names` in Markdown."""
    lines = ["| mixer | Core ML | ExecuTorch | ONNX |", "|---|---|---|---|"]
    for name in names:
        lines.append("| " + " | ".join(row(name)) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main(path: Path) -> None:
    """Write the table into the file, between its marks."""
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ConfigError(f"{path}: no {BEGIN} and {END} to write between")
    made = table([*PRESETS, *BASELINES])
    path.write_text(f"{head}{BEGIN}\n{INTRODUCTION}\n{made}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/deployment.md"))
    main(parser.parse_args().out)
